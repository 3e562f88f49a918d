"""The study's own record: its MLflow parent run, what it was made of, and its leaderboard."""

import os
import re
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
from thawline.search.events import Note, SearchStarted, emit
from thawline.search.leaderboard import leaderboard_markdown, leaderboard_rows, thaw_line_chart
from thawline.search.observed import ShownText, texts_to_show
from thawline.search.prepare import Prepared
from thawline.search.probing import ProbeFile
from thawline.search.slots import threads_per_trial
from thawline.search.storage import storage_url
from thawline.search.study import Asked, Study
from thawline.search.trial import TrialSpec
from thawline.tracking import (
    CompositeTracker,
    MlflowStore,
    MlflowTracker,
    Provenance,
    RunStatus,
    TrackerRun,
    TrackingReport,
    connect,
    library_versions,
    open_trackers,
    replay_unsent,
    resolve_uri,
    start_study_run,
)
from thawline.training import Thawing

__all__ = ["REPORT", "Recorder"]

REPORT = "report/report.html"
"""The report among the artifacts of the study's run."""

_LEADERBOARD_SECONDS = 5.0
_NOTED_TRIALS = 25
"""Trials in the note: MLflow cuts it at 8,000 characters."""


class Recorder:
    """Records one study in MLflow; the trials record themselves as child runs of it."""

    def __init__(self, store: MlflowStore, config: SearchConfig) -> None:
        self.store = store
        self._config = config
        self._adopt = os.environ.get("MLFLOW_RUN_ID")
        self._mlflow: MlflowTracker | None = None
        self._tracker: CompositeTracker | None = None
        self._leaderboard_written = -_LEADERBOARD_SECONDS
        self.provenance = Provenance.collect(Path.cwd(), _command(), diff=config.tracking.git_diff)
        """What runs here; every run of the study says it."""
        self.costs: dict[str, tuple[backbones.DepthCost, ...]] = {}
        """What every freeze depth of each backbone costs; known inside :meth:`study_run`."""
        self._texts: tuple[ShownText, ...] = ()
        self.report = TrackingReport()
        """What became of the study's own records; known when the run is closed."""

    @classmethod
    def connect(cls, config: SearchConfig, home: Path) -> "Recorder":
        """Open the tracking store, and send what an earlier search could not.

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
        """MLflow's alone of these, for what only it is to have: what is written again and again."""
        assert self._mlflow is not None, "only inside study_run()"  # noqa: S101  a mistake of ours
        return self._mlflow

    @property
    def run_id(self) -> str:
        """Id of MLflow's parent run."""
        run_id = self.mlflow.run_id
        assert run_id is not None  # noqa: S101  start_study_run made it
        return run_id

    @contextmanager
    def study_run(self, prepared: Prepared, study: Study) -> Iterator[None]:
        """Have a parent run for the time of the block; its status tells how the block was left."""
        if prepared.manifest.kind == "texts" and prepared.config.tracking.observe:
            self._texts = texts_to_show(prepared.manifest, prepared.config.study.seed)
        with study.alone("run"):
            run_id = start_study_run(
                self.store,
                study=study.name,
                params=_params(prepared.recipe),
                tags=_tags(prepared),
                adopt_run_id=self._adopt,
            )
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
            yield
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            self.report = self.tracker.close(status)

    def announce(self, study: Study, finished: int) -> None:
        """Say that the trials begin."""
        config = self._config
        emit(SearchStarted(study.name, config.study.trials, finished, config.train.epochs, config.study.metric))

    def spec(
        self, prepared: Prepared, stored: Mapping[str, StoredSplits], asked: Asked, home: Path, device: str
    ) -> TrialSpec:
        """Everything that a trial's process must know."""
        activations = stored[asked.hyperparameters.backbone]
        train = activations.train_config(prepared.config.train).model_copy(update={"device": device})
        return TrialSpec(
            number=asked.number,
            hyperparameters=asked.hyperparameters,
            # A trial on another machine does not see this one's variables.
            config=prepared.config.model_copy(
                update={
                    "train": train,
                    "study": prepared.config.study.model_copy(
                        update={"storage": storage_url(prepared.config.study.storage)}
                    ),
                }
            ),
            study=prepared.study,
            classes=prepared.manifest.classes,
            activations=activations,
            home=home,
            store=self.store,
            parent_run_id=self.run_id,
            threads=threads_per_trial(prepared.config),
            dataset=(prepared.manifest.name, prepared.manifest.digest),
            provenance=self.provenance,
            texts=self._texts,
        )

    def log_plan(self, stored: Mapping[str, StoredSplits]) -> None:
        """What is stored and what the search should cost, before its first trial."""
        plans = {name: splits.plan for name, splits in stored.items() if splits.plan is not None}
        for name, plan in plans.items():
            content = yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False)
            self.tracker.log_text(content, f"plan-{backbones.short_name(name)}.yaml")
        if plans:
            seconds = sum(plan.search_seconds() for plan in plans.values())
            self.tracker.log_metrics({"plan/search_seconds": seconds}, step=0)

    def log_probe_curves(self, stored: Mapping[str, StoredSplits], study: Study) -> None:
        """How far the features behind each stored layer group go, with the freeze depth as the step."""
        metric = self._config.study.metric
        for name in stored:
            probes = ProbeFile.read(ProbeFile.path(self.store.home, study.name, name))
            of = f"{backbones.short_name(name)}/" if len(stored) > 1 else ""
            for depth, value in probes.curve.items() if probes is not None else ():
                self.tracker.log_metrics({f"probe/{of}{metric}": value}, step=depth)

    def log_plan_outcome(self, stored: Mapping[str, StoredSplits], study: Study) -> None:
        """What the trials took beside what the plan says for the epochs that they trained."""
        planned = taken = 0.0
        for record in study.records():
            splits = stored.get(record.hyperparameters.backbone)
            if record.result is None or record.state == "failed" or splits is None or splits.plan is None:
                continue
            deepest, config = len(splits.plan.profile.groups), study.config
            thawing = Thawing.of(record.hyperparameters, config.train, deepest=deepest, metric=config.study.metric)
            planned += splits.plan.trial_seconds(thawing.planned(record.result.epochs))
            taken += record.result.seconds
        if taken:
            self.tracker.log_metrics(
                {"plan/trial_seconds": planned, "plan/trial_seconds_taken": taken}, step=study.finished()
            )
            emit(Note(f"plan: {planned:.0f} s for the epochs that were trained; they took {taken:.0f} s"))

    def update_leaderboard(self, study: Study) -> None:
        """Write the leaderboard after a trial, unless it was written just now: it grows with the study."""
        if time.monotonic() - self._leaderboard_written >= _LEADERBOARD_SECONDS:
            self.log_leaderboard(study)

    def log_leaderboard(self, study: Study, end: Sequence[str] = ()) -> None:
        """Write the leaderboard into the parent run's note and as a table.

        ``end`` is how the search ended, in sentences, once it has.
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
            self._how_to_look(study),
        ]
        self.mlflow.log_tags({"mlflow.note.content": "\n\n".join(parts)})
        self.mlflow.log_text(_csv(leaderboard_rows(records)), "leaderboard.csv")
        best = study.best()
        if best is not None and best.value is not None:
            self.tracker.log_metrics({f"best/{metric}": best.value}, step=study.finished())

    def where_to_look(self) -> str:
        """Where MLflow shows the study and its report, in markdown: links, or the command that opens the UI."""
        run, report = self._page(f"/runs/{self.run_id}"), self._page(f"/runs/{self.run_id}/artifacts/{REPORT}")
        if not self.store.uri.startswith("http"):
            return f"`thawline ui` starts MLflow; the study's run is {self.run_id}, the report its artifact {REPORT}."
        base = re.sub(r"://[^/@]*@", "://", self.store.uri).rstrip("/")  # a browser asks for name and password
        return f"[The study in MLflow]({base}/{run}) · [its report]({base}/{report})"

    def _how_to_look(self, study: Study) -> str:
        """For the note, whose links stay within MLflow."""
        best = study.best()
        links = [f"[All runs]({self._page('/runs')})"]
        if best is not None and best.result is not None and best.result.run_id is not None:
            links.append(f"[best trial: {best.number}]({self._page(f'/runs/{best.result.run_id}')})")
        report = self._page(f"/runs/{self.run_id}/artifacts/{REPORT}")
        links.append(f"[report]({report}), once the study is concluded")
        return (
            f"{' · '.join(links)}\n\nSelect the child runs and press *Compare* for parallel coordinates over "
            f"freeze_depth and learning_rate. In the terminal: `thawline leaderboard {study.name}`."
        )

    def _page(self, place: str) -> str:
        """A place of the experiment in MLflow's UI, with the side bar of model training and not that of agents."""
        return f"#/experiments/{self.store.experiment_id}{place}?workflowType=machine_learning"

    def _log_provenance(self, prepared: Prepared) -> None:
        """What would reproduce this: configuration, data, versions, command, model."""
        tracker, manifest, config = self.tracker, prepared.manifest, prepared.recipe.without_passwords()
        tracker.log_params(_params(prepared.recipe))
        tracker.log_tags(_tags(prepared))
        self.provenance.record(tracker)
        tracker.log_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), "config.yaml")
        tracker.log_text(yaml.safe_dump(library_versions(), sort_keys=False), "environment.yaml")
        tracker.log_text(yaml.safe_dump(report_json(manifest), sort_keys=False, allow_unicode=True), "data.yaml")
        batch_size = prepared.config.train.batch_size
        for name in prepared.config.backbones:
            built = backbones.create(
                name,
                num_classes=len(manifest.classes),
                weights="none",
                image_size=prepared.config.backbone.image_size,
                max_length=prepared.config.backbone.max_length,
            )
            self.costs[name] = backbones.depth_costs(built, batch_size)
            summary = backbones.summary_text(built, 0, batch_size, self.costs[name])
            tracker.log_text(summary, f"summary-{backbones.short_name(name)}.txt")
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
    """The configuration, with the storage that the study is really kept in."""
    storage = storage_url(config.study.storage)
    named = {"study.storage": without_password(storage)} if storage else {}
    return flatten(config.without_passwords()) | named


def _command() -> list[str]:
    """What was typed: the program by its name if it is Thawline's own, else as it was started."""
    program = Path(sys.argv[0])
    ours = program.stem == "thawline" or program.parts[-2:] == ("thawline", "__main__.py")
    return ["thawline", *sys.argv[1:]] if ours else sys.orig_argv


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
