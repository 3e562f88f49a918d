"""The thaw-line report of a study: gathered when it is concluded, kept and recorded, and shown again later."""

import csv
import io
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import yaml

from thawline import backbones
from thawline.backbones import Backbone
from thawline.data import DecodedImages, report_json
from thawline.drift.check import catch_features
from thawline.explain import explained_pictures
from thawline.pictures import label_grid
from thawline.reports import (
    DataSummary,
    Explanation,
    LearningCurve,
    Mistake,
    Promotion,
    Provenance,
    StudyReport,
    TrialPoint,
    class_table,
    render,
    report_figures,
    report_surface,
    surface_mesh,
    worst_mistakes,
)
from thawline.search import Note, Prepared, Recorder, SearchOutcome, Study, TrialRecord, emit
from thawline.search.recorder import REPORT
from thawline.search.study import load_importances, load_records
from thawline.search.trial import trial_folder
from thawline.search.winner import restore
from thawline.tracking import fetch_study_file, library_versions, open_store
from thawline.tracking.media import Embedding, Figure, Image, Predictions, Table
from thawline.training import ImageInputs, Runtime, batches, runtime_for

__all__ = ["publish_report", "write_report"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_CURVES = 5
"""Trials whose learning curves are drawn, the best."""
_EXPLAINED, _EXPLAIN_SECONDS = 8, 20.0
"""Pictures that are explained, at most, and the time for it: a large transformer takes half a minute each on a CPU."""
_EMBEDDED = 500
"""Points of the feature space: TensorBoard shows more of them no better."""
_THUMBNAIL = 32


def publish_report(prepared: Prepared, study: Study, recorder: Recorder, outcome: SearchOutcome) -> Path | None:
    """Write the report beside the study, and record it with its figures and tables.

    A part that cannot be made is left out with a warning, and so is all of it: the model is registered by now, and
    nothing of it is lost.

    Returns:
        The page, in Thawline's home; ``None`` if it could not be written.
    """
    home = recorder.store.home
    try:
        best = next(record for record in outcome.records if record.number == outcome.best_trial)
        backbone, test = restore(prepared, best, home), _test_predictions(outcome)
        files = [row.path for row in prepared.manifest.of("test")]
        report = _gather(prepared, study, recorder, outcome, backbone, test, files)
        folder = _folder(home, study.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(report.to_json(), encoding="utf-8")
        page = folder / "report.html"
        figures = report_figures(report)
        page.write_text(render(report, figures), encoding="utf-8")
        _record(report, figures, test, files, folder, recorder)
        _part("network and features", lambda: _record_network(prepared, recorder, backbone, best), None)
    except Exception as error:
        _log.debug("no report", exc_info=True)
        emit(Note(f"the report could not be written: {error}", "warning"))
        return None
    return page


def write_report(name: str, out: Path, *, home: Path, storage: str | None, tracking_uri: str | None) -> Path:
    """Write the page of a study as it stands: what it was concluded with, and the trials that it has now.

    A study that was not concluded has a page of its trials alone.

    Args:
        name: of the study.
        out: file to write; its folder is made.
        home: Thawline's home.
        storage: database of the study, if it is not in the home.
        tracking_uri: where MLflow has the report of a study that another machine concluded.

    Raises:
        StudyError: if there is no such study.
    """
    metric, records = load_records(home, name, storage)
    report = _concluded(name, home, tracking_uri)
    importance = _part("importance", lambda: load_importances(home, name, storage), {})
    points = tuple(map(_point, records))
    if report is None:
        report = StudyReport.model_validate({"study": name, "metric": metric, "trials": points})
    report = report.model_copy(
        update={
            "trials": points,
            "created": _now(),
            "importance": importance,
            "curves": _curves(home, name, records) or report.curves,
        }
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render(report), encoding="utf-8")
    return out


def _concluded(name: str, home: Path, tracking_uri: str | None) -> StudyReport | None:
    """What the conclusion left: here, or in MLflow."""
    here = _folder(home, name) / "report.json"
    if here.exists():
        return StudyReport.from_json(here.read_text(encoding="utf-8"))
    text = fetch_study_file(open_store(tracking_uri, home), name, f"{Path(REPORT).parent}/report.json")
    return StudyReport.from_json(text) if text else None


def _folder(home: Path, study: str) -> Path:
    return home / "studies" / study / "report"


# ----------------------------------------------------------------------------------------------------------------------
# What it is made of


def _gather(
    prepared: Prepared,
    study: Study,
    recorder: Recorder,
    outcome: SearchOutcome,
    backbone: Backbone,
    test: Predictions,
    files: Sequence[str],
) -> StudyReport:
    pictures, _ = DecodedImages.open(prepared.images[backbone.name]).split("test")
    code = recorder.provenance.code
    mistakes = _part("mistakes", lambda: worst_mistakes(test, files, lambda i: pictures[i]), ())
    return StudyReport(
        study=study.name,
        metric=prepared.config.study.metric,
        trials=tuple(map(_point, outcome.records)),
        created=_now(),
        layer_groups={name: backbones.describe(name).layer_groups for name in prepared.config.backbones},
        costs=recorder.costs.get(backbone.name, ()),
        curves=_curves(recorder.store.home, study.name, outcome.records),
        importance=_part("importance", study.importances, {}),
        test=test,
        mistakes=mistakes,
        explanations=_part("explanations", lambda: _explanations(backbone, test, pictures, files), ()),
        promotion=Promotion.model_validate(outcome.promotion.as_dict()),
        data=DataSummary.model_validate(report_json(prepared.manifest)),
        provenance=Provenance(
            command=recorder.provenance.command,
            config=yaml.safe_dump(prepared.config.without_passwords().model_dump(mode="json"), sort_keys=False),
            commit=code.commit if code else "",
            dirty=code.dirty if code else None,
            diff=code.changes if code else "",
            versions=library_versions(),
        ),
    )


def _part(name: str, make: Callable[[], _T], instead: _T | Any) -> _T | Any:
    """A part of the report, or what stands for it if it cannot be made."""
    try:
        return make()
    except Exception as error:
        _log.debug("no %s", name, exc_info=True)
        emit(Note(f"the report lacks its {name}: {error}", "warning"))
        return instead


def _point(record: TrialRecord) -> TrialPoint:
    result, hyperparameters = record.result, record.hyperparameters.as_dict()
    own = {name: hyperparameters.pop(name) for name in ("backbone", "freeze_depth", "learning_rate")}
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
        **own,
    )


def _test_predictions(outcome: SearchOutcome) -> Predictions:
    """Of the packaged model, as it was scored for the promotion."""
    scores = outcome.promotion.challenger
    numbers = {name: number for number, name in enumerate(scores.classes)}
    return Predictions(np.array([numbers[label] for label in scores.labels]), scores.probabilities, scores.classes)


def _curves(home: Path, study: str, records: Sequence[TrialRecord]) -> tuple[LearningCurve, ...]:
    """Of the best trials, those whose history lies here."""
    curves: list[LearningCurve] = []
    for record in records:
        file = trial_folder(home, study, record.number) / "history.csv"
        if record.value is not None and file.exists() and len(curves) < _CURVES:
            curves.append(LearningCurve(trial=record.number, metrics=_columns(file)))
    return tuple(curves)


def _columns(file: Path) -> dict[str, tuple[float | None, ...]]:
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return {
        name: tuple(float(row[name]) if row[name] else None for row in rows)
        for name in (rows[0] if rows else ())
        if name.startswith(("train/", "val/"))
    }


def _explanations(
    backbone: Backbone, test: Predictions, pictures: np.ndarray, files: Sequence[str]
) -> tuple[Explanation, ...]:
    """What the model looked at where it was most wrong, and, if it seldom was, where it was least sure."""
    chosen, predicted = np.argsort(test.given, kind="stable")[:_EXPLAINED], test.predicted
    began = time.monotonic()
    explained = explained_pictures(backbone, pictures[chosen[:1]], predicted[chosen[:1]])
    more = chosen[1 : 1 + int(_EXPLAIN_SECONDS / (time.monotonic() - began))]
    if len(more):
        explained += explained_pictures(backbone, pictures[more], predicted[more])
    return tuple(
        Explanation(
            picture=picture,
            caption=f"{files[i]}: {test.classes[predicted[i]]} "
            f"{test.probabilities[i].max():.0%}, is {test.classes[test.labels[i]]}",
        )
        for i, picture in zip(chosen.tolist(), explained, strict=False)
    )


def _now() -> str:
    return time.strftime("%-d %B %Y, %H:%M UTC", time.gmtime())


# ----------------------------------------------------------------------------------------------------------------------
# Where it goes


def _record(
    report: StudyReport,
    figures: Mapping[str, Figure | None],
    test: Predictions,
    files: Sequence[str],
    folder: Path,
    recorder: Recorder,
) -> None:
    """Page, figures and tables to the trackers of the study."""
    tracker, step = recorder.tracker, len(report.trials)
    tracker.log_artifact(folder, str(Path(REPORT).parent))
    for name, figure in figures.items():
        if figure is not None:
            tracker.log_media(name, figure, step=step)
    if report.mistakes:
        tracker.log_media("test/mistakes", _sheet(report.mistakes), step=step)
    tracker.log_media("test/classes", class_table(test), step=step)
    tracker.log_media("test/predictions", _answers(test, files), step=step)
    tracker.log_media("test", test, step=step)
    surface = report_surface(report)
    if surface is not None:
        tracker.log_media("response_surface", surface_mesh(surface), step=step)


def _sheet(mistakes: Sequence[Mistake]) -> Image:
    """The worst mistakes as one picture, for those who look elsewhere than at the page."""
    captions = [f"{each.predicted} {each.probability:.0%}\nis {each.label}" for each in mistakes]
    pictures = np.stack([_decoded(each.picture) for each in mistakes])
    return Image(label_grid(pictures, captions, [True] * len(mistakes), 6), "worst mistakes on the test images")


def _decoded(picture: bytes) -> np.ndarray:
    from PIL import Image as Pillow

    return np.asarray(Pillow.open(io.BytesIO(picture)))


def _answers(test: Predictions, files: Sequence[str]) -> Table:
    """What the model says of every test image, the most mistaken first."""
    order, predicted = np.argsort(test.given, kind="stable").tolist(), test.predicted
    return Table(
        {
            "image": [files[i] for i in order],
            "label": [test.classes[test.labels[i]] for i in order],
            "predicted": [test.classes[predicted[i]] for i in order],
            "probability": [float(test.probabilities[i].max()) for i in order],
            "right": [int(predicted[i] == test.labels[i]) for i in order],
        }
    )


def _record_network(prepared: Prepared, recorder: Recorder, backbone: Backbone, best: TrialRecord) -> None:
    """The best trial's network as a graph, and what it makes of the test images as points in space."""
    recorder.tracker.log_media("network", backbones.outline(backbone, best.hyperparameters.freeze_depth), step=0)
    pictures, labels = DecodedImages.open(prepared.images[best.hyperparameters.backbone]).split("test")
    chosen = np.sort(np.random.default_rng(0).permutation(len(labels))[:_EMBEDDED])
    runtime = runtime_for(prepared.config.train.model_copy(update={"precision": "fp32"}))
    preprocessing = backbones.preprocessing_of(
        backbone.name, weights=prepared.config.backbone.weights, image_size=prepared.config.backbone.image_size
    )
    inputs = ImageInputs(pictures[chosen], labels[chosen], preprocessing, runtime)
    embedding = Embedding(
        vectors=_features(backbone, inputs, runtime, prepared.config.train.batch_size),
        labels=tuple(prepared.manifest.classes[label] for label in labels[chosen]),
        thumbnails=np.stack([_small(pictures[i]) for i in chosen]),
    )
    recorder.tracker.log_media("features", embedding, step=0)


def _features(backbone: Backbone, inputs: ImageInputs, runtime: Runtime, batch_size: int) -> np.ndarray:
    """What the head is given for each image, ``[N, D]``. The network has a hook from then on."""
    module = backbone.module.to(runtime.device).eval()
    caught, found = catch_features(module), []
    parts = np.split(np.arange(len(inputs)), range(batch_size, len(inputs), batch_size))
    with torch.inference_mode():
        for _, images in batches(inputs, parts, 0, runtime):
            module(images)
            found.append(caught())
    return np.concatenate(found)


def _small(pixels: np.ndarray) -> np.ndarray:
    from PIL import Image as Pillow

    return np.asarray(Pillow.fromarray(pixels).resize((_THUMBNAIL, _THUMBNAIL)))
