"""The trials of a search as Prefect tasks: ask, submit, tell, until the budget is spent."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner

from thawline.activations import StoredSplits
from thawline.config import ExecutionConfig
from thawline.orchestration.artifacts import Progress
from thawline.orchestration.execution import placement
from thawline.search import (
    Asked,
    Prepared,
    Queue,
    Recorder,
    Slots,
    Study,
    StudyRun,
    TrialResult,
    TrialSpec,
    announce_end,
    announce_start,
    trial_name,
    trial_spec,
)
from thawline.search.conduct import conduct

__all__ = ["run_trials"]


class _Trials:
    """Starts the trial tasks of one search, and waits for them."""

    def __init__(
        self,
        prepared: Prepared,
        stored: Mapping[str, StoredSplits],
        study: Study,
        run: StudyRun,
        runner: TaskRunner[Any],
    ) -> None:
        self._prepared, self._stored, self._study, self._run, self._runner = prepared, stored, study, run, runner
        self.deadline = study.deadline()
        self.running: dict[PrefectFuture[Any], list[TrialSpec]] = {}

    def start(self, together: Iterable[Asked], device: str) -> None:
        """Submit a trial, or several heads together."""
        specs = [
            trial_spec(
                self._prepared,
                self._stored[asked.hyperparameters.backbone],
                self._run,
                number=asked.number,
                hyperparameters=asked.hyperparameters,
                device=device,
                seconds_before=asked.seconds,
            )
            for asked in together
        ]
        self.running[_submit(self._runner, specs, self._prepared.config.execution, self.deadline)] = specs
        announce_start(specs, self._study)

    def wait(self) -> tuple[list[TrialSpec], list[TrialResult]]:
        """Wait for the first to end; return its trials and their results."""
        future = next(iter(as_completed(list(self.running))))
        specs = self.running.pop(future)
        return specs, _outcomes(future, [spec.number for spec in specs])


def run_trials(
    prepared: Prepared,
    stored: Mapping[str, StoredSplits],
    study: Study,
    run: StudyRun,
    recorder: Recorder,
    runner: TaskRunner[Any],
    *,
    load: Callable[[], None],
) -> None:
    """Ask, submit, tell, until the budget is spent, with one trial per slot at a time.

    Args:
        load: loads what the steps after the trials need, while trials run. Called when the first trial has been
            fine-tuned, with which it would compete for the CPU; at once, if no other trial follows.
    """
    trials = _Trials(prepared, stored, study, run, runner)
    queue, slots = Queue.of(study, trials.deadline), Slots(prepared.config)
    recorder.announce(study)
    progress = Progress(study, prepared.config.study)
    most = prepared.config.study.most_trials
    loaded = most is not None and most <= len(prepared.config.backbones) + 1
    if loaded:
        load()
    while True:
        while len(trials.running) < slots.count and (together := queue.next()):
            trials.start(together, slots.take())
        if not trials.running:
            if queue.wait_for_others():
                continue
            study.end_paused(out_of_time=queue.over)
            return
        specs, results = trials.wait()
        slots.give_back(specs[0].config.train.device)
        for result in results:
            study.tell(result)
            announce_end(result)
        if not loaded and not specs[0].hyperparameters.is_probe:
            load()
            loaded = True
        recorder.update_leaderboard(study)
        progress.update(study)


@task(name="trial", cache_policy=NO_CACHE)
def trial_task(specs: list[TrialSpec], deadline: float | None) -> State[list[TrialResult]]:
    """Train one trial, or several heads together, in another process; the name of the task's state is the outcome."""
    first = specs[0]
    results = conduct(specs, Study.load(first.home, first.study, first.config), deadline)
    reasons = "; ".join(result.reason for result in results if result.reason) or None
    if all(result.state == "failed" for result in results):
        return Failed(message=reasons, data=results)
    state = results[0].state if len(results) == 1 else "complete"
    return Completed(name=state.capitalize(), message=reasons, data=results)


def _submit(
    runner: TaskRunner[Any], specs: list[TrialSpec], config: ExecutionConfig, deadline: float | None
) -> PrefectFuture[Any]:
    named = trial_task.with_options(task_run_name=_task_name(specs))
    with placement(config):
        future: PrefectFuture[Any] = runner.submit(named, {"specs": specs, "deadline": deadline})
    return future


def _task_name(specs: list[TrialSpec]) -> str:
    """``trial-07 depth=3 lr=1.2e-3``, or ``trials 04, 05, 07: heads together``."""
    if len(specs) == 1:
        return trial_name(specs[0].number, specs[0].hyperparameters)
    return f"trials {', '.join(f'{spec.number:02d}' for spec in specs)}: heads together"


def _outcomes(future: PrefectFuture[Any], numbers: list[int]) -> list[TrialResult]:
    """The value of a trial's task; if the task itself failed (cancelled, timed out), the trials count as failed."""
    value = future.result(raise_on_failure=False)
    if isinstance(value, list):
        return value
    return [TrialResult.without_result(number, reason=f"{future.state.name}: {value}") for number in numbers]
