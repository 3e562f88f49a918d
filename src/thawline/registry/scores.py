"""How a packaged model does on labelled images or texts, measured now, and how two compare on the same ones."""

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thawline.data import DataKind
from thawline.exceptions import RegistryError
from thawline.registry.names import COLUMNS
from thawline.registry.packaged import PackagedModel, Prediction
from thawline.registry.statistics import (
    Gain,
    RecallLoss,
    calibration_error,
    calibration_gain,
    mcnemar,
    paired_bootstrap,
    worst_recall_loss,
)

__all__ = [
    "SMALLEST_PROBABILITY",
    "Scores",
    "compare",
    "compare_calibration",
    "compare_recalls",
    "label_metrics",
    "score",
    "seconds_per_item",
]

Ints = npt.NDArray[np.int64]

SMALLEST_PROBABILITY = 1e-12
"""What a class counts for in the loss if the model does not know it or gives it nothing."""
_TIMED_ITEMS = 15


@dataclass(frozen=True)
class Scores:
    """How a model did on labelled images or texts, class names being compared with class names."""

    metrics: dict[str, float]
    """``loss``, ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``calibration_error``; with more than five classes,
    ``top5_accuracy``; of a package with prediction sets the share that holds the right class, ``coverage``, and their
    mean number of classes, ``prediction_set_size``; of one that tells what is unknown, the share that it calls so,
    ``false_alarms``."""
    recalls: dict[str, float]
    """Recall of every class that occurs among the labels."""
    labels: tuple[str, ...]
    """The right class of each item."""
    predicted: tuple[str, ...]
    """The class predicted for each item."""
    losses: npt.NDArray[np.float64] = field(repr=False, compare=False)
    """Of each item: ``-log`` of the right class's probability."""
    confidence: npt.NDArray[np.float64] = field(repr=False, compare=False)
    """Of each item: probability of the predicted class."""
    classes: tuple[str, ...]
    """That the model knows."""
    probabilities: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)), repr=False, compare=False)
    """``[N, num_classes]`` in the order of ``classes``: calibrated, as the model answers."""
    seconds_per_item: float | None = None
    """Median time of one image or text on its own, decoding or tokenizing included."""
    bytes: int | None = None
    """Of the package."""
    parity: float | None = None
    """Largest difference of a probability between the package and the trained network, from when it was packaged."""
    kind: DataKind = "images"
    """What was classified."""


def score(model: PackagedModel, items: Sequence[bytes | Path | str], labels: Sequence[str]) -> Scores:
    """Classify images or texts and compare with their labels.

    The labels' classes count, not the model's: a class that the model does not know is always missed. The loss is the
    mean of ``-log`` of the true class's probability (at least 1e-12), the rest is scikit-learn's.

    Args:
        model: the model.
        items: encoded images or image files, or texts for a model of texts; at least one.
        labels: class names, as many as items.

    Raises:
        RegistryError: if an item cannot be read by the model, naming it.
    """
    word = COLUMNS[model.kind]
    if not items or len(items) != len(labels):
        raise RegistryError(f"One label for each of at least one {word} must hold, got {len(items)} and {len(labels)}.")
    predictions: list[Prediction] = []
    for item, answer in zip(items, model.predict(items), strict=True):
        if isinstance(answer, str):
            which = item if isinstance(item, Path) else f"{word} {len(predictions)}"
            raise RegistryError(f"{model.name} cannot read {which}: {answer}")
        predictions.append(answer)
    predicted = tuple(prediction.class_name for prediction in predictions)
    of_labels, recalls = label_metrics(labels, predicted)
    losses = np.array(
        [
            -math.log(max(prediction.probabilities.get(label, 0.0), SMALLEST_PROBABILITY))
            for prediction, label in zip(predictions, labels, strict=True)
        ]
    )
    confidence = np.array([prediction.probability for prediction in predictions])
    metrics = {
        "loss": float(losses.mean()),
        **of_labels,
        "calibration_error": calibration_error(confidence, np.array(labels) == np.array(predicted)),
    }
    if max(len(prediction.probabilities) for prediction in predictions) > 5:
        hits = [
            label in sorted(prediction.probabilities, key=prediction.probabilities.__getitem__, reverse=True)[:5]
            for prediction, label in zip(predictions, labels, strict=True)
        ]
        metrics["top5_accuracy"] = sum(hits) / len(hits)
    sets = [each.prediction_set for each in predictions if each.prediction_set is not None]
    if sets:
        metrics["coverage"] = float(np.mean([label in each for label, each in zip(labels, sets, strict=True)]))
        metrics["prediction_set_size"] = float(np.mean([len(each) for each in sets]))
    unknown = [each.unknown for each in predictions if each.unknown is not None]
    if unknown:
        metrics["false_alarms"] = float(np.mean(unknown))
    return Scores(
        metrics=metrics,
        recalls=recalls,
        labels=tuple(labels),
        predicted=predicted,
        losses=losses,
        confidence=confidence,
        classes=tuple(predictions[0].probabilities),
        probabilities=np.array([list(prediction.probabilities.values()) for prediction in predictions]),
        bytes=model.bytes,
        parity=model.parity,
        kind=model.kind,
    )


