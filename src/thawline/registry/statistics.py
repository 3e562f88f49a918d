"""Statistics for a comparison on the same images: resampling, McNemar's test, recall by class, calibration."""

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
"""Maximum number of values in memory while resampling: 64 MB."""
_BINS = 15
_AVERAGE_CLASSES = 3
"""Weight of the average class in the moderated standard error of a class's recall."""


class Gain:
    """The gain in a metric, and its distribution over resampled test images."""

    def __init__(self, value: float, resampled: Floats) -> None:
        self.value = value
        self._resampled = resampled

    def lower(self, significance: float) -> float:
        """Lower bound: the gain is below it in a fraction ``significance`` of the resamples."""
        return float(np.quantile(self._resampled, significance))

    def upper(self, significance: float) -> float:
        """Upper bound: the gain is above it in a fraction ``significance`` of the resamples."""
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
    """The challenger's gain on ``N`` test images, and on as many drawn from them with replacement.

    Both models are scored on the same draws, so that images that are hard for both cancel out (Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993, chapter 16). Images with the same label and the same two predictions are drawn
    as one group, with the same result: a million images cost no more than a thousand, except for ``loss``, where each
    image has its own value.

    Args:
        metric: ``accuracy``, ``balanced_accuracy``, ``macro_f1`` or ``loss``.
        labels: ``[N]``, class indices from 0.
        challenger: ``[N]``, its predicted classes; for ``loss``, its loss on each image.
        champion: the same for the champion.
        resamples: number of draws.
        seed: seed of the draws, for reproducible results.

    Returns:
        The gain, positive if the challenger is better, also for metrics to minimise.
    """
    if metric == "loss":
        cells, counts = np.unique(np.stack([challenger, champion]), axis=1, return_counts=True)
        gain = _mean_gain(cells[1] - cells[0])
        width = counts.size
    else:
        cells, counts = np.unique(np.stack([labels, challenger, champion]), axis=1, return_counts=True)
        gain = _metric_gain(metric, cells.astype(np.int64))
        width = max(counts.size, 3 * (int(cells.max()) + 1))  # for each class: correct, actual and predicted counts
    generator = np.random.default_rng(seed)
    rows = max(1, _MEMORY // width)
    drawn = []
    for start in range(0, resamples, rows):
        draws = generator.multinomial(counts.sum(), counts / counts.sum(), size=min(rows, resamples - start))
        drawn.append(gain(draws))
    return Gain(float(gain(counts[None])[0]), np.concatenate(drawn))


def mcnemar(labels: Ints, challenger: Ints, champion: Ints) -> float:
    """McNemar's exact test on the images that only one of the models classifies correctly.

    Args:
        labels: ``[N]``.
        challenger: ``[N]``, predicted classes.
        champion: ``[N]``, predicted classes.

    Returns:
        The two-sided p-value; 1 if the models are correct on the same images.
    """
    from scipy.stats import binomtest

    gained = int(((challenger == labels) & (champion != labels)).sum())
    lost = int(((challenger != labels) & (champion == labels)).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


@dataclass(frozen=True)
class RecallLoss:
    """The class whose loss of recall is the most significant, with its p-value."""

    label: int
    """Index of the class."""
    loss: float
    """Loss of recall compared with the champion; negative if no class loses any."""
    p_value: float
    """Probability that any class of two equally good models loses as much; 1 if no loss exceeds the tolerance."""


def worst_recall_loss(labels: Ints, challenger: Ints, champion: Ints, *, tolerated: float) -> RecallLoss:
    """Test whether any class has lost recall beyond chance, corrected for the number of classes.

    Under the null hypothesis, each image that only one model classifies correctly is equally likely to favour either
    model (McNemar). Each class thus has a loss in standard errors, and the largest is compared with its null
    distribution. Classes are independent and have few possible values, so that the p-value is exact (Westfall and
    Young, Resampling-Based Multiple Testing, 1993; no resampling is needed here). The standard error is moderated, as
    for thousands of genes (Smyth, Linear Models and Empirical Bayes Methods, 2004): it counts the discordant images of
    the class itself and of some average classes. With only its own, a class would count for less the more it has lost.
    Tolerated losses, and the loss of a single image, never count.

    Args:
        labels: ``[N]``, class indices from 0; classes without images are ignored.
        challenger: ``[N]``, predicted classes.
        champion: ``[N]``, predicted classes.
        tolerated: tolerated loss of recall of a class, 0 to 1.
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
    """Whether that many lost images count as a loss."""
    counted: npt.NDArray[np.bool_] = (lost > tolerated * images + 1e-9) & (lost > 1)
    return counted


def calibration_error(confidence: Floats, correct: npt.NDArray[np.bool_]) -> float:
    """Expected calibration error over 15 equal bins of confidence (Guo et al., On Calibration of Modern Neural
    Networks, 2017): the mean difference between the probability of the predicted class and the accuracy.

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
    """The reduction of the calibration error by the challenger on ``N`` images, and its distribution.

    On 20 images, the error of a perfectly calibrated model is easily 0.1: a difference means little without its spread.
    The means of the bins, jointly for both models, are drawn from the normal distribution to which resampling
    converges; that costs the same for a million images as for a hundred.

    Args:
        challenger: its probability of the predicted class, ``[N]``, and whether that class was correct, ``[N]``.
        champion: the same for the champion on the same images.
        resamples: number of draws.
        seed: seed of the draws.

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
    """``[N, bins]``: confidence minus correctness of each image, in the bin of its confidence."""
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    surplus = np.zeros((len(confidence), _BINS))
    surplus[np.arange(len(confidence)), bins] = confidence - correct
    return surplus


def _mean_gain(gains: Floats) -> Callable[[Ints], Floats]:
    return lambda draws: (draws @ gains) / draws.sum(1)


def _metric_gain(metric: str, cells: Ints) -> Callable[[Ints], Floats]:
    """A function from counts of (label, challenger, champion) to the challenger's metric minus the champion's."""
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
    """``[draws, classes]`` each: correctly predicted, actual and predicted images of each class."""
    right = labels == predicted
    sums = [_one_hot(labels, right, classes), _one_hot(labels, None, classes), _one_hot(predicted, None, classes)]
    of_right, actual, said = (np.asarray((one_hot @ draws.T).T, dtype=np.float64) for one_hot in sums)
    return of_right, actual, said


def _one_hot(numbers: Ints, chosen: npt.NDArray[np.bool_] | None, classes: int) -> Any:
    """``[classes, cells]``, sparse: with thousands of classes, a dense matrix would take gigabytes."""
    from scipy.sparse import csr_array

    cells = np.arange(len(numbers)) if chosen is None else np.flatnonzero(chosen)
    return csr_array((np.ones(len(cells), np.int64), (numbers[cells], cells)), shape=(classes, len(numbers)))


_SCORES = {"accuracy": _accuracy, "balanced_accuracy": _balanced_accuracy, "macro_f1": _macro_f1}
