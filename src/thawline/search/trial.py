"""One trial: a function from values to a value.

``run_trial`` builds the backbone, trains it, records it, and returns the result; ``run_together`` does so for head-only
trials, all at once, and ``run_rank`` in one of several processes that train a trial. A pruned, failed or out-of-memory
trial *returns*; only a fault of the infrastructure raises.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypedDict

from thawline import backbones
from thawline.config import TrainConfig
from thawline.exceptions import ThawlineError, TrainingError
from thawline.search.events import Note, emit
from thawline.search.memory import reason_of, with_less_memory
from thawline.search.observation_log import record_classes
from thawline.search.probing import ProbeFile, begin_with_probe, fitted_probe
from thawline.search.ranks import OF_ALL_RANKS, told_as_of_rank
from thawline.search.spec import TrialSpec, build_backbone
from thawline.search.trial_result import TrialResult, trial_folder
from thawline.search.trial_tracking import Outcome, observer_of, params_of, record_end, trackers_of, what_was_reached
from thawline.tracking import TrackingReport
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
from thawline.training.ranks import ALONE, Place, Ranks, joined
from thawline.training.resident import keep_nothing

__all__ = ["run_rank", "run_together", "run_trial"]

_log = logging.getLogger(__name__)
_PATIENCE_SECONDS = 600.0
"""How long an ended trial waits for disk space for its checkpoints."""
_LONGEST_DELAY = 5.0


def run_trial(
    spec: TrialSpec, on_epoch: Callable[[EpochResult], Decision], on_batch: Callable[[], bool] = lambda: False
) -> TrialResult:
    """Train one trial, or resume an interrupted one.

    Args:
        spec: what to train, on what, and where to record it.
        on_epoch: called with each epoch's result; returns whether to continue.
        on_batch: called after every batch; returns True to write a checkpoint and leave.

    Returns:
        The result, also if the trial was pruned, ran out of memory twice, or its loss is not finite.
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
        specs: trials of one study and, if several, of one backbone and full freeze depth. If they were started before,
            then together and in this order.
        on_epoch: called with a trial's number and its epoch's result; returns whether it continues.
        on_batch: called after every batch; returns True to write checkpoints and leave.

    Returns:
        The results, in the order of ``specs``.

    Raises:
        Interrupted: after ``on_batch`` returned True.
    """
    started = time.perf_counter()
    trials = [_Trial(spec, on_epoch, on_batch) for spec in specs]
    outcomes = _train_heads(trials) if len(trials) > 1 else None
    if outcomes is None:
        outcomes = [_guarded(trial) for trial in trials]
    seconds = (time.perf_counter() - started) / len(trials)
    return tuple(trial.end(outcome, seconds) for trial, outcome in zip(trials, outcomes, strict=True))


def run_rank(
    spec: TrialSpec, place: Place, on_epoch: Callable[[EpochResult], Decision], on_batch: Callable[[], bool]
) -> tuple[TrialResult, ...]:
    """Train one trial, or resume one, in one of several processes.

    Args:
        spec: as in :func:`run_trial`, with this process's device.
        place: this process's rank. The first records the trial and calls ``on_epoch``.
        on_epoch: as there.
        on_batch: as there; if it returns True in one process, all leave.

    Returns:
        The result, in the first process.

    Raises:
        Interrupted: after ``on_batch`` returned True.
        RankOutOfMemory: if this process's device is out of memory.
        RankFailed: if anything except the training itself fails here, unnoticed by the others.
    """
    started = time.perf_counter()
    with told_as_of_rank(), joined(place, runtime_for(spec.config.train).device) as ranks:
        if ranks.is_first:
            trial = _Trial(spec, lambda number, epoch: on_epoch(epoch), on_batch)
            outcome = _guarded(trial, ranks)
            return (trial.end(outcome, time.perf_counter() - started),)
        with suppress(*OF_ALL_RANKS):  # the first one reports it
            runtime = _set_up(spec, ranks)
            _fit(
                spec,
                _checkpoint_folder(spec),
                runtime,
                ranks,
                inputs=_LastOpened(spec, runtime),
                accumulation=spec.accumulation,
                on_epoch=on_epoch,
                on_batch=on_batch,
            )
    return ()


class _Arguments(TypedDict):
    """Arguments common to training and to a probe stored as a trial."""

    hyperparameters: Hyperparameters
    config: TrainConfig
    metric: str
    runtime: Runtime
    checkpoints: CheckpointFolder
    seed: int


def _failed(reason: str) -> Outcome:
    return Outcome("failed", reason)


def _arguments(spec: TrialSpec, folder: CheckpointFolder, runtime: Runtime) -> _Arguments:
    return {
        "hyperparameters": spec.hyperparameters,
        "config": spec.config.train,
        "metric": spec.config.study.metric,
        "runtime": runtime,
        "checkpoints": folder,
        "seed": spec.config.study.seed,
    }


class _Trial:
    """A running trial: its trackers and callbacks."""

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
        self.observer = observer_of(spec, self.tracker)

    def announce(self, result: EpochResult) -> Decision:
        """Record an epoch; returns whether to continue."""
        self.tracker.log_metrics(result.metrics, step=result.epoch, timestamp_ms=result.finished_at)
        return self._on_epoch(self.spec.number, result)

    def outcome(self, result: FitResult) -> Outcome:
        """Describe how training ended."""
        if result.decision is Decision.PAUSE:
            return Outcome("paused", f"paused after epoch {result.history[-1].epoch}", result)
        if result.decision is Decision.PRUNE:
            return Outcome("pruned", f"pruned after epoch {result.history[-1].epoch}", result)
        if result.decision is Decision.STOP:
            return Outcome("complete", f"stopped by the time limit after epoch {result.history[-1].epoch}", result)
        reason = f"no improvement for {self.spec.config.train.early_stopping} epochs" if result.stopped_early else ""
        return Outcome("complete", reason, result)

    def end(self, outcome: Outcome, seconds: float) -> TrialResult:
        """Record how it ended, and return the result."""
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
        """Wait for disk space at the end of a trial: without a checkpoint its value is lost.

        Raises:
            Interrupted: if asked to leave meanwhile; the trial resumes from its last checkpoint.
        """
        deadline, delay = time.monotonic() + _PATIENCE_SECONDS, 0.2
        while self.folder.problem is not None and time.monotonic() < deadline:
            if self.on_batch():
                raise Interrupted
            time.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)
            self.folder.settle()


def _lost(folder: CheckpointFolder, report: TrackingReport) -> Iterator[str]:
    """Describe what is neither on disk nor in MLflow."""
    if folder.problem is not None:
        yield f"checkpoints could not be written: {folder.problem}"
    if report.unsent and report.where is None:
        yield f"{report.unsent} records were dropped: {report.problem}"


def _guarded(trial: _Trial, ranks: Ranks = ALONE) -> Outcome:
    """Train one trial; any failure becomes its outcome, except one that its other processes do not notice."""
    try:
        return _probe(trial) if trial.spec.hyperparameters.is_probe else _train(trial, ranks)
    except Interrupted:
        raise
    except (ThawlineError, FloatingPointError) as error:
        if ranks.count > 1 and not isinstance(error, OF_ALL_RANKS):
            raise
        return _failed(str(error))
    except Exception as error:
        if is_device_lost(error):  # this process cannot use it again: another one resumes the trial
            emit(Note(f"trial-{trial.spec.number:02d}: the GPU failed: {str(error).splitlines()[0]}", "warning"))
            raise
        if ranks.count > 1:
            raise
        if not is_out_of_memory(error):
            _log.exception("trial %d failed", trial.spec.number)
        return _failed(reason_of(error))


def _fit(
    spec: TrialSpec,
    folder: CheckpointFolder,
    runtime: Runtime,
    ranks: Ranks,
    *,
    inputs: "_LastOpened",
    accumulation: int,
    on_epoch: Callable[[EpochResult], Decision],
    on_batch: Callable[[], bool],
    observer: Observer | None = None,
) -> tuple[backbones.Backbone, FitResult]:
    """Train a network from the trial's initial state."""
    if accumulation > 1:  # memory ran out
        inputs.close()
        keep_nothing()
    with ranks.first_ahead():  # the first fits the probe if necessary
        backbone = _backbone(spec, runtime)
    return backbone, fit(
        backbone,
        inputs,
        **_arguments(spec, folder, runtime),
        accumulation=accumulation,
        on_epoch=on_epoch,
        on_batch=on_batch,
        observer=observer,
        ranks=ranks,
    )