def label_metrics(labels: Sequence[str], predicted: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy, balanced accuracy and macro F1 of predicted classes, and the recall of every class that occurs."""
    from sklearn.metrics import f1_score, recall_score

    truth, answers, occurring = np.array(labels), np.array(predicted), sorted(set(labels))
    recalls = recall_score(truth, answers, labels=occurring, average=None, zero_division=0.0)
    metrics = {
        "accuracy": float((truth == answers).mean()),
        "balanced_accuracy": float(np.mean(recalls)),
        "macro_f1": float(f1_score(truth, answers, average="macro", zero_division=0.0)),
    }
    return metrics, dict(zip(occurring, map(float, recalls), strict=True))


def seconds_per_item(models: Sequence[PackagedModel], items: Sequence[bytes | Path | str]) -> list[float]:
    """Median seconds of each model for one image or text on its own, the models taking turns on a few of them."""
    taken: list[list[float]] = [[] for _ in models]
    # The first one once to warm up; of fewer items each several times, so that a busy moment is not the median.
    for item in [items[0], *itertools.islice(itertools.cycle(items), _TIMED_ITEMS)]:
        for model, seconds in zip(models, taken, strict=True):
            began = time.perf_counter()
            model.predict([item])
            seconds.append(time.perf_counter() - began)
    return [statistics.median(seconds[1:]) for seconds in taken]


def compare(metric: str, challenger: Scores, champion: Scores) -> tuple[Gain, float]:
    """The challenger's gain over the champion on the same items, and McNemar's p-value."""
    _, labels, ours, theirs = _numbered(challenger, champion)
    values = (challenger.losses, champion.losses) if metric == "loss" else (ours, theirs)
    return paired_bootstrap(metric, labels, *values), mcnemar(labels, ours, theirs)


def compare_recalls(challenger: Scores, champion: Scores, *, tolerated: float) -> tuple[str, RecallLoss]:
    """The class whose recall has fallen the furthest beyond chance, by name, and how likely chance is."""
    names, labels, ours, theirs = _numbered(challenger, champion)
    worst = worst_recall_loss(labels, ours, theirs, tolerated=tolerated)
    return names[worst.label], worst


def compare_calibration(challenger: Scores, champion: Scores) -> Gain:
    """By how much the challenger's probabilities are closer to how often it is right."""
    ours, theirs = (
        (each.confidence, np.array(each.predicted) == np.array(each.labels)) for each in (challenger, champion)
    )
    return calibration_gain(ours, theirs)


def _numbered(challenger: Scores, champion: Scores) -> tuple[list[str], Ints, Ints, Ints]:
    """Names of classes; labels, the challenger's answers and the champion's as numbers of them, ``[N]`` each."""
    names = sorted({*challenger.labels, *challenger.predicted, *champion.predicted})
    numbers = {name: number for number, name in enumerate(names)}
    labels, ours, theirs = (
        np.array([numbers[name] for name in each], dtype=np.int64)
        for each in (challenger.labels, challenger.predicted, champion.predicted)
    )
    return names, labels, ours, theirs
