"""The study's own record: its MLflow parent run with provenance and leaderboard."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from thawline import backbones
from thawline.activations import StoredSplits
from thawline.config import SearchConfig, flatten, without_password
from thawline.data import report_json
from thawline.exceptions import StudyError
from thawline.search.events import Note, SearchStarted, emit
from thawline.search.leaderboard import leaderboard_markdown, leaderboard_rows, thaw_line_chart
from thawline.search.observation_log import texts_to_show
from thawline.search.prepare import Prepared
from thawline.search.probing import ProbeFile
from thawline.search.space import planned_depths
from thawline.search.spec import StudyRun
from thawline.search.storage import storage_url
from thawline.search.study import Study
from thawline.search.winner import SearchOutcome
from thawline.tracking import (
    CompositeTracker,
    MlflowStore,
    MlflowTracker,
    Provenance,
    RunStatus,
    TrackerRun,
    TrackingReport,
    connect,
    has_run,
    library_versions,
    open_trackers,
    replay_unsent,
    resolve_uri,
    start_study_run,
)

__all__ = ["REPORT", "Recorder", "check_store"]

REPORT = "report/report.html"
"""The report among the artifacts of the study's run."""

_log = logging.getLogger(__name__)
_LEADERBOARD_SECONDS = 5.0
_NOTED_TRIALS = 25
"""Trials in the note: MLflow truncates it at 8,000 characters."""


