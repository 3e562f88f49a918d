"""Confidence intervals (95 %) of metrics on the test split."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from thawline.tracking.media import Predictions, Table
from thawline.training.intervals import CONFIDENCE, Interval, proportion_interval

__all__ = ["Interval", "class_table", "metric_intervals", "proportion_interval"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_RESAMPLES = 2000
_RESAMPLED_AT_ONCE = 2**22
"""Maximum number of examples: some 100 MB."""


def metric_intervals(predictions: Predictions) -> dict[str, Interval]:
    """Accuracy, balanced accuracy and macro F1 of at least one example, as in the metrics of a trial.

    The interval of accuracy is Wilson's; the others come from 2,000 bootstrap resamples with a fixed seed (percentiles;
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). If there are no mistakes, only accuracy
    has an interval.
    """
    from scipy.stats import bootstrap

    labels, predicted = predictions.labels, predictions.predicted
    right, examples = int((labels == predicted).sum()), len(labels)
    intervals = {"accuracy": proportion_interval(right, examples)}
    if right == examples or examples == 1:
        return intervals
    for name, statistic in _statistics(len(predictions.classes)).items():
        found = bootstrap(
            (labels, predicted),
            statistic,
            paired=True,
            vectorized=True,
            axis=-1,
            n_resamples=_RESAMPLES,
            batch=max(1, _RESAMPLED_AT_ONCE // examples),
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        intervals[name] = Interval(float(statistic(labels, predicted)), float(found.low), float(found.high))
    return intervals


def class_table(predictions: Predictions) -> Table:
    """For each class: examples, recall with its 95 % interval, precision, F1; ``None`` if the denominator is 0."""
    labels, predicted = predictions.labels, predictions.predicted
    columns: dict[str, list[str | int | float | None]] = {
        name: [] for name in ("class", "examples", "recall", "recall from", "recall to", "precision", "F1")
    }
    for number, name in enumerate(predictions.classes):
        of, said = labels == number, predicted == number
        right, actual, answers = int((of & said).sum()), int(of.sum()), int(said.sum())
        recall = proportion_interval(right, actual) if actual else None
        row = (
            name,
            actual,
            *((recall.value, recall.low, recall.high) if recall else (None, None, None)),
            right / answers if answers else None,
            2 * right / (actual + answers) if actual + answers else None,
        )
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    return Table(columns)


def _statistics(classes: int) -> dict[str, Callable[..., Any]]:
    """Functions from labels and predictions ``[..., N]`` to a metric ``[...]``."""

    def counted(numbers: Ints, which: npt.NDArray[np.bool_] | None = None) -> Floats:
        """``[..., classes]``: how often each class occurs in the last axis, where ``which`` is true."""
        flat = numbers.reshape(-1, numbers.shape[-1])
        cells = flat + classes * np.arange(len(flat))[:, None]
        weights = None if which is None else which.reshape(flat.shape).ravel()
        counts = np.bincount(cells.ravel(), weights, minlength=classes * len(flat))
        return counts.reshape(*numbers.shape[:-1], classes).astype(float)

    def share(part: Floats, whole: Floats) -> Floats:
        """Mean over the classes that occur."""
        shares = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
        mean: Floats = shares.sum(-1) / (whole > 0).sum(-1)
        return mean

    def balanced_accuracy(labels: Ints, predicted: Ints, axis: int = -1) -> Floats:
        return share(counted(labels, labels == predicted), counted(labels))

    def macro_f1(labels: Ints, predicted: Ints, axis: int = -1) -> Floats:
        return share(2 * counted(labels, labels == predicted), counted(labels) + counted(predicted))

    return {"balanced accuracy": balanced_accuracy, "macro F1": macro_f1}
