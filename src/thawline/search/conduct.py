"""One trial as its driver sees it: started, judged after every epoch, told apart when its process dies."""

import time

from thawline.exceptions import TrackingError
from thawline.search.events import EpochEnded, Note, TrialEnded, TrialStarted, emit
from thawline.search.study import Asked, Study
from thawline.search.trial import TrialResult, TrialSpec
from thawline.search.worker import TrialCrashed, run_in_process
from thawline.tracking import close_dead_run, run_status
from thawline.training import Decision, EpochResult

__all__ = ["conduct", "next_trial"]


def next_trial(study: Study, waiting: list[Asked], started: int, budget: int, deadline: float | None) -> Asked | None:
    """The trial to start now: one that a dead process had begun, else a new one; ``None`` when the budget is spent.

    Args:
        study: the study.
        waiting: trials begun by a process that died; emptied from the front.
        started: trials of the study that ended or run now.
        budget: trials in all.
        deadline: in seconds of :func:`time.time`; no trial starts after it.
    """
    if deadline is not None and time.time() >= deadline:
        return None
    if waiting:
        return waiting.pop(0)
    return study.ask() if started < budget and not study.exhausted else None


def conduct(spec: TrialSpec, study: Study, deadline: float | None) -> TrialResult:
    """Run a trial in a process of its own, prune it when the study says so, and return how it ended.

    A process that dies is a failed trial, never a pruned one, and never the end of the search.
    """
    metric, epochs = spec.config.study.metric, spec.config.train.epochs

    def judge(result: EpochResult) -> Decision:
        value, loss = result.metrics[f"val/{metric}"], result.metrics["train/loss"]
        emit(EpochEnded(spec.number, result.epoch, epochs, metric, value, loss))
        if study.report(spec.number, result):
            return Decision.PRUNE
        if deadline is not None and time.time() >= deadline and result.epoch < epochs:
            return Decision.STOP
        return Decision.CONTINUE

    emit(TrialStarted(spec.number, spec.hyperparameters, resumed=study.reported_epochs(spec.number) > 0))
    began = time.perf_counter()
    try:
        result = run_in_process(spec, judge)
    except TrialCrashed as error:
        result = _crashed(spec, study, str(error), time.perf_counter() - began)
    emit(TrialEnded(result))
    return result


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
