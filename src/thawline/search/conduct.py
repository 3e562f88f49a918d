"""The driver's side of trials: draw, group, judge after every epoch, retry when a process dies."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from thawline.activations import StoredSplits
from thawline.exceptions import TrackingError
from thawline.search.events import EpochEnded, Note, TrialEnded, TrialStarted, emit
from thawline.search.fruitless import Fruitless
from thawline.search.memory import in_smaller_parts
from thawline.search.prepare import Prepared
from thawline.search.ranks import RankFailed, RankOutOfMemory
from thawline.search.slices import NEW, Slices
from thawline.search.slots import threads_per_trial
from thawline.search.space import planned_depths
from thawline.search.spec import StudyRun, TrialSpec
from thawline.search.storage import LeaseLost, storage_url
from thawline.search.study import Asked, Study
from thawline.search.trial import run_rank, run_together
from thawline.search.trial_result import TrialResult
from thawline.search.worker import Link, WorkerCrashed, call_in_worker, call_in_workers
from thawline.tracking import close_dead_run, run_status
from thawline.training import SHARED_BY_HEADS, Decision, EpochResult, Hyperparameters
from thawline.training.ranks import Place, device_of_rank

__all__ = ["Queue", "announce_end", "announce_start", "conduct", "trial_spec"]

_LOOK_SECONDS = 2.0
"""How often a search with nothing left to do checks the other searches of its study."""


class Queue:
    """The trials of a study, in the order in which they run.

    Trials are drawn a few at a time. The cheapest run first: a first good model is available within seconds, and
    expensive trials can be compared with others. Head-only trials are trained together.
    """

    @classmethod
    def of(cls, study: Study, deadline: float | None) -> "Queue":
        """The queue for the study's configuration."""
        config = study.config
        return cls(
            study,
            trials=config.study.most_trials,
            batch=config.study.batch,
            deadline=deadline,
            apart=config.train.exact or config.train.ema is not None,
        )

    def __init__(
        self,
        study: Study,
        *,
        trials: int | None,
        batch: int,
        deadline: float | None,
        apart: bool = False,
    ) -> None:
        """Start or resume a study, which must be held.

        Args:
            study: the study; trials that a dead process had started come first.
            trials: maximum number of trials in total; ``None`` if only the deadline, or fruitless trials, end the
                study.
            batch: number of trials drawn at once.
            deadline: in seconds of :func:`time.time`; no trial starts after it.
            apart: train each trial on its own, to be bit-equal or to average its weights.
        """
        self._study, self._slices, self._deadline = study, study.slices, deadline
        self._trials, self._apart = trials, apart
        self._batch = batch if study.draws_ahead else 1
        self._fruitless = Fruitless(study) if trials is None else None
        self._waiting = self._in_order(study.unfinished())
        self._complete_batch()

    @property
    def over(self) -> bool:
        """Whether the time limit is reached."""
        return self._deadline is not None and time.time() >= self._deadline

    def next(self) -> list[Asked]:
        """The trials to start now: one, or several heads; none when the budget or the time limit is reached."""
        if self.over:
            return []
        if self._slices is not None:
            paused = self._paused(self._slices)
            if paused is not None:
                return [paused]
        elif not self._waiting:
            self._draw()
        if not self._waiting:
            return []
        first = self._waiting[0]
        together = [asked for asked in self._waiting if self._is_with(asked, first)] or [first]
        if first.resumed and tuple(asked.number for asked in together) != first.together:
            together = [first]
        elif len(together) > 1 and not first.resumed:
            self._study.join([asked.number for asked in together])
        self._waiting = [asked for asked in self._waiting if asked not in together]
        self._study.begin([asked.number for asked in together])
        if self._slices is not None and not self._waiting:
            self._draw()  # so that the training trial is compared with the new ones
        return together

    @property
    def _may_draw(self) -> bool:
        return self._fruitless is None or not self._fruitless.ends()

    def _draw(self) -> None:
        if self._may_draw:
            self._waiting = self._in_order(self._study.draw(self._batch, trials=self._trials))

    def _paused(self, slices: Slices) -> Asked | None:
        """The paused trial that should train next; ``None`` if the first waiting trial should, or none."""
        # Linear probes come first, then trials that a dead process left: that restores the study's state.
        while not any(asked.resumed or asked.hyperparameters.is_probe for asked in self._waiting):
            waiting = [asked.number for asked in self._waiting]
            number = slices.next(waiting, may_draw=self._may_draw)
            if number == NEW:
                self._draw()
            elif number is None or number in waiting:
                return None
            elif (asked := self._study.paused.resume(number)) is not None:
                return asked
        return None

    def wait_for_others(self) -> bool:
        """With nothing left to start, wait for the trials of other searches that share the study.

        Returns:
            True if there is something to start because another search died; False when all of their trials have ended.
        """
        while not self.over:
            self._waiting = self._in_order(self._study.unfinished())
            if self._waiting or (
                self._slices is not None and self._slices.next([], may_draw=self._may_draw) is not None
            ):
                return True
            if not self._study.others_run():
                return False
            time.sleep(_LOOK_SECONDS)
        return False

    def _in_order(self, asked: list[Asked]) -> list[Asked]:
        return sorted(asked, key=lambda each: (not each.resumed, -self._frozen(each), each.number))

    def _complete_batch(self) -> None:
        """Draw the rest of a batch that was interrupted when the process died, before any of its trials started.

        Each trial of a batch is drawn without the results of the others, so the rest would differ later.
        """
        drawn = self._study.drawn()
        of_batch = range(drawn - drawn % self._batch, drawn)
        if of_batch and set(of_batch) == {each.number for each in self._waiting if not each.resumed}:
            missing = self._batch - len(of_batch)
            self._waiting = self._in_order([*self._waiting, *self._study.draw(missing, trials=self._trials)])

    def _frozen(self, asked: Asked) -> float:
        """Fraction of frozen layer groups; the larger, the cheaper the trial."""
        return asked.hyperparameters.freeze_depth / self._study.depths[asked.hyperparameters.backbone]

    def _is_with(self, asked: Asked, first: Asked) -> bool:
        """Whether two trials can be trained as one computation."""
        if first.resumed or asked.resumed:
            return asked.number in first.together
        one, other = asked.hyperparameters, first.hyperparameters
        if one.is_probe or other.is_probe:
            return asked is first
        same = all(getattr(one, name) == getattr(other, name) for name in ("backbone", *SHARED_BY_HEADS))
        return same and not self._apart and self._frozen(asked) == self._frozen(first) == 1


