"""One trial: a function from values to a value.

``run_trial`` builds the backbone, trains it, records it, and returns the result; ``run_together`` does so for head-only
trials, all at once. A pruned, failed or out-of-memory trial *returns*; only a fault of the infrastructure raises.
"""

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import torch

from thawline import backbones
from thawline.config import TrainConfig
from thawline.exceptions import ThawlineError, TrainingError
from thawline.search.events import Note, emit
from thawline.search.observation_log import ObservationRecorder, record_classes
from thawline.search.probing import ProbeFile, begin_with_probe, fitted_probe
from thawline.search.spec import TrialSpec, build_backbone
from thawline.search.trial_result import TrialResult, trial_folder
from thawline.search.trial_tracking import Outcome, params_of, record_end, trackers_of, what_was_reached
from thawline.tracking import (
    Tracker,
    TrackingReport,
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
    is_device_lost,
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
from thawline.training.resident import keep_nothing

__all__ = ["run_together", "run_trial"]

_log = logging.getLogger(__name__)
_PATIENCE_SECONDS = 600.0
"""How long a trial that has ended waits for room for its checkpoints."""
_LONGEST_DELAY = 5.0


def run_trial(
    spec: TrialSpec, on_epoch: Callable[[EpochResult], Decision], on_batch: Callable[[], bool] = lambda: False
) -> TrialResult:
    """Train one trial, or resume one that was stopped.

    Args:
        spec: what to train, on what, and where to record it.
        on_epoch: told each epoch's result; answers whether to continue.
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
    """Train one trial, or several head-only trials, as one computation.

    Args:
        specs: of one study and, if several, of one backbone and full freeze depth; if they were begun before, then
            together and in this order.
        on_epoch: told the number of a trial and its epoch's result; answers whether it continues.
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


class _Arguments(TypedDict):
    """Arguments that a training and a probe kept as a trial have in common."""

    hyperparameters: Hyperparameters
    config: TrainConfig
    metric: str
    runtime: Runtime
    checkpoints: CheckpointFolder
    seed: int


def _failed(reason: str) -> Outcome:
    return Outcome("failed", reason)


class _Trial:
    """A trial that runs: where it records itself, and who is told."""

    def __init__(
        self, spec: TrialSpec, on_epoch: Callable[[int, EpochResult], Decision], on_batch: Callable[[], bool]
    ) -> None:
        self.spec = spec
        self._on_epoch = on_epoch
        self.on_batch = on_batch
        self.mlflow, self.tracker = trackers_of(spec)
        self.tracker.log_params(params_of(spec))
        if spec.provenance is not None:
            spec.provenance.record(self.tracker)
        self.folder = _checkpoint_folder(spec)
        self.observer = _observer(spec, self.tracker)

    def announce(self, result: EpochResult) -> Decision:
        """Record an epoch, and ask whether to continue."""
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

    def outcome(self, result: FitResult) -> Outcome:
        """How a training ended, in words."""
        if result.decision is Decision.PAUSE:
            return Outcome("paused", f"paused after epoch {result.history[-1].epoch}", result)
        if result.decision is Decision.PRUNE:
            return Outcome("pruned", f"pruned after epoch {result.history[-1].epoch}", result)
        if result.decision is Decision.STOP:
            return Outcome("complete", f"stopped by the time limit after epoch {result.history[-1].epoch}", result)
        reason = f"no improvement for {self.spec.config.train.early_stopping} epochs" if result.stopped_early else ""
        return Outcome("complete", reason, result)

    def end(self, outcome: Outcome, seconds: float) -> TrialResult:
        """Record how it ended, and sum it up."""
        spec = self.spec
        seconds += spec.seconds_before
        self._wait_for_room()
        reached = what_was_reached(spec, self.folder, outcome.result)
        if self.observer is not None and self.observer.verdict.findings:
            self.tracker.log_tags({"mlflow.note.content": "\n\n".join(self.observer.verdict.findings)})
        report = record_end(spec, self.tracker, outcome, reached, seconds)
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

    def _wait_for_room(self) -> None:
        """A disk that is full at the end of a trial may have room in minutes; without a checkpoint its value is lost.

        Raises:
            Interrupted: if it is asked to leave meanwhile; it resumes from its last checkpoint.
        """
        deadline, delay = time.monotonic() + _PATIENCE_SECONDS, 0.2
        while self.folder.problem is not None and time.monotonic() < deadline:
            if self.on_batch():
                raise Interrupted
            time.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)
            self.folder.settle()


