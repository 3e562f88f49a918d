"""Media of a finished study for trackers: figures, tables, the network and the feature space."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thawline import backbones
from thawline.backbones import Backbone
from thawline.pictures import label_grid
from thawline.reports import Mistake, StudyReport, class_table, excerpt, report_surfaces, surface_mesh
from thawline.search import Prepared, TrialRecord
from thawline.search.prepare import image_preprocessing
from thawline.study_report.held_out import HeldOut
from thawline.tracking.media import Embedding, Figure, Image, Media, Table
from thawline.training import head_features, open_inputs, runtime_for

__all__ = ["Shown", "features_of", "media_of", "network_of"]

Shown = tuple[str, Media, int]
"""Name, medium and step."""
_EMBEDDED = 500
"""Maximum number of points in the feature space: with more, TensorBoard's view is no clearer."""
_THUMBNAIL = 32
_CELL = 100
"""Maximum length of a text in the table of the whole test split (characters)."""


def media_of(report: StudyReport, figures: Mapping[str, Figure | None], test: HeldOut) -> list[Shown]:
    """Figures and tables."""
    shown: dict[str, Media] = {name: figure for name, figure in figures.items() if figure is not None}
    if report.mistakes:
        shown["test/mistakes"] = _sheet(report.mistakes)
    shown |= {
        "test/classes": class_table(test.predictions),
        "test/predictions": _answers(test),
        "test": test.predictions,
        **{f"response_{name}": surface_mesh(surface) for name, surface in report_surfaces(report).items()},
    }
    return [(name, media, len(report.trials)) for name, media in shown.items()]


def _sheet(mistakes: Sequence[Mistake]) -> Image | Table:
    """The worst mistakes as one image or, for texts, as a table, for MLflow and TensorBoard."""
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


def _answers(test: HeldOut) -> Table:
    """The model's predictions for every test image or text, the worst mistakes first."""
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


def network_of(backbone: Backbone, best: TrialRecord) -> list[Shown]:
    """The best trial's network as a graph."""
    return [("network", backbones.outline(backbone, best.hyperparameters.freeze_depth), 0)]


def features_of(prepared: Prepared, home: Path, backbone: Backbone, test: HeldOut) -> list[Shown]:
    """The best trial's features for the test images or texts, as an embedding."""
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
        vectors=head_features(backbone, inputs, runtime, config.train.batch_size, home, rows=chosen).values,
        labels=tuple(manifest.classes[label] for label in inputs.labels[chosen]),
        **shown,
    )
    return [("features", embedding, 0)]


def _small(pixels: np.ndarray) -> np.ndarray:
    from PIL import Image as Pillow

    return np.asarray(Pillow.fromarray(pixels).resize((_THUMBNAIL, _THUMBNAIL)))
