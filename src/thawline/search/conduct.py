"""Trials as their driver sees them: drawn, put together, judged after every epoch, told apart when a process dies."""

import time
from collections.abc import Callable, Sequence

from thawline.exceptions import TrackingError
from thawline.search.events import EpochEnded, Note, TrialEnded, TrialStarted, emit
from thawline.search.study import Asked, Study
from thawline.search.trial import TrialResult, TrialSpec, run_together
from thawline.search.worker import WorkerCrashed, call_in_worker
from thawline.tracking import close_dead_run, run_status
from thawline.training import Decision, EpochResult

__all__ = ["Queue", "conduct"]


class Queue:
    """The trials of a study in the order in which they run.

    They are drawn a few at a time. The cheapest run first, so that the first good model is there in seconds and a dear
    trial is measured against others; those that train the head alone are trained together.
    """

    def __init__(
        self, study: Study, *, trials: int, batch: int, depths: dict[str, int], deadline: float | None
    ) -> None:
        """Go on with a study.

        Args:
            study: the study; trials that a dead process had begun come first.
            trials: how many it may have in all.
            batch: how many are drawn at once.
            depths: number of layer groups of each backbone.
            deadline: in seconds of :func:`time.time`; no trial starts after it.
        """
        self._study, self._depths, self._deadline = study, depths, deadline
        self._batch = batch if study.draws_ahead else 1
        self._waiting = study.unfinished()
        self._left = trials - study.finished() - len(self._waiting)

    def next(self) -> list[Asked]:
        """The trials to start now: one, or several heads; none when the budget or the time is spent."""
        if self._deadline is not None and time.time() >= self._deadline:
            return []
        if not self._waiting:
            self._draw()
        if not self._waiting:
            return []
        first = self._waiting[0]
        together = [asked for asked in self._waiting if self._is_with(asked, first)] or [first]
        self._waiting = [asked for asked in self._waiting if asked not in together]
        return together

    def _draw(self) -> None:
        for _ in range(min(self._batch, self._left)):
            if self._study.exhausted:
                break
            self._waiting.append(self._study.ask())
            self._left -= 1
        self._waiting.sort(key=lambda asked: (-self._frozen(asked), asked.number))

    def _frozen(self, asked: Asked) -> float:
        """Share of the layer groups that are frozen: what is cheap."""
        return asked.hyperparameters.freeze_depth / self._depths[asked.hyperparameters.backbone]

    def _is_with(self, asked: Asked, first: Asked) -> bool:
        """Whether two trials can be trained as one computation."""
        one, other = asked.hyperparameters, first.hyperparameters
        same = (one.backbone, one.optimizer) == (other.backbone, other.optimizer)
        heads = self._frozen(asked) == self._frozen(first) == 1
        return heads and same and not asked.resumed and not first.resumed


def conduct(specs: Sequence[TrialSpec], study: Study, deadline: float | None) -> list[TrialResult]:
    """Run a trial, or several heads, in another process; prune when the study says so; return how they ended.

    A process that dies is a failed trial, never a pruned one, and never the end of the search.
    """
    for spec in specs:
        emit(TrialStarted(spec.number, spec.hyperparameters, resumed=study.reported_epochs(spec.number) > 0))
    began = time.perf_counter()
    try:
        results = call_in_worker(_run, specs, on_message=_judge(specs[0], study, deadline))
    except WorkerCrashed as error:
        seconds = (time.perf_counter() - began) / len(specs)
        results = [_crashed(spec, study, str(error), seconds) for spec in specs]
    for result in results:
        emit(TrialEnded(result))
    return list(results)


def _run(specs: Sequence[TrialSpec], send: Callable[[tuple[int, EpochResult]], Decision]) -> tuple[TrialResult, ...]:
    """In the worker."""
    return run_together(specs, lambda number, result: send((number, result)))


def _judge(spec: TrialSpec, study: Study, deadline: float | None) -> Callable[[tuple[int, EpochResult]], Decision]:
    metric, epochs = spec.config.study.metric, spec.config.train.epochs

    def judge(message: tuple[int, EpochResult]) -> Decision:
        number, result = message
        value, loss = result.metrics[f"val/{metric}"], result.metrics["train/loss"]
        emit(EpochEnded(number, result.epoch, epochs, metric, value, loss))
        if study.report(number, result):
            return Decision.PRUNE
        if deadline is not None and time.time() >= deadline and result.epoch < epochs:
            return Decision.STOP
        return Decision.CONTINUE

    return judge


def _crashed(spec: TrialSpec, study: Study, reason: str, seconds: float) -> TrialResult:
    """Close the dead process's MLflow run for it; a tracking server that is down must not take the search along."""
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
