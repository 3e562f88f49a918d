"""Batch scoring: every image of a folder or a list, with a registered model, into a Parquet file.

On a schedule, this flow scores with the champion at that time. The command ``thawline score`` does the same without
Prefect.
"""

from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from thawline import environment
from thawline.orchestration.schedules import drop_missed_runs
from thawline.scoring import ScoreSummary, score_files

__all__ = ["score"]


@flow(name="score", validate_parameters=True, on_running=[drop_missed_runs])
def score(model: str, source: Path, out: Path, device: str = "auto", tracking_uri: str | None = None) -> ScoreSummary:
    """Classify every image file; see :func:`thawline.scoring.score_files`.

    Args:
        model: ``NAME``, ``NAME@alias`` or ``NAME/version``.
        source: a folder of images, a file that lists image paths, or for a text model a table or .txt of texts.
        out: the Parquet file to write.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        tracking_uri: URI of the registry; by default as for a search.

    Raises:
        ThawlineError: if the model, the images or the texts are not found.
    """
    summary = score_task(model, source, out, device, tracking_uri)
    create_markdown_artifact(key="score", markdown=f"{summary}.", description="Batch scoring")
    return summary


@task(name="score files", cache_policy=NO_CACHE)
def score_task(model: str, source: Path, out: Path, device: str, tracking_uri: str | None) -> ScoreSummary:
    """Score the files, resuming an interrupted run."""
    return score_files(model, source, out, tracking_uri=tracking_uri, home=environment.home(), device=device)