class Recorder:
    """Records one study in MLflow; its trials record themselves as child runs."""

    def __init__(self, store: MlflowStore, config: SearchConfig) -> None:
        self.store = store
        self._config = config
        self._adopt = os.environ.get("MLFLOW_RUN_ID")
        self._mlflow: MlflowTracker | None = None
        self._tracker: CompositeTracker | None = None
        self._leaderboard_written = -_LEADERBOARD_SECONDS
        self.provenance = Provenance.collect(Path.cwd(), _command(), diff=config.tracking.git_diff)
        """Code and environment, recorded with every run of the study."""
        self.report = TrackingReport()
        """Delivery of the study's own records; known once the run is closed."""

    @classmethod
    def connect(cls, config: SearchConfig, home: Path) -> "Recorder":
        """Open the tracking store, and send the records that an earlier search could not send.

        Raises:
            TrackingError: if the store cannot be reached now.
        """
        store = connect(
            resolve_uri(config.tracking, home),
            home=home,
            experiment=config.tracking.experiment,
            artifacts=config.tracking.artifacts,
            adopt_run_id=os.environ.get("MLFLOW_RUN_ID"),
        )
        if replayed := replay_unsent(store):
            emit(Note(f"sent {replayed} records that an earlier search could not send"))
        return cls(store, config)

    @property
    def tracker(self) -> CompositeTracker:
        """Trackers of the study's own run, inside :meth:`study_run`."""
        assert self._tracker is not None, "only inside study_run()"  # noqa: S101  a mistake of ours
        return self._tracker

    @property
    def mlflow(self) -> MlflowTracker:
        """Only MLflow's tracker, for records that are rewritten repeatedly."""
        assert self._mlflow is not None, "only inside study_run()"  # noqa: S101  a mistake of ours
        return self._mlflow

    @property
    def run_id(self) -> str:
        """Id of MLflow's parent run."""
        run_id = self.mlflow.run_id
        assert run_id is not None  # noqa: S101  start_study_run made it
        return run_id

    @contextmanager
    def study_run(self, prepared: Prepared, study: Study) -> Iterator[StudyRun]:
        """Open a parent run for the block; its status reflects how the block ended.

        Raises:
            StudyError: if the study was recorded in another store: its runs are not in this one.
            TrackingError: if the store fails.
        """
        check_store(self.store, study)
        shows_texts = prepared.manifest.kind == "texts" and prepared.config.tracking.observe
        texts = texts_to_show(prepared.manifest, prepared.config.study.seed) if shows_texts else ()
        with study.alone("run"):
            run_id = start_study_run(
                self.store,
                study=study.name,
                params=_params(prepared.recipe),
                tags=_tags(prepared),
                adopt_run_id=self._adopt,
            )
            study.keep_recorded_in(self.store.name, run_id)
        run = TrackerRun(
            home=self.store.home,
            study=study.name,
            trial=None,
            run_name=study.name,
            study_run_id=run_id,
            metric=prepared.config.study.metric,
        )
        self._mlflow, self._tracker = open_trackers(run, prepared.config.tracking, self.store)
        self._log_provenance(prepared)
        status: RunStatus = "KILLED"  # Ctrl-C, SIGTERM, Prefect's cancellation: none of them is an Exception
        try:
            yield StudyRun(study.name, self.store, run_id, self.provenance, texts)
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            self.report = self.tracker.close(status)

    def announce(self, study: Study) -> None:
        """Announce that the trials start or resume."""
        config = self._config
        begun = sorted(record.number for record in study.records() if not record.ended)
        epochs = [(number, 1 + study.reported_epochs(number)) for number in begun]
        deadline = study.deadline()
        emit(
            SearchStarted(
                study.name,
                config.study.most_trials,
                study.finished(),
                config.train.epochs,
                config.study.metric,
                tuple((number, epoch) for number, epoch in epochs if epoch > 1),
                seconds=None if deadline is None else max(0.0, deadline - time.time()),
            )
        )

    def log_plan(self, stored: Mapping[str, StoredSplits]) -> None:
        """Record which activations are stored and the expected cost of the search, before its first trial."""
        plans = {name: splits.plan for name, splits in stored.items() if splits.plan is not None}
        for name, plan in plans.items():
            content = yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False)
            self.tracker.log_text(content, f"plan-{backbones.short_name(name)}.yaml")
        if plans:
            seconds = sum(plan.search_seconds() for plan in plans.values())
            self.tracker.log_metrics({"plan/search_seconds": seconds}, step=0)

    def log_probe_curves(self, stored: Mapping[str, StoredSplits], study: Study) -> None:
        """Record the quality of the features after each stored layer group, with the freeze depth as the step."""
        metric = self._config.study.metric
        for name in stored:
            probes = ProbeFile.read(ProbeFile.path(self.store.home, study.name, name))
            of = f"{backbones.short_name(name)}/" if len(stored) > 1 else ""
            for depth, value in probes.curve.items() if probes is not None else ():
                self.tracker.log_metrics({f"probe/{of}{metric}": value}, step=depth)

    def log_plan_outcome(self, stored: Mapping[str, StoredSplits], study: Study) -> None:
        """Record the time of the trials compared with the plan for the epochs that they trained."""
        planned = taken = 0.0
        for record in study.records():
            splits = stored.get(record.hyperparameters.backbone)
            if record.result is None or record.state == "failed" or splits is None or splits.plan is None:
                continue
            deepest = len(splits.plan.profile.groups)
            depths = planned_depths(record.hyperparameters, study.config, deepest, record.result.epochs)
            planned += splits.plan.trial_seconds(depths)
            taken += record.result.seconds
        if taken:
            self.tracker.log_metrics(
                {"plan/trial_seconds": planned, "plan/trial_seconds_taken": taken}, step=study.finished()
            )
            _log.debug("plan: %.0f s for the epochs that were trained; they took %.0f s", planned, taken)

    def update_leaderboard(self, study: Study) -> None:
        """Write the leaderboard after a trial, unless it was just written: it grows with the study."""
        if time.monotonic() - self._leaderboard_written >= _LEADERBOARD_SECONDS:
            self.log_leaderboard(study)

    def log_leaderboard(self, study: Study, end: Sequence[str] = ()) -> None:
        """Write the leaderboard into the parent run's note and as a table.

        ``end`` describes in sentences how the search ended, once it has.
        """
        self._leaderboard_written = time.monotonic()
        records = study.records()
        metric = self._config.study.metric
        chart = thaw_line_chart(records, metric)
        parts = [
            f"## Study {study.name}",
            *end,
            *([f"```\n{chart}\n```"] if chart else []),
            leaderboard_markdown(records, metric, most=_NOTED_TRIALS),
            self._how_to_look(study, concluded=bool(end)),
        ]
        self.mlflow.log_tags({"mlflow.note.content": "\n\n".join(parts)})
        self.mlflow.log_text(_csv(leaderboard_rows(records)), "leaderboard.csv")
        best = study.best()
        if best is not None and best.value is not None:
            self.tracker.log_metrics({f"best/{metric}": best.value}, step=study.finished())

    def log_networks(self, prepared: Prepared) -> None:
        """Record a table of each backbone's layers."""
        for name, described in prepared.described.items():
            self.tracker.log_text(described.summary, f"summary-{backbones.short_name(name)}.txt")

    def log_outcome(self, outcome: SearchOutcome, study: Study) -> None:
        """Record the outcome of the search on the parent run."""
        promotion = outcome.promotion
        values = {f"test/{name}": value for name, value in promotion.challenger.metrics.items()}
        if promotion.majority is not None:
            values["baseline/majority_class_test_accuracy"] = promotion.majority.metrics["accuracy"]
        if promotion.baselines is not None:
            values["baseline/majority_class"] = promotion.baselines.majority_class
            if promotion.baselines.linear_probe is not None:
                values["baseline/probe"] = promotion.baselines.linear_probe
        self.tracker.log_metrics(values, step=study.finished())
        self.tracker.log_tags(
            {
                "thawline.model": f"{promotion.name}/{promotion.version}",
                "thawline.verdict": promotion.verdict.outcome.value,
                "thawline.reason": promotion.verdict.reason,
                "thawline.best_trial": str(outcome.best_trial),
            }
        )
        self.tracker.log_text(json.dumps(outcome.as_dict(), indent=2), "outcome.json")
        self.log_leaderboard(study, outcome.lines())

    def where_to_look(self) -> str:
        """Links to the study and its report in MLflow, as markdown, or else the command that opens the UI."""
        run = self.store.address(f"/runs/{self.run_id}")
        if run is None or self.store.is_database:
            return f"`thawline ui` starts MLflow; the study's run is {self.run_id}, the report its artifact {REPORT}."
        report = self.store.address(f"/runs/{self.run_id}/artifacts/{REPORT}")
        return f"[The study in MLflow]({run}) · [its report]({report})"

    def _how_to_look(self, study: Study, *, concluded: bool) -> str:
        """Links for the note, within MLflow only."""
        best = study.best()
        links = [f"[All runs]({self.store.page('/runs')})"]
        if best is not None and best.result is not None and best.result.run_id is not None:
            links.append(f"[best trial: {best.number}]({self.store.page(f'/runs/{best.result.run_id}')})")
        if self._config.tracking.report:
            report = self.store.page(f"/runs/{self.run_id}/artifacts/{REPORT}")
            links.append(f"[report]({report}){'' if concluded else ', once the study is concluded'}")
        return (
            f"{' · '.join(links)}\n\nSelect the child runs and press *Compare* for parallel coordinates over "
            f"freeze_depth and learning_rate. In the terminal: `thawline leaderboard {study.name}`."
        )

    def _log_provenance(self, prepared: Prepared) -> None:
        """Record what is needed to reproduce the search: configuration, data, versions, command, model."""
        tracker, manifest, config = self.tracker, prepared.manifest, prepared.recipe.without_passwords()
        tracker.log_params(_params(prepared.recipe))
        tracker.log_tags(_tags(prepared))
        self.provenance.record(tracker)
        tracker.log_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), "config.yaml")
        tracker.log_text(yaml.safe_dump(library_versions(), sort_keys=False), "environment.yaml")
        tracker.log_text(yaml.safe_dump(report_json(manifest), sort_keys=False, allow_unicode=True), "data.yaml")
        counts = {split: len(manifest.of(split)) for split in ("train", "validation", "test")}
        for context in counts:
            self.mlflow.log_dataset(
                name=manifest.name,
                digest=manifest.digest,
                source=manifest.root,
                profile=counts,
                context=context,
            )


