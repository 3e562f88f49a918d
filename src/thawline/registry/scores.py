"""How a packaged model does on labelled images or texts, measured now, and how two compare on the same ones."""

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
"""Items that are classified before their answers are summed up."""
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


def score(model: "PackagedModel", items: Sequence[bytes | Path | str], labels: Sequence[str]) -> Scores:
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
    """What a model answers, item after item."""

    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float64]
    """``[N, num_classes]``."""
    predicted: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    among_five: list[bool] = field(default_factory=list)
    """Whether the right class is one of the five likeliest."""
    in_set: list[bool] = field(default_factory=list)
    """Whether it is in the prediction set; empty without such sets, as are the sizes."""
    set_sizes: list[int] = field(default_factory=list)
    unknown: list[bool] = field(default_factory=list)
    """Whether it is called unknown; empty where the package cannot tell."""

    @property
    def confidence(self) -> npt.NDArray[np.float64]:
        """``[N]``, the probability of what is predicted."""
        confidence: npt.NDArray[np.float64] = self.probabilities.max(1)
        return confidence

    def take(self, answer: "Prediction", label: str) -> None:
        """Add an answer to an item of this label."""
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
        """How many classes come before this one: the likelier ones, and of equals those that are named before."""
        return int((row > right).sum() + (row[: self.classes.index(label)] == right).sum())


def _answers(model: "PackagedModel", items: Sequence[bytes | Path | str], labels: Sequence[str]) -> _Answers:
    """One part after the other: what a model says of an item takes 60 kB with a thousand classes."""
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


def compare_quantised(metric: str, quantised: Scores, twin: Scores) -> Gain:
    """The gain of a copy over what it was quantised from, with one item of the commonest class lost besides.

    Where the two differ on no item, resamples of these items cannot differ either, whatever their number. One that is
    lost by assumption makes the bounds those that hold for events which did not occur (some 3 of N at 4 %), and keeps
    how often a copy that truly loses more passes near the significance. The loss metric needs no such item: it differs
    on all of them.
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
