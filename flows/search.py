"""The search: a folder of images or a table of texts in, a registered champion out.

The command ``thawline search`` and :func:`thawline.run_search` run this very flow; so can a deployment or a schedule.
It needs no server started by hand: without ``PREFECT_API_URL`` Prefect starts one for as long as the flow runs.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import State, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner

from thawline import environment
from thawline.activations import StoredSplits
from thawline.config import SearchConfig
from thawline.data import Manifest
from thawline.orchestration.approval import approved, publish_decision
from thawline.orchestration.artifacts import Progress, publish_leaderboard, publish_outcome
from thawline.orchestration.execution import placement, trial_runner
from thawline.orchestration.schedules import drop_missed_runs
from thawline.registry import PromotionOutcome
from thawline.search import (
    Prepared,
    Queue,
    SearchOutcome,
    Slots,
    Study,
    TrialResult,
    TrialSpec,
    announce_end,
    announce_start,
    check_backbones,
    check_config,
    complete,
    conclude,
    conduct,
    fetch_data,
    judge_best,
    prepare_inputs,
    prepare_workers,
    rank_backbones,
    read_data,
    stop_workers,
    store_activations,
    trial_name,
)
from thawline.search.recorder import Recorder
from thawline.study_report import publish_report

__all__ = ["search"]


@flow(name="search", validate_parameters=True, on_running=[drop_missed_runs])
def search(config: SearchConfig) -> SearchOutcome:
    """Search for the best freeze depth and learning rate, then register and perhaps promote the best trial.

    Args:
        config: everything; see :class:`thawline.config.SearchConfig`.

    Returns:
        What came of it: leaderboard, model version, decision, test metrics, and what could not be kept.

    Raises:
        ThawlineError: for bad input, before anything expensive starts.
    """
    home = environment.home()
    check_config(config, home)
    prepare_workers()
    recorder = Recorder.connect(config, home)
    with trial_runner(config.execution) as runner:
        prepared = prepare(config, home)
        study = open_study(prepared, home)
        prepared = prepared.with_backbones(study.config.backbones)
        with study.held(), recorder.study_run(prepared, study):
            stored = activations_task(prepared, study, home)
            recorder.log_plan(stored)
            recorder.log_probe_curves(stored, study)
            run_trials(prepared, stored, study, recorder, home, runner)
            recorder.log_plan_outcome(stored, study)
            recorder.log_leaderboard(study)
            publish_leaderboard(study)
            with study.alone("conclude"):
                judged = judge_task(prepared, study, recorder, home)
                publish_decision(judged)
                decided = approved(recorder.store, judged, prepared.config.promotion)
                outcome = promote_task(prepared, study, recorder, decided)
                if config.tracking.report:
                    outcome = replace(outcome, report=report_task(prepared, study, recorder, outcome))
                publish_outcome(outcome, recorder)
    stop_workers()
    return outcome.after_closing(recorder.report)


def prepare(config: SearchConfig, home: Path) -> Prepared:
    """Try the backbones, read the data, decode or tokenize it: the cheapest first."""
    depths = backbones_task(config)
    fetch_task(config)
    manifest = data_task(config)
    completed, fingerprint = complete(config, manifest)
    inputs = inputs_task(config, manifest, home)
    return Prepared(completed, completed, manifest, depths, inputs, fingerprint)


def open_study(prepared: Prepared, home: Path) -> Study:
    """Rank the backbones, and create the study or go on with it."""
    ranking = rank_task(prepared, home)
    return Study.open(home, prepared.study, prepared.config, prepared.depths, prepared.fingerprint, ranking)


def run_trials(
    prepared: Prepared,
    stored: dict[str, StoredSplits],
    study: Study,
    recorder: Recorder,
    home: Path,
    runner: TaskRunner[Any],
) -> None:
    """Ask, submit, tell, until the budget is spent; a trial for each slot at a time."""
    deadline = study.deadline()
    queue = Queue.of(study, prepared.config, prepared.depths, deadline)
    slots = Slots(prepared.config)
    running: dict[PrefectFuture[Any], list[TrialSpec]] = {}
    recorder.announce(study, study.finished())
    progress = Progress(study, prepared.config.study.trials)
    while True:
        while len(running) < slots.count and (together := queue.next()):
            device = slots.take()
            specs = [recorder.spec(prepared, stored, asked, home, device) for asked in together]
            running[submit(runner, specs, prepared, deadline)] = specs
            announce_start(specs, study)
        if not running:
            if queue.wait_for_others():
                continue
            return
        future = first_done(running, prepared.config.study.grace_seconds)
        specs = running.pop(future)
        slots.give_back(specs[0].config.train.device)
        for result in trial_outcomes(future, [spec.number for spec in specs]):
            study.tell(result)
            announce_end(result)
        recorder.update_leaderboard(study)
        progress.update(study)


def submit(
    runner: TaskRunner[Any], specs: list[TrialSpec], prepared: Prepared, deadline: float | None
) -> PrefectFuture[Any]:
    """Start a trial, or several heads together."""
    task = trial_task.with_options(task_run_name=task_name(specs))
    with placement(prepared.config.execution):
        future: PrefectFuture[Any] = runner.submit(
            task, {"specs": specs, "depths": prepared.depths, "deadline": deadline}
        )
    return future


def task_name(specs: list[TrialSpec]) -> str:
    """``trial-07 depth=3 lr=1.2e-3``, or ``trials 04, 05, 07: heads together``."""
    if len(specs) == 1:
        return trial_name(specs[0].number, specs[0].hyperparameters)
    return f"trials {', '.join(f'{spec.number:02d}' for spec in specs)}: heads together"


def first_done(running: Iterable[PrefectFuture[Any]], grace_seconds: float) -> PrefectFuture[Any]:
    """Wait for one of the trials; an interrupted wait asks them all to leave, with a checkpoint where they stand."""
    try:
        return next(iter(as_completed(list(running))))
    except BaseException:
        stop_workers(grace_seconds)
        raise


@task(name="fetch data", cache_policy=NO_CACHE)
def fetch_task(config: SearchConfig) -> None:
    """Mirror what is on object storage."""
    fetch_data(config)


@task(name="read data", cache_policy=NO_CACHE)
def data_task(config: SearchConfig) -> Manifest:
    """Scan the folder or table."""
    return read_data(config)


@task(name="check backbones", cache_policy=NO_CACHE)
def backbones_task(config: SearchConfig) -> dict[str, int]:
    """Build every backbone once."""
    return check_backbones(config)


@task(name="prepare inputs", cache_policy=NO_CACHE)
def inputs_task(config: SearchConfig, manifest: Manifest, home: Path) -> dict[str, Path]:
    """Decode and resize every image, or tokenize every text, once."""
    return prepare_inputs(config, manifest, home)


@task(name="rank backbones", cache_policy=NO_CACHE)
def rank_task(prepared: Prepared, home: Path) -> dict[str, float]:
    """Probe each of several backbones on its frozen features."""
    return rank_backbones(prepared, home)


@task(name="store activations", cache_policy=NO_CACHE)
def activations_task(prepared: Prepared, study: Study, home: Path) -> dict[str, StoredSplits]:
    """Measure, plan, and compute the frozen layers once."""
    return store_activations(prepared, study, home)


@task(name="trial", cache_policy=NO_CACHE)
def trial_task(specs: list[TrialSpec], depths: dict[str, int], deadline: float | None) -> State[list[TrialResult]]:
    """Train one trial, or several heads together, in another process; how it ended is the state's name."""
    first = specs[0]
    results = conduct(specs, Study.load(first.home, first.study, first.config, depths), deadline)
    reasons = "; ".join(result.reason for result in results if result.reason) or None
    if all(result.state == "failed" for result in results):
        return Failed(message=reasons, data=results)
    state = results[0].state if len(results) == 1 else "complete"
    return Completed(name=state.capitalize(), message=reasons, data=results)


def trial_outcomes(future: PrefectFuture[Any], numbers: list[int]) -> list[TrialResult]:
    """The value of a trial's task; a task that itself broke (cancelled, timed out) is a failed trial."""
    value = future.result(raise_on_failure=False)
    if isinstance(value, list):
        return value
    return [TrialResult.without_result(number, reason=f"{future.state.name}: {value}") for number in numbers]


@task(name="register and judge", cache_policy=NO_CACHE)
def judge_task(prepared: Prepared, study: Study, recorder: Recorder, home: Path) -> PromotionOutcome:
    """Package the best trial, and score it and the champion on the test split."""
    return judge_best(prepared, study, recorder, home)


@task(name="promote", cache_policy=NO_CACHE)
def promote_task(prepared: Prepared, study: Study, recorder: Recorder, decided: PromotionOutcome) -> SearchOutcome:
    """Move the champion's alias if the verdict says so."""
    return conclude(prepared, study, recorder, decided)


@task(name="write report", cache_policy=NO_CACHE)
def report_task(prepared: Prepared, study: Study, recorder: Recorder, outcome: SearchOutcome) -> Path | None:
    """Gather what the study shows on one page, and record its figures."""
    return publish_report(prepared, study, recorder, outcome)