def trial_spec(
    prepared: Prepared,
    activations: StoredSplits,
    run: StudyRun,
    *,
    number: int,
    hyperparameters: Hyperparameters,
    device: str,
    seconds_before: float = 0.0,
) -> TrialSpec:
    """Everything that a trial's process needs.

    Args:
        prepared: the search.
        activations: stored activations of the trial's backbone.
        run: the study's run.
        number: the trial's number.
        hyperparameters: the trial's hyperparameters.
        device: device to train on.
        seconds_before: time it had taken when it was paused.
    """
    config = prepared.config
    deepest = prepared.depths[hyperparameters.backbone]
    depths = planned_depths(hyperparameters, config, deepest, config.train.epochs)
    train = activations.train_config(config.train, depths).model_copy(update={"device": device})
    # A trial on another machine does not have this machine's environment variables.
    study = config.study.model_copy(update={"storage": storage_url(config.study.storage)})
    return TrialSpec(
        number=number,
        hyperparameters=hyperparameters,
        config=config.model_copy(update={"train": train, "study": study}),
        study=run.study,
        classes=prepared.manifest.classes,
        activations=activations,
        home=run.home,
        store=run.store,
        parent_run_id=run.run_id,
        threads=threads_per_trial(config),
        dataset=(prepared.manifest.name, prepared.manifest.digest),
        provenance=run.provenance,
        texts=run.texts,
        seconds_before=seconds_before,
    )


def conduct(specs: Sequence[TrialSpec], study: Study, deadline: float | None) -> list[TrialResult]:
    """Run a trial, or several heads, in another process; prune when the study decides so; return the results.

    A process that dies or hangs is replaced, and the trial resumes from its last checkpoint. If it dies again before
    the next epoch, the trial has failed: it is not recorded as pruned, and the search continues. Trials that another
    search took over have no result here.
    """
    attempt, began = _Attempt(), time.perf_counter()
    results: list[TrialResult] | None = None
    while results is None:
        try:
            results = _train(specs, _judge(specs[0], study, deadline))
        except RankFailed as error:
            smaller = in_smaller_parts(specs[0]) if isinstance(error, RankOutOfMemory) else None
            if smaller is not None:
                specs = [smaller]
            else:
                results = [_crashed(specs[0], study, str(error), time.perf_counter() - began)]
        except LeaseLost as error:
            emit(Note(str(error), "warning"))
            return []
        except WorkerCrashed as error:
            attempt = attempt.after([study.reported_epochs(spec.number) for spec in specs])
            if attempt.number > specs[0].config.study.retries:
                seconds = (time.perf_counter() - began) / len(specs)
                results = [_crashed(spec, study, str(error), seconds) for spec in specs]
            else:
                numbers = ", ".join(f"{spec.number:02d}" for spec in specs)
                emit(Note(f"trial-{numbers}: {error}; retrying from its last checkpoint", "warning"))
    return results


