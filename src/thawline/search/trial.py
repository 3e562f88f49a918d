"""One trial: a function from values to a value.

``run_trial`` builds the backbone, trains it, records it, and returns what came of it; ``run_together`` does so for
trials that train the head alone, all at once. A pruned, failed or out-of-memory trial *returns*; only a fault of the
infrastructure raises.
"""

import gc
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

import torch

from thawline import backbones
from thawline.config import TrainConfig, flatten
from thawline.exceptions import CheckpointError, ThawlineError, TrainingError
from thawline.search.observed import ObservationRecorder, record_classes
from thawline.search.probing import ProbeFile, begin_with_probe, fitted_probe
from thawline.search.spec import TrialResult, TrialSpec, build_backbone, trial_folder, trial_name
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
    METRIC_DIRECTIONS,
    CheckpointFolder,
    Decision,
    EpochResult,
    FitResult,
    HeadTrial,
    Hyperparameters,
    Inputs,
    Interrupted,
    Observer,
    Runtime,
    confusion,
    fit,
    fit_heads,
    forget_peak_memory,
    is_out_of_memory,
    keep_probe,
    load_checkpoint,
    load_model,
    peak_memory,
    per_class_scores,
    predict,
    runtime_for,
    set_up_process,
)

__all__ = ["run_together", "run_trial"]

_log = logging.getLogger(__name__)


def run_trial(
    spec: TrialSpec, on_epoch: Callable[[EpochResult], Decision], on_batch: Callable[[], bool] = lambda: False
) -> TrialResult:
    """Train one trial, or go on with one that was stopped.

    Args:
        spec: what to train, on what, and where to record it.
        on_epoch: told each epoch's result; answers whether to go on.
        on_batch: called after every batch; True asks to write a checkpoint and leave.

    Returns:
        The result, also of a trial that was pruned, ran out of memory twice, or whose loss is not finite.
    """
    (result,) = run_together([spec], lambda number, epoch: on_epoch(epoch), on_batch)
    return result


def run_together(
    specs: Sequence[TrialSpec],
    on_epoch: Callable[[int, EpochResult], Decision],
    on_batch: Callable[[], bool] = lambda: False,
) -> tuple[TrialResult, ...]:
    """Train one trial, or several that train the head alone, as one computation.

    Args:
        specs: of one study and, if several, of one backbone and full freeze depth; if they were begun before, then
            together and in this order.
        on_epoch: told the number of a trial and its epoch's result; answers whether it goes on.
        on_batch: called after every batch; True asks to write checkpoints and leave.

    Returns:
        The results, in the order of ``specs``.

    Raises:
        Interrupted: after ``on_batch`` asked for it.
    """
    started = time.perf_counter()
    trials = [_Trial(spec, on_epoch, on_batch) for spec in specs]
    outcomes = _train_heads(trials) if len(trials) > 1 else None
    if outcomes is None:
        outcomes = [_guarded(trial) for trial in trials]
    seconds = (time.perf_counter() - started) / len(trials)
    return tuple(trial.end(outcome, seconds) for trial, outcome in zip(trials, outcomes, strict=True))


@dataclass(frozen=True)
class _Outcome:
    state: Literal["complete", "pruned", "failed"]
    reason: str = ""
    result: FitResult | None = None


class _Arguments(TypedDict):
    """What a training and a probe that is kept as one are both told."""

    hyperparameters: Hyperparameters
    config: TrainConfig
    metric: str
    runtime: Runtime
    checkpoints: CheckpointFolder
    seed: int


def _failed(reason: str) -> _Outcome:
    return _Outcome("failed", reason)