def _train(trial: _Trial, ranks: Ranks) -> Outcome:
    spec = trial.spec
    runtime = _set_up(spec, ranks)
    inputs = _LastOpened(spec, runtime)
    attempt = partial(
        _fit,
        spec,
        trial.folder,
        runtime,
        ranks,
        inputs=inputs,
        on_epoch=trial.announce,
        on_batch=trial.on_batch,
        observer=trial.observer,
    )
    backbone, result = with_less_memory(attempt, trial.tracker, spec, ranks)
    _, validation = inputs(spec.hyperparameters.freeze_depth)
    _log_classes(trial, backbone, validation, runtime, result)
    return trial.outcome(result)


def _probe(trial: _Trial) -> Outcome:
    """The linear probe as a trial: fitted unless it already is, and evaluated as a network."""
    spec = trial.spec
    runtime = _set_up(spec)
    backbone = build_backbone(spec.config, spec.hyperparameters.backbone, len(spec.classes))
    probe = fitted_probe(backbone, spec.activations, spec.config, runtime, _probe_path(spec))
    _, validation = spec.activations.open_plain(spec.hyperparameters.freeze_depth, runtime)
    result = keep_probe(
        backbone, probe.head, validation, seconds=probe.seconds, **_arguments(spec, trial.folder, runtime)
    )
    trial.announce(result.history[-1])
    _log_classes(trial, backbone, validation, runtime, result)
    return trial.outcome(result)