def _lost(folder: CheckpointFolder, report: TrackingReport) -> Iterator[str]:
    """What is neither on disk nor in MLflow, in words."""
    if folder.problem is not None:
        yield f"checkpoints could not be written: {folder.problem}"
    if report.unsent and report.where is None:
        yield f"{report.unsent} records were given up: {report.problem}"


def _guarded(trial: _Trial) -> Outcome:
    """Train one trial; any failure is its outcome."""
    try:
        return _probe(trial) if trial.spec.hyperparameters.is_probe else _train(trial)
    except Interrupted:
        raise
    except (ThawlineError, FloatingPointError) as error:
        return _failed(str(error))
    except Exception as error:
        if is_device_lost(error):  # nor could this process train the next one: another resumes it
            emit(Note(f"trial-{trial.spec.number:02d}: the GPU failed: {str(error).splitlines()[0]}", "warning"))
            raise
        if not is_out_of_memory(error):
            _log.exception("trial %d failed", trial.spec.number)
        return _failed(_reason(error))


def _train(trial: _Trial) -> Outcome:
    spec = trial.spec
    runtime = _set_up(spec)
    inputs = _LastOpened(spec, runtime)

    def attempt(accumulation: int) -> tuple[backbones.Backbone, FitResult]:
        if accumulation > 1:  # memory ran out
            inputs.close()
            keep_nothing()
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

    backbone, result = _with_less_memory(attempt, trial.tracker, runtime, spec.config.train.batch_size)
    _, validation = inputs(spec.hyperparameters.freeze_depth)
    _log_classes(trial, backbone, validation, runtime, result)
    return trial.outcome(result)


def _probe(trial: _Trial) -> Outcome:
    """The linear probe as a trial: fitted unless it is already, and measured as a network."""
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

    def close(self) -> None:
        """Keep nothing open."""
        self._opened.clear()

    def __call__(self, depth: int) -> tuple[Inputs, Inputs]:
        if depth not in self._opened:
            self.close()  # first: each may fill half of the memory
            augmentation = self._spec.hyperparameters.augmentation
            self._opened[depth] = self._spec.activations.open(depth, self._runtime, augmentation)
        return self._opened[depth]


def _train_heads(trials: Sequence[_Trial]) -> list[Outcome] | None:
    """Train heads together; ``None`` if that is not possible, and they must train one after the other."""
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
        if is_device_lost(error):
            raise
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
    """Threads, and one seed for all trials of a study: they differ in their hyperparameters, not by chance."""
    set_up_process(threads=spec.threads, seed=spec.config.study.seed, exact=spec.config.train.exact)
    runtime = runtime_for(spec.config.train)
    forget_peak_memory(runtime.device)
    return runtime


def _with_less_memory(
    attempt: Callable[[int], tuple[backbones.Backbone, FitResult]], tracker: Tracker, runtime: Runtime, batch_size: int
) -> tuple[backbones.Backbone, FitResult]:
    """Try; whenever memory runs out, again in twice as many parts of a batch, whose gradients are accumulated.

    Parts of two images are the smallest: a batch norm that is trained needs two.
    """
    parts = 1
    while True:
        try:
            return attempt(parts)
        except Exception as error:
            if not is_out_of_memory(error) or 4 * parts > batch_size:
                raise
        # Outside the except block: the exception's traceback would keep this attempt's tensors alive.
        gc.collect()
        if runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        parts *= 2
        said = f"retried with 1/{parts} of a batch at a time, gradients accumulated over {parts} parts"
        tracker.log_tags({"thawline.out_of_memory": said})


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
    """Record the confusion matrix and class metrics of the best epoch; in detail unless it was pruned."""
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
    if result.decision not in (Decision.PAUSE, Decision.PRUNE):
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


def _reason(error: Exception) -> str:
    if is_out_of_memory(error):
        return (
            "out of memory, also with two images at a time. Lower --image-size, take a smaller backbone, "
            "or raise the lower end of space.freeze_depth."
        )
    return f"{type(error).__name__}: {error}"