class _Trial:
    """A trial that runs: where it records itself, and who is told."""

    def __init__(
        self, spec: TrialSpec, on_epoch: Callable[[int, EpochResult], Decision], on_batch: Callable[[], bool]
    ) -> None:
        self.spec = spec
        self._on_epoch = on_epoch
        self.on_batch = on_batch
        self.mlflow, self.tracker = _trackers(spec)
        self.tracker.log_params(_params(spec))
        if spec.provenance is not None:
            spec.provenance.record(self.tracker)
        self.folder = _checkpoint_folder(spec)
        self.observer = _observer(spec, self.tracker)

    def announce(self, result: EpochResult) -> Decision:
        """Record an epoch, and ask whether to go on."""
        self.tracker.log_metrics(result.metrics, step=result.epoch, timestamp_ms=result.finished_at)
        return self._on_epoch(self.spec.number, result)

    def arguments(self, runtime: Runtime) -> _Arguments:
        """Of :func:`thawline.training.fit` and :func:`thawline.training.keep_probe`."""
        return {
            "hyperparameters": self.spec.hyperparameters,
            "config": self.spec.config.train,
            "metric": self.spec.config.study.metric,
            "runtime": runtime,
            "checkpoints": self.folder,
            "seed": self.spec.config.study.seed,
        }

    def outcome(self, result: FitResult) -> _Outcome:
        """How a training ended, in words."""
        if result.decision is Decision.PRUNE:
            return _Outcome("pruned", f"pruned after epoch {result.history[-1].epoch}", result)
        if result.decision is Decision.STOP:
            return _Outcome("complete", f"stopped by the time limit after epoch {result.history[-1].epoch}", result)
        reason = f"no better for {self.spec.config.train.early_stopping} epochs" if result.stopped_early else ""
        return _Outcome("complete", reason, result)

    def end(self, outcome: _Outcome, seconds: float) -> TrialResult:
        """Record how it ended, and sum it up."""
        spec = self.spec
        reached = _what_was_reached(spec, self.folder, outcome.result)
        if self.observer is not None and self.observer.verdict.findings:
            self.tracker.log_tags({"mlflow.note.content": "\n\n".join(self.observer.verdict.findings)})
        report = _record_end(spec, self.tracker, outcome, reached, seconds)
        return TrialResult(
            number=spec.number,
            state=outcome.state,
            value=reached.value,
            best_epoch=reached.best_epoch,
            epochs=reached.epochs,
            seconds=seconds,
            reason=outcome.reason,
            run_id=self.mlflow.run_id,
            checkpoint=str(reached.checkpoint.relative_to(spec.home)) if reached.checkpoint else None,
            memory_bytes=peak_memory(runtime_for(spec.config.train).device),
            unsent=report.unsent,
            unkept="; ".join(_lost(self.folder, report)),
        )


def _lost(folder: CheckpointFolder, report: TrackingReport) -> Iterator[str]:
    """What is neither on disk nor in MLflow, in words."""
    if folder.problem is not None:
        yield f"checkpoints could not be written: {folder.problem}"
    if report.unsent and report.where is None:
        yield f"{report.unsent} records were given up: {report.problem}"


def _guarded(trial: _Trial) -> _Outcome:
    """Train one trial; whatever goes wrong is its outcome."""
    try:
        return _probe(trial) if trial.spec.hyperparameters.is_probe else _train(trial)
    except Interrupted:
        raise
    except (ThawlineError, FloatingPointError) as error:
        return _failed(str(error))
    except Exception as error:
        if not is_out_of_memory(error):
            _log.exception("trial %d failed", trial.spec.number)
        return _failed(_reason(error))


def _train(trial: _Trial) -> _Outcome:
    spec = trial.spec
    runtime = _set_up(spec)
    inputs = _LastOpened(spec, runtime)

    def attempt(accumulation: int) -> tuple[backbones.Backbone, FitResult]:
        backbone = _backbone(spec, runtime)
        return backbone, fit(
            backbone,
            inputs,
            **trial.arguments(runtime),
            accumulation=accumulation,
            on_epoch=trial.announce,
            on_batch=trial.on_batch,
            observer=trial.observer,
        )

    backbone, result = _with_less_memory(attempt, trial.tracker, runtime)
    _, validation = inputs(spec.hyperparameters.freeze_depth)
    _log_classes(trial, backbone, validation, runtime, result)
    return trial.outcome(result)


def _probe(trial: _Trial) -> _Outcome:
    """The linear probe as a trial: it is fitted already, or is now, and measured as a network."""
    spec = trial.spec
    runtime = _set_up(spec)
    backbone = build_backbone(spec.config, spec.hyperparameters.backbone, len(spec.classes))
    probe = fitted_probe(backbone, spec.activations, spec.config, runtime, _probe_path(spec))
    _, validation = spec.activations.open_plain(spec.hyperparameters.freeze_depth, runtime)
    result = keep_probe(backbone, probe.head, validation, seconds=probe.seconds, **trial.arguments(runtime))
    trial.announce(result.history[-1])
    _log_classes(trial, backbone, validation, runtime, result)
    return trial.outcome(result)


