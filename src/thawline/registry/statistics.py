"""The statistics of a comparison on the same images: resampling, McNemar's test, recall of each class, calibration."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Gain",
    "RecallLoss",
    "calibration_error",
    "calibration_gain",
    "mcnemar",
    "paired_bootstrap",
    "worst_recall_loss",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_MEMORY = 2**23
"""Numbers held at once while resampling: 64 MB."""
_BINS = 15
_AVERAGE_CLASSES = 3
"""By how many average classes the standard error of a class's recall is moderated."""


class Gain:
    """By how much a metric is better, and how it varies over resampled test images."""

    def __init__(self, value: float, resampled: Floats) -> None:
        self.value = value
        self._resampled = resampled

    def lower(self, significance: float) -> float:
        """The bound that the gain falls below in a share of ``significance`` of the resamples."""
        return float(np.quantile(self._resampled, significance))

    def upper(self, significance: float) -> float:
        """The bound that the gain is above in a share of ``significance`` of the resamples."""
        return float(np.quantile(self._resampled, 1 - significance))


def paired_bootstrap(
    metric: str,
    labels: Ints,
    challenger: Ints | Floats,
    champion: Ints | Floats,
    *,
    resamples: int = 4000,
    seed: int = 0,
) -> Gain:
    """How much better the challenger is on ``N`` test images, and on as many drawn from them with replacement.

    Both models are scored on the same draw each time, so that images that are hard for both count for nothing (Efron
    and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 16). Images on which both models and the label are
    the same are drawn as one group, with the same result as one by one: a million images cost no more than a thousand,
    but for ``loss``, of which each image has its own.

    Args:
        metric: ``accuracy``, ``balanced_accuracy``, ``macro_f1`` or ``loss``.
        labels: ``[N]``, numbers of classes from 0.
        challenger: ``[N]``, the class that it predicts; for ``loss``, its loss on each image.
        champion: the same of the champion.
        resamples: how often to draw.
        seed: of the draws: the same question has the same answer.

    Returns:
        The gain, positive if the challenger is better, also where a lower metric is.
    """
    if metric == "loss":
        cells, counts = np.unique(np.stack([challenger, champion]), axis=1, return_counts=True)
        gain = _mean_gain(cells[1] - cells[0])
        width = counts.size
    else:
        cells, counts = np.unique(np.stack([labels, challenger, champion]), axis=1, return_counts=True)
        gain = _metric_gain(metric, cells.astype(np.int64))
        width = max(counts.size, 3 * (int(cells.max()) + 1))  # of each class what is right, what is there, what is said
    generator = np.random.default_rng(seed)
    rows = max(1, _MEMORY // width)
    drawn = []
    for start in range(0, resamples, rows):
        draws = generator.multinomial(counts.sum(), counts / counts.sum(), size=min(rows, resamples - start))
        drawn.append(gain(draws))
    return Gain(float(gain(counts[None])[0]), np.concatenate(drawn))


def mcnemar(labels: Ints, challenger: Ints, champion: Ints) -> float:
    """McNemar's exact test: how probable so uneven a split of the images that only one model gets right is by chance.

    Args:
        labels: ``[N]``.
        challenger: ``[N]``, predicted classes.
        champion: ``[N]``, predicted classes.

    Returns:
        The two-sided p-value; 1 if the models are right on the same images.
    """
    from scipy.stats import binomtest

    gained = int(((challenger == labels) & (champion != labels)).sum())
    lost = int(((challenger != labels) & (champion == labels)).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


@dataclass(frozen=True)
class RecallLoss:
    """The class whose loss of recall is the least likely to be chance, and how likely it is."""

    label: int
    """Number of the class."""
    loss: float
    """How much smaller its recall is than the champion's; negative if no class loses any."""
    p_value: float
    """How often any class of two equally good models would lose as much; 1 if none loses more than is tolerated."""


def worst_recall_loss(labels: Ints, challenger: Ints, champion: Ints, *, tolerated: float) -> RecallLoss:
    """Whether a class has lost recall beyond what chance makes of so many classes.

    Of the images of a class that only one model gets right, chance gives either model half (McNemar). So each class has
    a loss in standard errors, and the largest is compared with the largest where no class has lost anything. The
    classes are independent, and of each it is known which values its few images can give at all, so that the
    probability is exact (Westfall and Young, Resampling-Based Multiple Testing, 1993; no resampling is needed here).
    The standard error is moderated, as for thousands of genes (Smyth, Linear Models and Empirical Bayes Methods, 2004):
    it counts the images that only one model gets right of the class itself and of some average ones. With its own
    alone, a class counts for less the more it has lost. A loss that is tolerated, and a single image, count as none, by
    chance or not.

    Args:
        labels: ``[N]``, numbers of classes from 0; a class without images is no class.
        challenger: ``[N]``, predicted classes.
        champion: ``[N]``, predicted classes.
        tolerated: loss of recall of one class that is accepted, 0 to 1.
    """
    from scipy.stats import binom

    classes = int(labels.max()) + 1
    right, before = challenger == labels, champion == labels
    images, gained, lost = (
        np.bincount(labels[chosen], minlength=classes) for chosen in (slice(None), right & ~before, ~right & before)
    )
    losses = np.divide(lost - gained, images, out=np.full(classes, -np.inf), where=images > 0)
    counted = _counts(lost - gained, images, tolerated)
    if not counted.any():
        worst = int(losses.argmax())
        return RecallLoss(worst, float(losses[worst]), 1.0)
    differing = lost + gained
    usual = _AVERAGE_CLASSES * differing.sum() / len(labels)
    errors = np.sqrt(differing + usual * images)
    moderated = np.divide(lost - gained, errors, out=np.full(classes, -np.inf), where=counted)
    worst = int(moderated.argmax())
    none_so_large = 0.0  # logarithm of the probability
    cells, repeated = np.unique(np.stack([differing, images]), axis=1, return_counts=True)
    for count, of, times in zip(*cells, repeated, strict=True):
        possible = np.arange(count + 1)
        surplus = 2 * possible - count
        as_large = _counts(surplus, of, tolerated) & (surplus >= moderated[worst] * np.sqrt(count + usual * of) - 1e-9)
        none_so_large += times * np.log1p(-min(binom.pmf(possible[as_large], count, 0.5).sum(), 1.0))
    return RecallLoss(worst, float(losses[worst]), float(-np.expm1(none_so_large)))


def _counts(lost: Ints, images: Ints, tolerated: float) -> npt.NDArray[np.bool_]:
    """Whether so many images fewer are a loss."""
    counted: npt.NDArray[np.bool_] = (lost > tolerated * images + 1e-9) & (lost > 1)
    return counted


def calibration_error(confidence: Floats, correct: npt.NDArray[np.bool_]) -> float:
    """Expected calibration error over 15 equal bins of confidence (Guo et al., On Calibration of Modern Neural
    Networks, 2017): how far, on average, the probability of the predicted class is from the share of right answers.

    Args:
        confidence: ``[N]``, probability of the predicted class.
        correct: ``[N]``.

    Returns:
        0 to 1; 0 is best.
    """
    return float(np.abs(_surplus(confidence, correct).mean(0)).sum())


def calibration_gain(
    challenger: tuple[Floats, npt.NDArray[np.bool_]],
    champion: tuple[Floats, npt.NDArray[np.bool_]],
    *,
    resamples: int = 4000,
    seed: int = 0,
) -> Gain:
    """By how much the challenger's calibration error is smaller on ``N`` images, and how that varies by chance.

    On 20 images the error of a perfectly calibrated model is easily 0.1: a difference means little without its spread.
    The bins' means are drawn from the normal distribution that resampling the images tends to, both models' together,
    which costs the same for a million images as for a hundred.

    Args:
        challenger: its probability of the predicted class, ``[N]``, and whether that class was right, ``[N]``.
        champion: the same of the champion on the same images.
        resamples: how often to draw.
        seed: of the draws.

    Returns:
        Positive if the challenger is better calibrated.
    """
    each = np.concatenate([_surplus(*challenger), _surplus(*champion)], axis=1)
    mean, covariance = each.mean(0), np.cov(each, rowvar=False, bias=True) / len(each)
    drawn = np.random.default_rng(seed).multivariate_normal(mean, covariance, size=resamples, method="eigh")

    def gain(means: Floats) -> Floats:
        errors: Floats = np.abs(means[:, _BINS:]).sum(1) - np.abs(means[:, :_BINS]).sum(1)
        return errors

    return Gain(float(gain(mean[None])[0]), gain(drawn))


def _surplus(confidence: Floats, correct: npt.NDArray[np.bool_]) -> Floats:
    """``[N, bins]``: by how much each image's probability is above being right, in the bin of its probability."""
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    surplus = np.zeros((len(confidence), _BINS))
    surplus[np.arange(len(confidence)), bins] = confidence - correct
    return surplus


def _mean_gain(gains: Floats) -> Callable[[Ints], Floats]:
    return lambda draws: (draws @ gains) / draws.sum(1)


def _metric_gain(metric: str, cells: Ints) -> Callable[[Ints], Floats]:
    """From how often each (label, challenger, champion) was drawn to the challenger's metric less the champion's."""
    labels, challenger, champion = cells
    score = _SCORES[metric]
    classes = int(cells.max()) + 1

    def gain(draws: Ints) -> Floats:
        return score(draws, labels, challenger, classes) - score(draws, labels, champion, classes)

    return gain


def _accuracy(draws: Ints, labels: Ints, predicted: Ints, classes: int) -> Floats:
    accuracy: Floats = draws[:, labels == predicted].sum(1) / draws.sum(1)
    return accuracy


def _balanced_accuracy(draws: Ints, labels: Ints, predicted: Ints, classes: int) -> Floats:
    right, actual, _ = _per_class(draws, labels, predicted, classes)
    recalls = np.divide(right, actual, out=np.zeros_like(right), where=actual > 0)
    balanced: Floats = recalls.sum(1) / (actual > 0).sum(1)
    return balanced


def _macro_f1(draws: Ints, labels: Ints, predicted: Ints, classes: int) -> Floats:
    right, actual, said = _per_class(draws, labels, predicted, classes)
    both = actual + said
    f1 = np.divide(2 * right, both, out=np.zeros_like(right), where=both > 0)
    macro: Floats = f1.sum(1) / (both > 0).sum(1)
    return macro


def _per_class(draws: Ints, labels: Ints, predicted: Ints, classes: int) -> tuple[Floats, Floats, Floats]:
    """``[draws, classes]`` each: images of a class predicted rightly, images of it, images predicted as it."""
    right = labels == predicted
    sums = [_one_hot(labels, right, classes), _one_hot(labels, None, classes), _one_hot(predicted, None, classes)]
    of_right, actual, said = (np.asarray((one_hot @ draws.T).T, dtype=np.float64) for one_hot in sums)
    return of_right, actual, said


def _one_hot(numbers: Ints, chosen: npt.NDArray[np.bool_] | None, classes: int) -> Any:
    """``[classes, cells]``, sparse: with thousands of classes a dense one would take gigabytes."""
    from scipy.sparse import csr_array

    cells = np.arange(len(numbers)) if chosen is None else np.flatnonzero(chosen)
    return csr_array((np.ones(len(cells), np.int64), (numbers[cells], cells)), shape=(classes, len(numbers)))


_SCORES = {"accuracy": _accuracy, "balanced_accuracy": _balanced_accuracy, "macro_f1": _macro_f1}
