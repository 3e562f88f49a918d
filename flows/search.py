"""The search: from a folder of images or a table of texts to a registered champion.

The command ``thawline search`` and :func:`thawline.run_search` run this flow; so can a deployment or a schedule. It
needs no manually started server: without ``PREFECT_API_URL``, Thawline starts one; if the flow is called directly,
Prefect starts one for its duration.
"""

from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

from prefect import flow

from thawline import environment
from thawline.activations import StoredSplits
from thawline.config import SearchConfig
from thawline.data import Manifest
from thawline.orchestration.approval import approved, check_answerable, publish_decision
from thawline.orchestration.artifacts import publish_leaderboard, publish_outcome
from thawline.orchestration.background import in_background
from thawline.orchestration.execution import trial_runner
from thawline.orchestration.reach import keeps_its_value
from thawline.orchestration.schedules import drop_missed_runs
from thawline.orchestration.server import leaving_at_once
from thawline.orchestration.tasks import task
from thawline.orchestration.trials import run_trials
from thawline.registry import PromotionOutcome, graphs_tried, settle
from thawline.search import (
    DescribedBackbone,
    Prepared,
    Recorder,
    SearchOutcome,
    Study,
    StudyRun,
    check_backbones,
    check_config,
    complete,
    conclude,
    describe_backbones,
    fetch_data,
    judge_best,
    judge_quantised,
    load_for_last_steps,
    prepare_inputs,
    prepare_workers,
    rank_backbones,
    read_data,
    run_step,
    store_activations,
    try_step,
    workers_dismissed,
)
from thawline.study_report import MadeReport, make_report

__all__ = ["search"]


@flow(name="search", validate_parameters=True, on_running=[drop_missed_runs])
@leaving_at_once
@keeps_its_value
def search(config: SearchConfig) -> SearchOutcome:
    """Search for the best freeze depth and learning rate, then register the best trial, and promote it if it is better.

    Args:
        config: the whole configuration; see :class:`thawline.config.SearchConfig`.

    Returns:
        The result: leaderboard, model version, decision, test metrics, and records that could not be kept.

    Raises:
        ThawlineError: for bad input, before anything expensive starts.
    """
    home = environment.home()
    check_answerable(config.promotion)
    check_config(config, home)
    prepare_workers()
    with (
        trial_runner(config) as runner,
        workers_dismissed(config.study.grace_seconds),
        # Loading MLflow takes seconds, in which other processes build the backbones and read the data.
        in_background(Recorder.connect, config, home) as connecting,
    ):
        prepared = prepare(config, home, connecting)
        recorder = connecting.result()
        study = open_study(prepared, home)
        prepared = prepared.with_backbones(study.config.backbones)
        with study.held(), recorder.study_run(prepared, study) as run:
            stored = activations_task(prepared, run)
            recorder.log_plan(stored)
            recorder.log_probe_curves(stored, study)
            onnx = "onnx" in graphs_tried(config.promotion.exports, prepared.manifest.kind)
            load = partial(load_for_last_steps, onnx=onnx, report=config.tracking.report)
            run_trials(prepared, stored, study, run, recorder, runner, load=load)
            prepared = describe_task(prepared)  # only now, since the first trials should not wait for it
            recorder.log_networks(prepared)
            recorder.log_plan_outcome(stored, study)
            recorder.log_leaderboard(study)
            publish_leaderboard(study)
            with study.alone("conclude"):
                judged = judge_task(prepared, run)
                publish_decision(judged)
                decided = approved(run.store, judged, prepared.config.promotion)
                outcome = with_copy(prepared, run, promote_task(prepared, run, decided))
                recorder.log_outcome(outcome, study)
                if config.tracking.report and (report := report_task(prepared, run, outcome)) is not None:
                    report.record(recorder.tracker)
                    outcome = replace(outcome, report=report.page)
                publish_outcome(outcome, recorder)
    return outcome.after_closing(recorder.report)


def prepare(config: SearchConfig, home: Path, connecting: Future[Recorder]) -> Prepared:
    """Check the backbones, read the data, and decode or tokenize them, in order of cost.

    Raises:
        TrackingError: if the tracking store cannot be reached, before anything is decoded.
    """
    depths = backbones_task(config)
    fetch_task(config)
    manifest = data_task(config)
    connecting.result()
    completed, fingerprint = complete(config, manifest)
    inputs = inputs_task(config, manifest, home)
    return Prepared(completed, completed, manifest, depths, inputs, fingerprint)