class _LastOpened:
    """Opens a trial's inputs for a freeze depth, and keeps those that were opened last."""

    def __init__(self, spec: TrialSpec, runtime: Runtime) -> None:
        self._spec, self._runtime = spec, runtime
        self._opened: dict[int, tuple[Inputs, Inputs]] = {}

    def __call__(self, depth: int) -> tuple[Inputs, Inputs]:
        if depth not in self._opened:
            self._opened.clear()  # first: each may fill half of the memory
            augmentation = self._spec.hyperparameters.augmentation
            self._opened[depth] = self._spec.activations.open(depth, self._runtime, augmentation)
        return self._opened[depth]


def _train_heads(trials: Sequence[_Trial]) -> list[_Outcome] | None:
    """Train heads together; ``None`` if it cannot be done so, and they must train one after the other."""
    spec = trials[0].spec
    try:
        runtime = _set_up(spec)
        train, validation = _LastOpened(spec, runtime)(spec.hyperparameters.freeze_depth)
        backbone = _backbone(spec, runtime)
        fitted = fit_heads(
            backbone,
            train,
            validation,
            [HeadTrial(t.spec.hyperparameters, t.folder, t.announce) for t in trials],
            config=spec.config.train,
            metric=spec.config.study.metric,
            runtime=runtime,
            seed=spec.config.study.seed,
            on_batch=trials[0].on_batch,
        )
    except Interrupted:
        raise
    except TrainingError:  # their activations were removed meanwhile
        return None
    except Exception as error:
        if is_out_of_memory(error):
            return None
        _log.exception("trials %s failed", [trial.spec.number for trial in trials])
        return [_failed(_reason(error))] * len(trials)
    outcomes = []
    together = ", ".join(str(trial.spec.number) for trial in trials)
    for trial, result in zip(trials, fitted, strict=True):
        trial.tracker.log_tags({"thawline.trained_together": together})
        if isinstance(result, TrainingError):
            outcomes.append(_failed(str(result)))
        else:
            _log_classes(trial, backbone, validation, runtime, result)
            outcomes.append(trial.outcome(result))
    return outcomes


def _set_up(spec: TrialSpec) -> Runtime:
    """Threads, and one seed for all trials of a study: they differ in their hyperparameters, not in luck."""
    set_up_process(threads=spec.threads, seed=spec.config.study.seed)
    runtime = runtime_for(spec.config.train)
    forget_peak_memory(runtime.device)
    return runtime


def _with_less_memory(
    attempt: Callable[[int], tuple[backbones.Backbone, FitResult]], tracker: Tracker, runtime: Runtime
) -> tuple[backbones.Backbone, FitResult]:
    """Try once; when memory runs out, once more at half the batch with gradients accumulated over two parts."""
    try:
        return attempt(1)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Outside the except block: the exception's traceback would keep the first attempt's tensors alive.
    gc.collect()
    if runtime.device.type == "cuda":
        torch.cuda.empty_cache()
    tracker.log_tags({"thawline.out_of_memory": "retried at half the batch size, gradients accumulated over 2 parts"})
    return attempt(2)


def _backbone(spec: TrialSpec, runtime: Runtime) -> backbones.Backbone:
    """As the trial begins with it."""
    backbone = build_backbone(spec.config, spec.hyperparameters.backbone, len(spec.classes))
    wanted = spec.config.train.head
    if wanted == "probe" or (wanted == "auto" and spec.activations.preprocessing is not None):
        begin_with_probe(backbone, spec.activations, spec.config, runtime, _probe_path(spec))
    return backbone


def _probe_path(spec: TrialSpec) -> Path:
    return ProbeFile.path(spec.home, spec.study, spec.hyperparameters.backbone)


def _log_classes(
    trial: _Trial, backbone: backbones.Backbone, validation: Inputs, runtime: Runtime, result: FitResult
) -> None:
    """Which classes the best epoch, whose weights the backbone then has, gives up; in detail unless it was pruned."""
    spec, best = trial.spec, trial.folder.best()
    if best is None:
        return
    checkpoint = load_checkpoint(best)
    load_model(checkpoint, backbone)
    predicted = predict(backbone, validation, runtime, spec.config.train.batch_size).argmax(1).numpy()
    counts = confusion(predicted, validation.labels, len(spec.classes))
    recalls = per_class_scores(counts)["recall"]
    metrics = {f"val_recall/{name}": float(recall) for name, recall in zip(spec.classes, recalls, strict=True)}
    metrics = {name: value for name, value in metrics.items() if value == value}  # a class that validation lacks is NaN
    trial.tracker.log_metrics(metrics, step=checkpoint.epoch)
    if result.decision is not Decision.PRUNE:
        record_classes(trial.tracker, counts, spec.classes, step=checkpoint.epoch)


