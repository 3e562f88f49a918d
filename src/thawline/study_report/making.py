"""The thaw-line report of a study: written and recorded at its end, and rendered again later."""

import csv
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import yaml

from thawline import backbones
from thawline.backbones import Backbone
from thawline.data import report_json
from thawline.exceptions import StudyError, TrackingError
from thawline.labels import LabelCheck
from thawline.registry import MlflowRegistry
from thawline.reports import (
    DataSummary,
    Explanation,
    LearningCurve,
    Promotion,
    Provenance,
    StudyReport,
    TrialPoint,
    render,
    report_figures,
    worst_mistakes,
)
from thawline.search import Note, Phase, Prepared, SearchOutcome, Study, StudyRun, TrialRecord, emit
from thawline.search.importance import Importance, load_importances
from thawline.search.probing import ProbeFile
from thawline.search.recorder import REPORT
from thawline.search.records import load_records
from thawline.search.soup import is_kept, kept_soup
from thawline.search.trial_result import trial_folder
from thawline.search.winner import restore
from thawline.study_report.held_out import HeldOut, held_out
from thawline.study_report.labels import SUSPECTS_FILE, labels_to_look_at, shown_labels
from thawline.study_report.media import Shown, features_of, media_of, network_of
from thawline.tracking import Tracker, fetch_study_file, library_versions, open_store
from thawline.tracking.media import Predictions

