"""Scores of a packaged model on labelled images or texts, measured now, and comparisons of two on the same items."""

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from thawline.data import DataKind
from thawline.exceptions import RegistryError
from thawline.registry.names import COLUMNS
from thawline.registry.statistics import (
    Gain,
    RecallLoss,
    calibration_error,
    calibration_gain,
    mcnemar,
    paired_bootstrap,
    worst_recall_loss,
)

if TYPE_CHECKING:
    from thawline.registry.packaged import PackagedModel, Prediction

__all__ = [
    "SMALLEST_PROBABILITY",
    "Scores",
    "compare",
    "compare_calibration",
    "compare_quantised",
    "compare_recalls",
    "label_metrics",
    "score",
    "seconds_per_item",
]

Ints = npt.NDArray[np.int64]

_PART = 1024
"""Number of items classified before their answers are aggregated."""
SMALLEST_PROBABILITY = 1e-12
"""Lower bound of a probability in the loss, also for classes that the model does not know."""
_TIMED_ITEMS = 15


@dataclass(frozen=True)
class Scores:
    """Scores of a model on labelled images or texts; classes are compared by name."""

    metrics: dict[str, float]
    """``loss``, ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``calibration_error``; with more than five classes,
    ``top5_accuracy``; for a package with prediction sets, the share of sets that contain the true class, ``coverage``,
    and their mean size, ``prediction_set_size``; for a package with the flag ``unknown``, the share of flagged items,
    ``false_alarms``."""
    recalls: dict[str, float]
    """Recall of every class that occurs among the labels."""
    labels: tuple[str, ...]
    """The true class of each item."""
    predicted: tuple[str, ...]
    """The predicted class of each item."""
    losses: npt.NDArray[np.float64] = field(repr=False, compare=False)
    """``-log`` of the true class's probability, for each item."""
    confidence: npt.NDArray[np.float64] = field(repr=False, compare=False)
    """Probability of the predicted class, for each item."""
    classes: tuple[str, ...]
    """Classes of the model."""
    probabilities: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)), repr=False, compare=False)
    """``[N, num_classes]`` in the order of ``classes``, calibrated."""
    seconds_per_item: float | None = None
    """Median time for a single image or text, including decoding or tokenizing."""
    bytes: int | None = None
    """Size of the package."""
    parity: float | None = None
    """Largest difference of a probability between the package and the trained network, measured at packaging."""
    kind: DataKind = "images"
    """Kind of the items."""


def score(model: "PackagedModel", items: Sequence[bytes | Path | str], labels: Sequence[str]) -> Scores:
    """Classify images or texts and compare the predictions with their labels.

    The classes are those of the labels, not the model's: a class that the model does not know is always missed. The
    loss is the mean of ``-log`` of the true class's probability (at least 1e-12); other metrics are scikit-learn's.

    Args:
        model: to score.
        items: encoded images or image files, or texts for a text model; at least one.
        labels: class names, one per item.

    Raises:
        RegistryError: if the model cannot read an item, naming it.
    """
    word = COLUMNS[model.kind]
    if not items or len(items) != len(labels):
        raise RegistryError(
            f"There must be at least one {word}, and as many labels, but got {len(items)} and {len(labels)} labels."
        )
    answers = _answers(model, items, labels)
    of_labels, recalls = label_metrics(labels, answers.predicted)
    metrics = {
        "loss": float(np.mean(answers.losses)),
        **of_labels,
        "calibration_error": calibration_error(answers.confidence, np.array(labels) == np.array(answers.predicted)),
    }
    if len(answers.classes) > 5:
        metrics["top5_accuracy"] = float(np.mean(answers.among_five))
    if answers.in_set:
        metrics["coverage"] = float(np.mean(answers.in_set))
        metrics["prediction_set_size"] = float(np.mean(answers.set_sizes))
    if answers.unknown:
        metrics["false_alarms"] = float(np.mean(answers.unknown))
    return Scores(
        metrics=metrics,
        recalls=recalls,
        labels=tuple(labels),
        predicted=tuple(answers.predicted),
        losses=np.array(answers.losses),
        confidence=answers.confidence,
        classes=answers.classes,
        probabilities=answers.probabilities,
        bytes=model.bytes,
        parity=model.parity,
        kind=model.kind,
    )