def _observer(spec: TrialSpec, tracker: Tracker) -> Observer | None:
    if not spec.config.tracking.observe:
        return None
    activations = spec.activations
    images = activations.data if activations.preprocessing is not None else None
    record = ObservationRecorder(
        tracker, images=images, texts=spec.texts, classes=spec.classes, seed=spec.config.study.seed
    )
    return Observer(record)


def _checkpoint_folder(spec: TrialSpec) -> CheckpointFolder:
    return CheckpointFolder(
        trial_folder(spec.home, spec.study, spec.number),
        keep=spec.config.train.keep_checkpoints,
        maximise=METRIC_DIRECTIONS[spec.config.study.metric] == "maximize",
    )


def _trackers(spec: TrialSpec) -> tuple[MlflowTracker, CompositeTracker]:
    """MLflow's tracker, whose run id is wanted at the end, and all trackers as one."""
    run = TrackerRun(
        home=spec.home,
        study=spec.study,
        trial=spec.number,
        run_name=trial_name(spec.number, spec.hyperparameters),
        study_run_id=spec.parent_run_id,
        metric=spec.config.study.metric,
    )
    return open_trackers(run, spec.config.tracking, spec.store)


_OF_PROBES = {
    *("backbone", "freeze_depth", "policy", "class_weights", "precision", "device"),
    *("weights", "image_size", "max_length", "seed"),
}
"""What a linear probe depends on; it has no learning rate, no epochs and no schedule."""


def _params(spec: TrialSpec) -> dict[str, str]:
    """The same keys for every trial of a study, so that MLflow's charts can compare them.

    What is searched has a name of its own, and the rest that of its setting, behind it in the alphabet: so MLflow's
    contour plot, which takes the first two that are numbers, begins with freeze depth and learning rate.
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
    if spec.hyperparameters.is_probe:
        fixed = {key: value for key, value in fixed.items() if key.removeprefix("train.") in _OF_PROBES}
        return fixed | {name: value for name, value in searched.items() if name in _OF_PROBES}
    return searched | {key: value for key, value in fixed.items() if key.removeprefix("train.") not in searched}


@dataclass(frozen=True)
class _Reached:
    value: float | None = None
    best_epoch: int | None = None
    epochs: int = 0
    checkpoint: Path | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Validation's, of the best epoch."""


def _what_was_reached(spec: TrialSpec, folder: CheckpointFolder, result: FitResult | None) -> _Reached:
    """Best value and its epoch and checkpoint, and the epochs trained; of a failed trial, what its checkpoints hold."""
    best, last = folder.best(), folder.last()
    if result is not None:
        # On a full disk the best epoch's checkpoint may be missing; another's has other weights.
        kept = best if best is not None and load_checkpoint(best).epoch == result.best_epoch else None
        metrics = _of_validation(result.history[result.best_epoch - 1].metrics)
        return _Reached(result.value, result.best_epoch, len(result.history), kept, metrics)
    if best is None or last is None:
        return _Reached()
    try:
        checkpoint = load_checkpoint(best)
    except CheckpointError:
        return _Reached(epochs=last.epoch)
    metrics = _of_validation(checkpoint.state["history"][-1]["metrics"])
    return _Reached(float(checkpoint.state["value"]), checkpoint.epoch, last.epoch, best, metrics)


def _of_validation(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("val/")}


def _record_end(
    spec: TrialSpec, tracker: CompositeTracker, outcome: _Outcome, reached: _Reached, seconds: float
) -> TrackingReport:
    summary = {"time/seconds": seconds}
    if reached.value is not None:
        summary[f"best/{spec.config.study.metric}"] = reached.value
    tracker.log_metrics(summary, step=reached.epochs)
    tracker.log_tags({"thawline.state": outcome.state, "thawline.reason": outcome.reason})
    history = trial_folder(spec.home, spec.study, spec.number) / "history.csv"
    if history.exists():
        tracker.log_artifact(history)
    if reached.checkpoint is not None and reached.best_epoch is not None:
        tracker.log_checkpoint(
            reached.checkpoint,
            name=f"{spec.study}-trial-{spec.number:03d}",
            epoch=reached.best_epoch,
            metrics=reached.metrics,
            dataset=spec.dataset,
            params=_params(spec),
        )
    return tracker.close(run_status(outcome.state))


def _reason(error: Exception) -> str:
    if is_out_of_memory(error):
        return (
            "out of memory, also at half the batch size. Lower train.batch_size or --image-size, "
            "or raise the lower end of space.freeze_depth."
        )
    return f"{type(error).__name__}: {error}"