__all__ = ["MadeReport", "make_report", "write_report"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_CURVES = 5
"""Number of best trials whose learning curves are drawn."""
_EXPLAINED, _EXPLAIN_SECONDS = 8, 20.0
"""Maximum number of explained images, and the time for them: a large transformer takes half a minute per image on a
CPU."""


@dataclass(frozen=True)
class MadeReport:
    """The report of a study that has just ended."""

    page: Path
    """In a folder of Thawline's home, together with its values."""
    media: tuple[Shown, ...]
    """Figures and tables for trackers."""

    def record(self, tracker: Tracker) -> None:
        """Record the folder, figures and tables in the study's run."""
        tracker.log_artifact(self.page.parent, str(Path(REPORT).parent))
        for name, media, step in self.media:
            tracker.log_media(name, media, step=step)


def make_report(prepared: Prepared, run: StudyRun, outcome: SearchOutcome) -> MadeReport | None:
    """Write the report to the study's folder.

    A part that fails is left out with a warning, and so is the whole report, because the model is already registered.

    Returns:
        The report; ``None`` if it could not be written.
    """
    emit(Phase("writing the report"))
    try:
        study = Study.load(run.home, run.study, prepared.config)
        best = next(record for record in outcome.records if record.number == outcome.best_trial)
        backbone = _part("explanations, graph and features", lambda: _registered(prepared, run, outcome, best), None)
        test = held_out(prepared, outcome, best)
        labels = _part("labels", lambda: labels_to_look_at(prepared, run.home, best), None)
        report = _gather(prepared, study, run, outcome, best, backbone, test, labels)
        folder = _folder(run.home, study.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SUSPECTS_FILE).unlink(missing_ok=True)
        if labels is not None and labels.suspects:
            labels.to_csv(folder / SUSPECTS_FILE)
        (folder / "report.json").write_text(report.to_json(), encoding="utf-8")
        page = folder / "report.html"
        figures = report_figures(report)
        page.write_text(render(report, figures), encoding="utf-8")
        media = media_of(report, figures, test)
        if backbone is not None:
            media += _part("graph", lambda: network_of(backbone, best), [])
            media += _part("features", lambda: features_of(prepared, run.home, backbone, test), [])
    except Exception as error:
        _log.debug("no report", exc_info=True)
        emit(Note(f"the report could not be written: {error}", "warning"))
        return None
    return MadeReport(page, tuple(media))


def write_report(name: str, out: Path, *, home: Path, storage: str | None, tracking_uri: str | None) -> Path:
    """Write the current page of a study: its report, updated with its current trials.

    The page of an unfinished study shows only its trials.

    Args:
        name: name of the study.
        out: file to write; its folder is created.
        home: Thawline's home.
        storage: database of the study, if it is not in the home.
        tracking_uri: MLflow server with the report of a study that another machine finished.

    Raises:
        StudyError: if there is no such study.
    """
    metric, records = load_records(home, name, storage)
    report = _concluded(name, home, tracking_uri)
    importance = _part("importance", lambda: load_importances(home, name, storage), {})
    known = {trial.number: trial.link for trial in report.trials} if report else {}
    points = tuple(_point(record, known.get(record.number)) for record in records)
    if report is None:
        report = StudyReport.model_validate({"study": name, "metric": metric, "trials": points})
    report = report.model_copy(
        update={
            "trials": points,
            "created": _now(),
            **_importance(importance),
            "probe_curves": report.probe_curves | _part("probe curve", lambda: _probe_curves(home, name, records), {}),
            "curves": _curves(home, name, records) or report.curves,
        }
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render(report), encoding="utf-8")
    return out


def _concluded(name: str, home: Path, tracking_uri: str | None) -> StudyReport | None:
    """The report from the end of the study, here or in MLflow; reports of older versions may not be readable."""
    here = _folder(home, name) / "report.json"
    try:
        text = (
            here.read_text(encoding="utf-8")
            if here.exists()
            else fetch_study_file(open_store(tracking_uri, home), name, f"{Path(REPORT).parent}/report.json")
        )
        return StudyReport.from_json(text) if text else None
    except (StudyError, TrackingError) as error:
        if isinstance(error, TrackingError) and tracking_uri is not None:  # the user named that store
            raise
        emit(Note(f"the page shows only the trials: {error}", "warning"))
        return None


def _folder(home: Path, study: str) -> Path:
    return home / "studies" / study / "report"


def _gather(
    prepared: Prepared,
    study: Study,
    run: StudyRun,
    outcome: SearchOutcome,
    best: TrialRecord,
    backbone: Backbone | None,
    test: HeldOut,
    labels: LabelCheck | None,
) -> StudyReport:
    code = run.provenance.code
    return StudyReport(
        study=study.name,
        metric=prepared.config.study.metric,
        trials=tuple(_point(record, _address(record, run)) for record in outcome.records),
        created=_now(),
        links={"MLflow": address} if (address := run.store.address(f"/runs/{run.run_id}")) else {},
        layer_groups=_part("layer groups", lambda: _layer_groups(prepared), {}),
        costs={name: described.costs for name, described in prepared.described.items()},
        probe_curves=_part("probe curve", lambda: _probe_curves(run.home, study.name, outcome.records), {}),
        curves=_curves(run.home, study.name, outcome.records),
        **_importance(_part("importance", study.importances, {})),
        test=test.predictions,
        mistakes=_part(
            "mistakes", lambda: worst_mistakes(test.predictions, test.files, lambda i: test.examples[i]), ()
        ),
        explanations=_part("explanations", lambda: _explanations(backbone, test), ()) if backbone is not None else (),
        labels=_part("labels", lambda: shown_labels(prepared, labels, best), None) if labels else None,
        promotion=Promotion.model_validate(outcome.promotion.as_dict()),
        data=DataSummary.model_validate(report_json(prepared.manifest)),
        provenance=Provenance(
            command=run.provenance.command,
            config=yaml.safe_dump(prepared.recipe.without_passwords().model_dump(mode="json"), sort_keys=False),
            commit=code.commit if code else "",
            dirty=code.dirty if code else None,
            diff=code.changes if code else "",
            versions=library_versions(),
        ),
    )


def _importance(found: Mapping[str, Importance]) -> dict[str, Any]:
    """The report's fields for importance."""
    return {
        "importance": {name: importance.share for name, importance in found.items()},
        "importance_ranges": {name: (importance.low, importance.high) for name, importance in found.items()},
    }


def _part(name: str, make: Callable[[], _T], instead: _T | Any) -> _T | Any:
    """A part of the report, or a default if it fails."""
    try:
        return make()
    except Exception as error:
        _log.debug("no %s", name, exc_info=True)
        emit(Note(f"the report lacks its {name}: {error}", "warning"))
        return instead


def _registered(prepared: Prepared, run: StudyRun, outcome: SearchOutcome, best: TrialRecord) -> Backbone:
    """The network that was registered.

    Raises:
        StudyError: if another machine registered it, and its checkpoints are not in this home.
    """
    home, (model, version) = run.home, (outcome.model, outcome.promotion.version)
    soup = kept_soup(prepared.study, best.number, home) if prepared.config.study.soup else None
    if not is_kept(MlflowRegistry(run.store).tags(model, version), soup):
        raise StudyError(
            f"{model}/{version} is an average of trials whose weights are not in {home}, but where it was built"
        )
    return restore(prepared, best, home)


def _point(record: TrialRecord, link: str | None) -> TrialPoint:
    result, hyperparameters = record.result, record.hyperparameters.as_dict()
    own = {name: hyperparameters.pop(name) for name in ("backbone", "freeze_depth", "learning_rate")}
    if record.hyperparameters.is_probe:
        # A probe has no training settings.
        own, hyperparameters = own | {"learning_rate": None}, {"policy": hyperparameters["policy"]}
    return TrialPoint(
        number=record.number,
        state=record.state,
        value=record.value,
        others=hyperparameters,
        best_epoch=result.best_epoch if result else None,
        epochs=result.epochs if result else None,
        seconds=result.seconds if result else None,
        memory_bytes=result.memory_bytes if result else None,
        reason=result.reason if result else "",
        link=link,
        **own,
    )


def _address(record: TrialRecord, run: StudyRun) -> str | None:
    """The address of the trial's run, if it has one."""
    run_id = record.result.run_id if record.result else None
    return run.store.address(f"/runs/{run_id}") if run_id else None


def _layer_groups(prepared: Prepared) -> dict[str, tuple[str, ...]]:
    return {name: backbones.describe(name).layer_groups for name in prepared.config.backbones}


def _curves(home: Path, study: str, records: Sequence[TrialRecord]) -> tuple[LearningCurve, ...]:
    """Learning curves of the best trials whose history is in this home; linear probes have none."""
    curves: list[LearningCurve] = []
    for record in records:
        if record.hyperparameters.is_probe:
            continue
        file = trial_folder(home, study, record.number) / "history.csv"
        if record.value is not None and file.exists() and len(curves) < _CURVES:
            curves.append(LearningCurve(trial=record.number, metrics=_columns(file)))
    return tuple(curves)


def _probe_curves(home: Path, study: str, records: Sequence[TrialRecord]) -> dict[str, dict[int, float]]:
    """Values of linear probes by freeze depth, for each backbone whose probes were fitted here."""
    names = dict.fromkeys(record.hyperparameters.backbone for record in records)
    found = {name: ProbeFile.read(ProbeFile.path(home, study, name)) for name in names}
    return {name: probes.curve for name, probes in found.items() if probes is not None and probes.curve}


def _columns(file: Path) -> dict[str, tuple[float | None, ...]]:
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return {
        name: tuple(float(row[name]) if row[name] else None for row in rows)
        for name in (rows[0] if rows else ())
        if name.startswith(("train/", "val/"))
    }


def _explanations(backbone: Backbone, test: HeldOut) -> tuple[Explanation, ...]:
    """Explanations of the worst mistakes and of correct predictions; empty for texts."""
    said, pictures = test.predictions, test.examples
    if isinstance(pictures, list):
        return ()
    from thawline.explain import explained_pictures  # loads torchvision, which a search's driver does not need

    chosen, predicted = _chosen(said), said.predicted
    began = time.monotonic()
    explained = explained_pictures(backbone, pictures[chosen[:1]], predicted[chosen[:1]])
    more = chosen[1 : 1 + int(_EXPLAIN_SECONDS / (time.monotonic() - began))]
    if len(more):
        explained += explained_pictures(backbone, pictures[more], predicted[more])
    return tuple(
        Explanation(
            picture=picture,
            caption=f"{test.files[i]}: {said.classes[predicted[i]]} {said.probabilities[i].max():.0%}, "
            + ("correct" if predicted[i] == said.labels[i] else f"but is {said.classes[said.labels[i]]}"),
        )
        for i, picture in zip(chosen.tolist(), explained, strict=False)
    )


def _chosen(said: Predictions) -> npt.NDArray[np.int64]:
    """Choose the worst mistakes, and the most confident correct predictions, one per class first.

    Half are of each kind, more if there are fewer of the other. The kinds alternate, so that the first few show both.
    """
    wrong = [int(i) for i in np.argsort(said.given, kind="stable") if said.predicted[i] != said.labels[i]]
    sure = [int(i) for i in np.argsort(-said.given, kind="stable") if said.predicted[i] == said.labels[i]]
    firsts = list({int(said.labels[i]): i for i in reversed(sure)}.values())[::-1]
    right = [*firsts, *(i for i in sure if i not in firsts)]
    half = _EXPLAINED // 2
    wrong = wrong[: max(half, _EXPLAINED - len(right))]
    right = right[: _EXPLAINED - len(wrong)]
    taking_turns = [i for pair in zip_longest(wrong, right) for i in pair if i is not None]
    return np.array(taking_turns[:_EXPLAINED], dtype=np.int64)


def _now() -> str:
    return time.strftime("%-d %B %Y, %H:%M UTC", time.gmtime())