@dataclass
class _Answers:
    """A model's answers, item by item."""

    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float64]
    """``[N, num_classes]``."""
    predicted: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    among_five: list[bool] = field(default_factory=list)
    """Whether the true class is among the five most likely."""
    in_set: list[bool] = field(default_factory=list)
    """Whether the true class is in the prediction set; empty without sets, like the sizes."""
    set_sizes: list[int] = field(default_factory=list)
    unknown: list[bool] = field(default_factory=list)
    """Whether the item is flagged unknown; empty if the package cannot tell."""

    @property
    def confidence(self) -> npt.NDArray[np.float64]:
        """``[N]``, the probability of the predicted class."""
        confidence: npt.NDArray[np.float64] = self.probabilities.max(1)
        return confidence

    def take(self, answer: "Prediction", label: str) -> None:
        """Add the answer for an item with this label."""
        row = self.probabilities[len(self.predicted)]
        row[:] = list(answer.probabilities.values())
        self.predicted.append(answer.class_name)
        right = answer.probabilities.get(label)
        self.losses.append(-math.log(max(right or 0.0, SMALLEST_PROBABILITY)))
        self.among_five.append(right is not None and self._place(row, label, right) < 5)
        if answer.prediction_set is not None:
            self.in_set.append(label in answer.prediction_set)
            self.set_sizes.append(len(answer.prediction_set))
        if answer.unknown is not None:
            self.unknown.append(answer.unknown)

    def _place(self, row: npt.NDArray[np.float64], label: str, right: float) -> int:
        """The rank of a class, from 0: the number of more likely classes, and of equally likely ones before it."""
        return int((row > right).sum() + (row[: self.classes.index(label)] == right).sum())


def _answers(model: "PackagedModel", items: Sequence[bytes | Path | str], labels: Sequence[str]) -> _Answers:
    """Classify in parts: with a thousand classes, an item's answer takes 60 kB."""
    classes = tuple(model.servable.classes)
    answers = _Answers(classes, np.empty((len(items), len(classes))))
    for start in range(0, len(items), _PART):
        part = slice(start, start + _PART)
        for item, answer, label in zip(items[part], model.predict(items[part]), labels[part], strict=True):
            if isinstance(answer, str):
                which = item if isinstance(item, Path) else f"{COLUMNS[model.kind]} {len(answers.predicted)}"
                raise RegistryError(f"{model.name} cannot read {which}: {answer}")
            answers.take(answer, label)
    return answers


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


def seconds_per_item(models: "Sequence[PackagedModel]", items: Sequence[bytes | Path | str]) -> list[float]:
    """Median seconds of each model for a single image or text, measured on a few items in alternation."""
    taken: list[list[float]] = [[] for _ in models]
    # The first item once for warm-up; few items are repeated, so that a busy moment does not become the median.
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


def compare_quantised(metric: str, quantised: Scores, twin: Scores) -> Gain:
    """The gain of a quantised copy over its original, with one additional lost item of the most frequent class.

    If the two differ on no item, resamples cannot differ either, however many items there are. The additional item
    makes the bounds valid for events that did not occur (some 3 of N at 4 %), and keeps the pass rate of copies that
    truly lose more near the significance. The loss metric needs no such item, because it differs on every item.
    """
    if metric == "loss":
        return compare(metric, quantised, twin)[0]
    _, labels, ours, theirs = _numbered(quantised, twin)
    commonest = int(np.bincount(labels).argmax())
    another = int(commonest == 0)
    return paired_bootstrap(
        metric, np.append(labels, commonest), np.append(ours, another), np.append(theirs, commonest)
    )


def compare_recalls(challenger: Scores, champion: Scores, *, tolerated: float) -> tuple[str, RecallLoss]:
    """The name of the class whose recall has fallen the furthest beyond chance, and its p-value."""
    names, labels, ours, theirs = _numbered(challenger, champion)
    worst = worst_recall_loss(labels, ours, theirs, tolerated=tolerated)
    return names[worst.label], worst


def compare_calibration(challenger: Scores, champion: Scores) -> Gain:
    """The challenger's gain in calibration over the champion."""
    ours, theirs = (
        (each.confidence, np.array(each.predicted) == np.array(each.labels)) for each in (challenger, champion)
    )
    return calibration_gain(ours, theirs)


def _numbered(challenger: Scores, champion: Scores) -> tuple[list[str], Ints, Ints, Ints]:
    """Names of classes; labels, the challenger's and the champion's predictions as indices, ``[N]`` each."""
    names = sorted({*challenger.labels, *challenger.predicted, *champion.predicted})
    numbers = {name: number for number, name in enumerate(names)}
    labels, ours, theirs = (
        np.array([numbers[name] for name in each], dtype=np.int64)
        for each in (challenger.labels, challenger.predicted, champion.predicted)
    )
    return names, labels, ours, theirs