def _params(config: SearchConfig) -> dict[str, str]:
    """The settings that differ from the defaults, and the actual storage of the study.

    All settings are in the artifact ``config.yaml``; a hundred parameters would hide the few explicitly set ones.
    """
    storage = storage_url(config.study.storage)
    named = {"study.storage": without_password(storage)} if storage else {}
    chosen = flatten(config.without_passwords(), only_chosen=True)
    return {"backbone.name": config.backbone.name, "study.seed": str(config.study.seed)} | chosen | named


def _command() -> list[str]:
    """The command line: the program's name if it is Thawline's own, else as it was started."""
    program = Path(sys.argv[0])
    ours = program.stem == "thawline" or program.parts[-2:] == ("thawline", "__main__.py")
    return ["thawline", *sys.argv[1:]] if ours else sys.orig_argv


def check_store(store: MlflowStore, study: Study) -> None:
    """Refuse to resume a study whose runs are in another store: packaging needs them.

    Raises:
        StudyError: with the store that has them, if known.
        TrackingError: if the store fails.
    """
    begun = study.recorded_in
    best = study.best()
    needed = [begun[1] if begun else None, best.result.run_id if best and best.result else None]
    if all(run_id is None or has_run(store, run_id) for run_id in needed):
        return
    if begun is not None and begun[0] != store.name:
        raise StudyError(
            f"The study {study.name!r} is recorded in {begun[0]}, and its runs are not in {store.name}. Resume it with "
            f"--tracking-uri {begun[0]}, or give this one another --study name."
        )
    raise StudyError(
        f"The runs of the study {study.name!r} are no longer in {store.name}. Resume it with the --tracking-uri "
        "that it was started with, or give this one another --study name."
    )


def _tags(prepared: Prepared) -> dict[str, str]:
    return {
        "thawline.fingerprint": prepared.fingerprint,
        "thawline.data_digest": prepared.manifest.digest,
        "thawline.bad_files": str(len(prepared.manifest.bad)),
    }


def _csv(rows: list[dict[str, object]]) -> str:
    import csv
    import io

    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