class _LastOpened:
    """Opens a trial's inputs for a freeze depth, and keeps the last opened ones."""

    def __init__(self, spec: TrialSpec, runtime: Runtime) -> None:
        self._spec, self._runtime = spec, runtime
        self._opened: dict[int, tuple[Inputs, Inputs]] = {}

    def close(self) -> None:
        """Close the open inputs."""
        self._opened.clear()

    def __call__(self, depth: int) -> tuple[Inputs, Inputs]:
        if depth not in self._opened:
            self.close()  # first: each may fill half of the memory
            augmentation = self._spec.hyperparameters.augmentation
            self._opened[depth] = self._spec.activations.open(depth, self._runtime, augmentation)
        return self._opened[depth]


def _train_heads(trials: Sequence[_Trial]) -> list[Outcome] | None:
    """Train heads together; ``None`` if that is not possible and they must train one by one."""
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
        return [_failed(reason_of(error))] * len(trials)
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


def _set_up(spec: TrialSpec, ranks: Ranks = ALONE) -> Runtime:
    """Set threads and the seed, which is the same for all trials: they differ by hyperparameters, not by chance."""
    seed = ranks.own_seed(spec.config.study.seed)
    set_up_process(threads=spec.threads, seed=seed, exact=spec.config.train.exact)
    runtime = runtime_for(spec.config.train)
    forget_peak_memory(runtime.device)
    return runtime


def _backbone(spec: TrialSpec, runtime: Runtime) -> backbones.Backbone:
    """The backbone in the trial's initial state."""
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
    """Record the confusion matrix and class metrics of the best epoch, in detail unless the trial was pruned."""
    spec, best = trial.spec, trial.folder.best()
    if best is None:
        return
    checkpoint = load_checkpoint(best)
    load_model(checkpoint, backbone)
    predicted = predict(backbone, validation, runtime, spec.config.train.batch_size).argmax(1).numpy()
    counts = confusion(predicted, validation.labels, len(spec.classes))
    recalls = per_class_scores(counts)["recall"]
    metrics = {f"val_recall/{name}": float(recall) for name, recall in zip(spec.classes, recalls, strict=True)}
    metrics = {name: value for name, value in metrics.items() if value == value}  # NaN: not in validation
    trial.tracker.log_metrics(metrics, step=checkpoint.epoch)
    if result.decision not in (Decision.PAUSE, Decision.PRUNE):
        record_classes(trial.tracker, counts, spec.classes, step=checkpoint.epoch)


def _checkpoint_folder(spec: TrialSpec) -> CheckpointFolder:
    return CheckpointFolder(
        trial_folder(spec.home, spec.study, spec.number),
        keep=spec.config.train.keep_checkpoints,
        maximise=METRIC_DIRECTIONS[spec.config.study.metric] == "maximize",
    )
