"""Drift: test whether new images still resemble those that a model was trained for, and publish the result as an event.

The event ``thawline.drift.detected`` of the resource ``thawline.model.<name>`` can trigger a deployment, such as one
that retrains; without drift, the event is ``thawline.drift.absent``. The command ``thawline drift`` does the same
without Prefect.
"""

from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from thawline import environment
from thawline.drift import DriftReport, check_drift
from thawline.orchestration.schedules import drop_missed_runs

__all__ = ["drift"]


@flow(name="drift", validate_parameters=True, on_running=[drop_missed_runs])
def drift(
    model: str,
    folder: Path,
    reference: Path | None = None,
    alpha: float = 0.01,
    max_images: int = 2000,
    device: str = "auto",
    tracking_uri: str | None = None,
) -> DriftReport:
    """Compare a folder of new images with a model's reference data; see :func:`thawline.drift.check_drift`.

    Args:
        model: ``NAME``, ``NAME@alias`` or ``NAME/version``.
        folder: folder of new images.
        reference: a folder of images to compare with; by default the held-out images of the model's study.
        alpha: false-alarm rate.
        max_images: maximum number of images; more are subsampled.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        tracking_uri: URI of the registry; by default as for a search.

    Raises:
        ThawlineError: if the model is not found, or there are too few images.
    """
    report = drift_task(model, folder, reference, alpha, max_images, device, tracking_uri)
    create_markdown_artifact(key="drift", markdown=report.as_markdown(), description=f"Drift of {report.model}")
    announce(report)
    return report


@task(name="compare images", cache_policy=NO_CACHE)
def drift_task(
    model: str,
    folder: Path,
    reference: Path | None,
    alpha: float,
    max_images: int,
    device: str,
    tracking_uri: str | None,
) -> DriftReport:
    """Classify both sets of images, and test whether they differ."""
    return check_drift(
        model,
        folder,
        tracking_uri=tracking_uri,
        home=environment.home(),
        reference=reference,
        alpha=alpha,
        max_images=max_images,
        device=device,
    )


def announce(report: DriftReport) -> None:
    """Emit an event for Prefect's automations."""
    emit_event(
        report.event,
        resource={
            "prefect.resource.id": f"thawline.model.{report.model}",
            "prefect.resource.name": report.model,
            "thawline.version": report.version,
        },
        payload=report.as_dict(),
    )
