"""The thaw-line report of a study: gathered when it is concluded, kept and recorded, and shown again later."""

import csv
import io
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from thawline import backbones
from thawline.backbones import Backbone
from thawline.data import DecodedImages, as_text, report_json, texts_of
from thawline.exceptions import StudyError, TrackingError
from thawline.explain import explained_pictures
from thawline.pictures import label_grid
from thawline.registry import MlflowRegistry
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
    excerpt,
    render,
    report_figures,
    report_surfaces,
    surface_mesh,
    worst_mistakes,
)
from thawline.search import Note, Phase, Prepared, Recorder, SearchOutcome, Study, TrialRecord, emit
from thawline.search.prepare import image_preprocessing
from thawline.search.probing import ProbeFile
from thawline.search.recorder import REPORT
from thawline.search.records import load_importances, load_records
from thawline.search.soup import is_kept, kept_soup
from thawline.search.spec import trial_folder
from thawline.search.winner import restore
from thawline.tracking import fetch_study_file, library_versions, open_store
from thawline.tracking.media import Embedding, Figure, Image, Predictions, Table
from thawline.training import head_features, open_inputs, runtime_for

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
_CELL = 100
"""Characters of a text in a table of the whole test split."""


@dataclass(frozen=True)
class _Test:
    """The held-out examples, and what the packaged model says of them."""

    files: list[str]
    examples: np.ndarray | list[str]
    """uint8 images ``[N, S, S, 3]``, or texts."""
    predictions: Predictions


def publish_report(prepared: Prepared, study: Study, recorder: Recorder, outcome: SearchOutcome) -> Path | None:
    """Write the report beside the study, and record it with its figures and tables.

    A part that cannot be made is left out with a warning, and so is all of it: the model is registered by now, and
    nothing of it is lost.

    Returns:
        The page, in Thawline's home; ``None`` if it could not be written.
    """
    home = recorder.store.home
    emit(Phase("writing the report"))
    try:
        best = next(record for record in outcome.records if record.number == outcome.best_trial)
        backbone = _part(
            "explanations, graph and features", lambda: _registered(prepared, recorder, outcome, best), None
        )
        test = _test(prepared, outcome, best)
        report = _gather(prepared, study, recorder, outcome, backbone, test)
        folder = _folder(home, study.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(report.to_json(), encoding="utf-8")
        page = folder / "report.html"
        figures = report_figures(report)
        page.write_text(render(report, figures), encoding="utf-8")
        _record(report, figures, test, folder, recorder)
        if backbone is not None:
            _part("graph", lambda: _record_network(recorder, backbone, best), None)
            _part("features", lambda: _record_features(prepared, recorder, backbone, test), None)
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
            "probe_curves": report.probe_curves | _part("probe curve", lambda: _probe_curves(home, name, records), {}),
            "curves": _curves(home, name, records) or report.curves,
        }
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render(report), encoding="utf-8")
    return out


def _concluded(name: str, home: Path, tracking_uri: str | None) -> StudyReport | None:
    """What the conclusion left, here or in MLflow; of an earlier version of Thawline it may not be readable."""
    here = _folder(home, name) / "report.json"
    try:
        text = (
            here.read_text(encoding="utf-8")
            if here.exists()
            else fetch_study_file(open_store(tracking_uri, home), name, f"{Path(REPORT).parent}/report.json")
        )
        return StudyReport.from_json(text) if text else None
    except (StudyError, TrackingError) as error:
        if isinstance(error, TrackingError) and tracking_uri is not None:  # that store was asked for
            raise
        emit(Note(f"the page shows the trials alone: {error}", "warning"))
        return None


def _folder(home: Path, study: str) -> Path:
    return home / "studies" / study / "report"


# ----------------------------------------------------------------------------------------------------------------------
# What it is made of