def announce_start(specs: Sequence[TrialSpec], study: Study) -> None:
    """Notify watchers that these trials start or resume."""
    for spec in specs:
        emit(TrialStarted(spec.number, spec.hyperparameters, study.reported_epochs(spec.number)))


def announce_end(result: TrialResult) -> None:
    """Notify watchers how a trial ended."""
    emit(TrialEnded(result))


@dataclass(frozen=True)
class _Attempt:
    """Number of attempts of a trial without another completed epoch."""

    number: int = 0
    epochs: tuple[int, ...] = ()

    def after(self, epochs: list[int]) -> "_Attempt":
        return _Attempt(self.number + 1 if tuple(epochs) == self.epochs or not any(epochs) else 1, tuple(epochs))


def _train(specs: Sequence[TrialSpec], judge: Callable[[tuple[int, EpochResult]], Decision]) -> list[TrialResult]:
    """Train in one process, or in one process per device if a trial has several."""
    first, silent_seconds = specs[0], 60 * specs[0].config.study.hang_minutes
    count = first.config.train.devices_per_trial
    if count == 1 or len(specs) > 1 or first.hyperparameters.is_probe:
        return list(call_in_worker(_run, specs, on_message=judge, silent_seconds=silent_seconds))
    with tempfile.TemporaryDirectory(prefix="thawline-") as folder:
        places = [Place(rank, count, Path(folder) / "meeting") for rank in range(count)]
        calls = [(_run_rank, (first, place)) for place in places]
        return list(call_in_workers(calls, on_message=judge, silent_seconds=silent_seconds))


def _run_rank(spec: TrialSpec, place: Place, link: Link) -> tuple[TrialResult, ...]:
    """Runs in the worker of one of several devices."""
    train = spec.config.train
    train = train.model_copy(update={"device": device_of_rank(train.device, place.rank)})
    threads = None if spec.threads is None else max(1, spec.threads // place.count)
    spec = replace(spec, config=spec.config.model_copy(update={"train": train}), threads=threads)
    return run_rank(spec, place, lambda result: link((spec.number, result)), link.alive)


def _run(specs: Sequence[TrialSpec], link: Link) -> tuple[TrialResult, ...]:
    """In the worker."""
    return run_together(specs, lambda number, result: link((number, result)), link.alive)


def _judge(spec: TrialSpec, study: Study, deadline: float | None) -> Callable[[tuple[int, EpochResult]], Decision]:
    metric, probe = spec.config.study.metric, spec.hyperparameters.is_probe
    epochs = 1 if probe else spec.config.train.epochs
    known: dict[int, int] = {}

    def judge(message: tuple[int, EpochResult]) -> Decision:
        number, result = message
        value, loss = result.metrics[f"val/{metric}"], result.metrics["train/loss"]
        # Do not repeat what was logged before it was paused, or before its process died.
        if number not in known:
            known[number] = study.reported_epochs(number)
        if result.epoch > known[number]:
            emit(EpochEnded(number, result.epoch, epochs, metric, value, loss))
        if probe:
            took = result.metrics["time/epoch_seconds"]
            emit(Note(f"linear probe: val/{metric} {value:.4f} in {took:.1f} s, before anything is fine-tuned"))
            return Decision.CONTINUE
        decision = study.report(number, result)
        if decision is Decision.PRUNE:
            return decision
        if deadline is not None and time.time() >= deadline and result.epoch < epochs:
            return Decision.STOP
        return decision

    return judge


def _crashed(spec: TrialSpec, study: Study, reason: str, seconds: float) -> TrialResult:
    """Close the dead process's MLflow run; an unavailable tracking server must not end the search."""
    try:
        run_id = close_dead_run(
            spec.store,
            parent_run_id=spec.parent_run_id,
            number=spec.number,
            status=run_status("failed"),
            reason=reason,
        )
    except TrackingError as error:
        emit(Note(str(error), "warning"))
        run_id = None
    epochs = study.reported_epochs(spec.number)
    return TrialResult.without_result(spec.number, reason=reason, epochs=epochs, seconds=seconds, run_id=run_id)