def open_study(prepared: Prepared, home: Path) -> Study:
    """Rank the backbones, and create or resume the study."""
    ranking = rank_task(prepared, home)
    return Study.open(home, prepared.study, prepared.config, prepared.depths, prepared.fingerprint, ranking)


def with_copy(prepared: Prepared, run: StudyRun, outcome: SearchOutcome) -> SearchOutcome:
    """Add the outcome of an int8 copy, if requested, which is judged and perhaps promoted like any version."""
    promotion = prepared.config.promotion
    judged = quantise_task(prepared, run, outcome.promotion) if "int8" in promotion.exports else None
    if judged is None:
        return outcome
    publish_decision(judged)
    return replace(outcome, quantised=settle_task(run, approved(run.store, judged, promotion)))


def study_of(prepared: Prepared, run: StudyRun) -> Study:
    """The study, opened by a task."""
    return Study.load(run.home, run.study, prepared.config)


@task("fetch data")
def fetch_task(config: SearchConfig) -> None:
    """Mirror data from object storage."""
    fetch_data(config)


@task("read data")
def data_task(config: SearchConfig) -> Manifest:
    """Scan the folder or table."""
    return read_data(config)


@task("check backbones")
def backbones_task(config: SearchConfig) -> dict[str, int]:
    """Build every backbone once."""
    return run_step(check_backbones, config, retries=config.study.retries, title="loading the backbones")


@task("prepare inputs")
def inputs_task(config: SearchConfig, manifest: Manifest, home: Path) -> dict[str, Path]:
    """Decode and resize every image, or tokenize every text, once."""
    return prepare_inputs(config, manifest, home)


@task("rank backbones")
def rank_task(prepared: Prepared, home: Path) -> dict[str, float]:
    """Probe each backbone on its frozen features, if there are several."""
    return rank_backbones(prepared, home)


@task("describe backbones")
def describe_task(prepared: Prepared) -> Prepared:
    """Compute the cost of each freeze depth."""
    config, classes = prepared.config, len(prepared.manifest.classes)
    title, retries = "describing the backbones", config.study.retries
    nothing: dict[str, DescribedBackbone] = {}
    described = try_step(describe_backbones, config, classes, retries=retries, title=title, otherwise=nothing)
    return replace(prepared, described=described)


@task("store activations")
def activations_task(prepared: Prepared, run: StudyRun) -> dict[str, StoredSplits]:
    """Profile, plan, and compute the frozen activations once."""
    return store_activations(prepared, study_of(prepared, run), run.home)


@task("register and judge")
def judge_task(prepared: Prepared, run: StudyRun) -> PromotionOutcome:
    """Package the best trial, and score it and the champion on the test split."""
    retries = prepared.config.study.retries
    return run_step(judge_best, prepared, run, retries=retries, title="packaging and judging the best trial")


@task("promote")
def promote_task(prepared: Prepared, run: StudyRun, decided: PromotionOutcome) -> SearchOutcome:
    """Move the champion's alias if the verdict is to promote."""
    return conclude(prepared, study_of(prepared, run), run, decided)


@task("quantise and judge")
def quantise_task(prepared: Prepared, run: StudyRun, promoted: PromotionOutcome) -> PromotionOutcome | None:
    """Quantise a new champion to int8, and score both on the test split."""
    title, retries = "quantising the champion", prepared.config.study.retries
    return run_step(judge_quantised, prepared, run, promoted, retries=retries, title=title)


@task("promote int8")
def settle_task(run: StudyRun, decided: PromotionOutcome) -> PromotionOutcome:
    """Move the champion's alias to the copy if the verdict is to promote."""
    return settle(run.store, decided)


@task("write report")
def report_task(prepared: Prepared, run: StudyRun, outcome: SearchOutcome) -> MadeReport | None:
    """Write the study's results as one page."""
    title, retries = "writing the report", prepared.config.study.retries
    return try_step(make_report, prepared, run, outcome, retries=retries, title=title, otherwise=None)