def _gather(
    prepared: Prepared,
    study: Study,
    recorder: Recorder,
    outcome: SearchOutcome,
    backbone: Backbone | None,
    test: _Test,
) -> StudyReport:
    code = recorder.provenance.code
    return StudyReport(
        study=study.name,
        metric=prepared.config.study.metric,
        trials=tuple(map(_point, outcome.records)),
        created=_now(),
        layer_groups=_part("layer groups", lambda: _layer_groups(prepared), {}),
        costs={name: described.costs for name, described in prepared.described.items()},
        probe_curves=_part("probe curve", lambda: _probe_curves(recorder.store.home, study.name, outcome.records), {}),
        curves=_curves(recorder.store.home, study.name, outcome.records),
        importance=_part("importance", study.importances, {}),
        test=test.predictions,
        mistakes=_part(
            "mistakes", lambda: worst_mistakes(test.predictions, test.files, lambda i: test.examples[i]), ()
        ),
        explanations=_part("explanations", lambda: _explanations(backbone, test), ()) if backbone is not None else (),
        promotion=Promotion.model_validate(outcome.promotion.as_dict()),
        data=DataSummary.model_validate(report_json(prepared.manifest)),
        provenance=Provenance(
            command=recorder.provenance.command,
            config=yaml.safe_dump(prepared.recipe.without_passwords().model_dump(mode="json"), sort_keys=False),
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


def _registered(prepared: Prepared, recorder: Recorder, outcome: SearchOutcome, best: TrialRecord) -> Backbone:
    """The network that was registered.

    Raises:
        StudyError: if it was registered by another machine, and what it was made from is not in this home.
    """
    home, (model, version) = recorder.store.home, (outcome.model, outcome.promotion.version)
    soup = kept_soup(prepared.study, best.number, home) if prepared.config.study.soup else None
    if not is_kept(MlflowRegistry(recorder.store).tags(model, version), soup):
        raise StudyError(
            f"{model}/{version} is an average of trials, whose weights are kept where it was made and not in {home}"
        )
    return restore(prepared, best, home)


def _point(record: TrialRecord) -> TrialPoint:
    result, hyperparameters = record.result, record.hyperparameters.as_dict()
    own = {name: hyperparameters.pop(name) for name in ("backbone", "freeze_depth", "learning_rate")}
    if record.hyperparameters.is_probe:
        # Of what trials are trained with, it has nothing.
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
        **own,
    )


def _layer_groups(prepared: Prepared) -> dict[str, tuple[str, ...]]:
    return {name: backbones.describe(name).layer_groups for name in prepared.config.backbones}


def _test(prepared: Prepared, outcome: SearchOutcome, best: TrialRecord) -> _Test:
    """As the packaged model was scored for the promotion."""
    scores, rows = outcome.promotion.challenger, prepared.manifest.of("test")
    numbers = {name: number for number, name in enumerate(scores.classes)}
    labels = np.array([numbers[label] for label in scores.labels])
    examples = (
        texts_of(prepared.manifest, rows)
        if prepared.manifest.kind == "texts"
        else DecodedImages.open(prepared.inputs[best.hyperparameters.backbone]).split("test")[0]
    )
    return _Test(
        [as_text(row.path) for row in rows], examples, Predictions(labels, scores.probabilities, scores.classes)
    )


def _curves(home: Path, study: str, records: Sequence[TrialRecord]) -> tuple[LearningCurve, ...]:
    """Of the best trials that have epochs, which a linear probe has not, those whose history lies here."""
    curves: list[LearningCurve] = []
    for record in records:
        if record.hyperparameters.is_probe:
            continue
        file = trial_folder(home, study, record.number) / "history.csv"
        if record.value is not None and file.exists() and len(curves) < _CURVES:
            curves.append(LearningCurve(trial=record.number, metrics=_columns(file)))
    return tuple(curves)


def _probe_curves(home: Path, study: str, records: Sequence[TrialRecord]) -> dict[str, dict[int, float]]:
    """What linear probes reach by freeze depth, of each backbone whose probes were fitted here."""
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


def _explanations(backbone: Backbone, test: _Test) -> tuple[Explanation, ...]:
    """What the model looked at where it was most wrong, and, if it seldom was, where it was least sure.

    None of texts, which have no places to look at.
    """
    said, pictures = test.predictions, test.examples
    if isinstance(pictures, list):
        return ()
    chosen, predicted = np.argsort(said.given, kind="stable")[:_EXPLAINED], said.predicted
    began = time.monotonic()
    explained = explained_pictures(backbone, pictures[chosen[:1]], predicted[chosen[:1]])
    more = chosen[1 : 1 + int(_EXPLAIN_SECONDS / (time.monotonic() - began))]
    if len(more):
        explained += explained_pictures(backbone, pictures[more], predicted[more])
    return tuple(
        Explanation(
            picture=picture,
            caption=f"{test.files[i]}: {said.classes[predicted[i]]} "
            f"{said.probabilities[i].max():.0%}, is {said.classes[said.labels[i]]}",
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
    test: _Test,
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
    tracker.log_media("test/classes", class_table(test.predictions), step=step)
    tracker.log_media("test/predictions", _answers(test), step=step)
    tracker.log_media("test", test.predictions, step=step)
    for name, surface in report_surfaces(report).items():
        tracker.log_media(f"response_{name}", surface_mesh(surface), step=step)


def _sheet(mistakes: Sequence[Mistake]) -> Image | Table:
    """The worst mistakes as one picture or, of texts, as a table, for those who look elsewhere than at the page."""
    pictures = [_decoded(each.picture) for each in mistakes if each.picture is not None]
    if not pictures:
        columns = ("text", "label", "predicted", "probability", "file")
        return Table({name: [getattr(each, name) for each in mistakes] for name in columns})
    captions = [f"{each.predicted} {each.probability:.0%}\nis {each.label}" for each in mistakes]
    sheet = label_grid(np.stack(pictures), captions, [True] * len(mistakes), 6)
    return Image(sheet, "worst mistakes on the test images")


def _decoded(picture: bytes) -> np.ndarray:
    from PIL import Image as Pillow

    return np.asarray(Pillow.open(io.BytesIO(picture)))


def _answers(test: _Test) -> Table:
    """What the model says of every test image or text, the most mistaken first."""
    said, files, examples = test.predictions, test.files, test.examples
    order, predicted = np.argsort(said.given, kind="stable").tolist(), said.predicted
    shown: dict[str, list[str]] = (
        {"text": [excerpt(examples[i], most=_CELL) for i in order], "line": [files[i] for i in order]}
        if isinstance(examples, list)
        else {"image": [files[i] for i in order]}
    )
    return Table(
        {
            **shown,
            "label": [said.classes[said.labels[i]] for i in order],
            "predicted": [said.classes[predicted[i]] for i in order],
            "probability": [float(said.probabilities[i].max()) for i in order],
            "right": [int(predicted[i] == said.labels[i]) for i in order],
        }
    )


def _record_network(recorder: Recorder, backbone: Backbone, best: TrialRecord) -> None:
    """The best trial's network as a graph."""
    recorder.tracker.log_media("network", backbones.outline(backbone, best.hyperparameters.freeze_depth), step=0)


def _record_features(prepared: Prepared, recorder: Recorder, backbone: Backbone, test: _Test) -> None:
    """What the best trial's network makes of the test images or texts, as points in space."""
    config, manifest = prepared.config, prepared.manifest
    runtime = runtime_for(config.train.model_copy(update={"precision": "fp32"}))
    inputs = open_inputs(prepared.inputs[backbone.name], "test", image_preprocessing(config, backbone.name), runtime)
    chosen = np.sort(np.random.default_rng(0).permutation(len(inputs))[:_EMBEDDED])
    shown: dict[str, Any] = (
        {"texts": tuple(excerpt(test.examples[i], most=_CELL) for i in chosen)}
        if isinstance(test.examples, list)
        else {"thumbnails": np.stack([_small(test.examples[i]) for i in chosen])}
    )
    embedding = Embedding(
        vectors=head_features(
            backbone, inputs, runtime, config.train.batch_size, recorder.store.home, rows=chosen
        ).values,
        labels=tuple(manifest.classes[label] for label in inputs.labels[chosen]),
        **shown,
    )
    recorder.tracker.log_media("features", embedding, step=0)


def _small(pixels: np.ndarray) -> np.ndarray:
    from PIL import Image as Pillow

    return np.asarray(Pillow.fromarray(pixels).resize((_THUMBNAIL, _THUMBNAIL)))
