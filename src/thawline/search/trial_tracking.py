"""The records of a trial: parameters, metrics, checkpoints, and how it ended."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from thawline.config import flatten
from thawline.exceptions import CheckpointError
from thawline.search.observation_log import ObservationRecorder
from thawline.search.spec import TrialSpec
from thawline.search.trial_result import TrialEnding, trial_folder, trial_name
from thawline.tracking import (
    CompositeTracker,
    MlflowTracker,
    Tracker,
    TrackerRun,
    TrackingReport,
    open_trackers,
    run_status,
)
from thawline.training import (
    CheckpointFolder,
    FitResult,
    Observer,
    load_checkpoint,
)

__all__ = ["Outcome", "Reached", "observer_of", "params_of", "record_end", "trackers_of", "what_was_reached"]

_OF_PROBES = {
    *("backbone", "freeze_depth", "policy", "class_weights", "precision", "device"),
    *("weights", "image_size", "max_length", "seed"),
}
"""Settings that a linear probe depends on; it has no learning rate, epochs or schedule."""
_UNSET = ("None", "()", "{}")
"""Settings that are off, as strings."""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, before it is recorded."""

    state: TrialEnding
    reason: str = ""
    result: FitResult | None = None


def trackers_of(spec: TrialSpec) -> tuple[MlflowTracker, CompositeTracker]:
    """MLflow's tracker, which provides the run id, and all trackers as one."""
    run = TrackerRun(
        home=spec.home,
        study=spec.study,
        trial=spec.number,
        run_name=trial_name(spec.number, spec.hyperparameters),
        study_run_id=spec.parent_run_id,
        metric=spec.config.study.metric,
    )
    return open_trackers(run, spec.config.tracking, spec.store)


def params_of(spec: TrialSpec) -> dict[str, str]:
    """Parameters with the same keys for every trial of a study, so that MLflow's charts can compare them.

    Unset ones are omitted. Searched settings have a plain name; the others are prefixed, which sorts them later. So
    MLflow's contour plot, which uses the first two numbers, starts with freeze depth and learning rate. The logarithm
    of the learning rate is added, as parallel coordinates have no logarithmic axes.
    """
    config = spec.config
    values = {name: str(value) for name, value in spec.hyperparameters.as_dict().items()}
    always = ("backbone", "freeze_depth", "learning_rate", "policy")
    searched = {name: value for name, value in values.items() if name in always or getattr(config.space, name)}
    fixed = flatten(config.train, "train.") | {
        "train.weights": config.backbone.weights_of(spec.hyperparameters.backbone),
        "train.image_size": str(config.backbone.image_size or "the backbone's own"),
        "train.max_length": str(config.backbone.max_length or "the backbone's own"),
        "train.seed": str(config.study.seed),
    }
    fixed |= {f"train.{name}": value for name, value in values.items() if f"train.{name}" in fixed}
    fixed = {key: value for key, value in fixed.items() if value not in _UNSET}
    if spec.hyperparameters.is_probe:
        fixed = {key: value for key, value in fixed.items() if key.removeprefix("train.") in _OF_PROBES}
        return fixed | {name: value for name, value in searched.items() if name in _OF_PROBES}
    searched["log10_learning_rate"] = f"{math.log10(spec.hyperparameters.learning_rate):.4f}"
    return searched | {key: value for key, value in fixed.items() if key.removeprefix("train.") not in searched}


@dataclass(frozen=True)
class Reached:
    """A trial's results, over all restarts."""

    value: float | None = None
    best_epoch: int | None = None
    epochs: int = 0
    checkpoint: Path | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Validation metrics of the best epoch."""


def what_was_reached(spec: TrialSpec, folder: CheckpointFolder, result: FitResult | None) -> Reached:
    """Best value with its epoch and checkpoint, and the epochs trained; for a failed trial, from its checkpoints."""
    best, last = folder.best(), folder.last()
    if result is not None:
        # On a full disk the best epoch's checkpoint may be missing; one of another epoch has other weights.
        kept = best if best is not None and load_checkpoint(best).epoch == result.best_epoch else None
        metrics = _of_validation(result.history[result.best_epoch - 1].metrics)
        return Reached(result.value, result.best_epoch, len(result.history), kept, metrics)
    if best is None or last is None:
        return Reached()
    try:
        checkpoint = load_checkpoint(best)
    except CheckpointError:
        return Reached(epochs=last.epoch)
    metrics = _of_validation(checkpoint.state["history"][-1]["metrics"])
    return Reached(float(checkpoint.state["value"]), checkpoint.epoch, last.epoch, best, metrics)


def _of_validation(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("val/")}


def record_end(
    spec: TrialSpec, tracker: CompositeTracker, outcome: Outcome, reached: Reached, seconds: float
) -> TrackingReport:
    """Record how a trial ended, and close its trackers. For a paused trial, no checkpoint is recorded yet."""
    summary = {"time/seconds": seconds}
    if reached.value is not None:
        summary[f"best/{spec.config.study.metric}"] = reached.value
    tracker.log_metrics(summary, step=reached.epochs)
    tracker.log_tags({"thawline.state": outcome.state, "thawline.reason": outcome.reason})
    history = trial_folder(spec.home, spec.study, spec.number) / "history.csv"
    if history.exists():
        tracker.log_artifact(history)
    if reached.checkpoint is not None and reached.best_epoch is not None and outcome.state != "paused":
        tracker.log_checkpoint(
            reached.checkpoint,
            name=f"{spec.study}-trial-{spec.number:03d}",
            epoch=reached.best_epoch,
            metrics=reached.metrics,
            dataset=spec.dataset,
            params=params_of(spec),
        )
    return tracker.close(run_status(outcome.state))


def observer_of(spec: TrialSpec, tracker: Tracker) -> Observer | None:
    """The observer that records the trial's training; ``None`` if observation is off."""
    if not spec.config.tracking.observe:
        return None
    activations = spec.activations
    images = activations.data if activations.preprocessing is not None else None
    record = ObservationRecorder(
        tracker, images=images, texts=spec.texts, classes=spec.classes, seed=spec.config.study.seed
    )
    return Observer(record)
