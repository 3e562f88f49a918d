"""Tests of whether two samples of images, as a model sees them, come from the same distribution.

After Rabanser, Günnemann and Lipton, "Failing Loudly: An Empirical Study of Methods for Detecting Dataset Shift",
NeurIPS 2019.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Answers", "Comparison", "ShiftTest", "compare"]

Floats = npt.NDArray[np.floating[Any]]

_COMPONENTS = 32


@dataclass(frozen=True, eq=False)
class Answers:
    """A model's features and logits for ``N`` images."""

    features: Floats
    """``[N, D]``: inputs of the head, the last layer."""
    probabilities: Floats
    """``[N, num_classes]``."""

    def take(self, rows: npt.NDArray[np.bool_]) -> "Answers":
        """The answers for some of the images; ``rows`` is a mask ``[N]``."""
        return Answers(self.features[rows], self.probabilities[rows])


@dataclass(frozen=True)
class ShiftTest:
    """One of the three tests."""

    part: str
    """``features``, ``probabilities`` or ``predicted classes``."""
    method: str
    difference: float
    """Size of the shift, independent of the number of images, 0 (none) to 1: the largest distance between two
    distribution functions (Kolmogorov-Smirnov), or half the sum of the differences of the classes' shares."""
    p_value: float
    """For the whole part, corrected for the number of its dimensions."""
    threshold: float

    @property
    def drift(self) -> bool:
        """Whether the difference is significant."""
        return self.p_value <= self.threshold


@dataclass(frozen=True, eq=False)
class Comparison:
    """The differences between the new images and the reference."""

    tests: tuple[ShiftTest, ...]
    distances: Floats
    """``[M]``: distance of each new image from the centre of the reference, as a multiple of the reference's median."""


def compare(reference: Answers, new: Answers, *, alpha: float) -> Comparison:
    """Three two-sample tests with a joint false-alarm rate of at most ``alpha``, by Bonferroni's inequality.

    - Features: their principal components, each compared with a Kolmogorov-Smirnov test.
    - Probabilities: those of each class, compared in the same way ("black box shift detection"; Lipton, Wang and Smola,
      2018), which found most shifts in the paper's study.
    - Predicted classes: the chi-square statistic of their counts, with a p-value from random tables with the same
      margins, because the usual approximation fails for rarely predicted classes.

    The principal components are those of both samples together. Fitted only to the reference, they would overfit it,
    spread it more widely than any new sample, and raise false alarms. Because both samples are treated alike, every
    p-value is valid for any distribution and any number of images. The images must be independent draws: frames of one
    video are not.

    Args:
        reference: answers for ``N`` images.
        new: answers for ``M`` images, by the same model.
        alpha: false-alarm rate, divided evenly among the tests.
    """
    threshold = alpha / 3
    before, after = _components(reference.features, new.features)
    tests = (
        _kolmogorov_smirnov("features", f"{before.shape[1]} principal components", before, after, threshold),
        _kolmogorov_smirnov(
            "probabilities",
            f"{reference.probabilities.shape[1]} classes",
            reference.probabilities,
            new.probabilities,
            threshold,
        ),
        _chi_square(reference.probabilities, new.probabilities, threshold),
    )
    return Comparison(tests, _distances(before, after))


def class_shares(answers: Answers) -> Floats:
    """``[num_classes]``: share of the images for which each class is predicted."""
    shares: Floats = _counts(answers.probabilities) / len(answers.probabilities)
    return shares


def _components(reference: Floats, new: Floats) -> tuple[Floats, Floats]:
    """``[N, D]`` and ``[M, D]`` to ``[N, K]`` and ``[M, K]``, the first components of both; K is at most 32."""
    from sklearn.decomposition import PCA

    together = np.concatenate([reference, new]).astype(np.float64)
    with np.errstate(invalid="ignore"):  # constant features have no variance; the resulting ratio is not used
        components: Floats = PCA(min(_COMPONENTS, *together.shape), random_state=0).fit_transform(together)
    return components[: len(reference)], components[len(reference) :]


def _kolmogorov_smirnov(part: str, what: str, reference: Floats, new: Floats, threshold: float) -> ShiftTest:
    """Compare ``[N, K]`` with ``[M, K]``: the p-value is K times the smallest of K p-values (Bonferroni)."""
    from scipy.stats import ks_2samp

    tested = ks_2samp(reference, new)
    return ShiftTest(
        part=part,
        method=f"Kolmogorov-Smirnov, {what}",
        difference=float(tested.statistic.max()),
        p_value=min(1.0, float(tested.pvalue.min()) * reference.shape[1]),
        threshold=threshold,
    )


def _chi_square(reference: Floats, new: Floats, threshold: float) -> ShiftTest:
    """Compare the classes predicted by probabilities ``[N, num_classes]`` and ``[M, num_classes]``."""
    from scipy.stats import MonteCarloMethod, chi2_contingency

    counts = np.stack([_counts(reference), _counts(new)])
    occurring = counts[:, counts.sum(0) > 0]
    p_value = 1.0
    if occurring.shape[1] > 1:
        # Enough draws for p-values well below the threshold, in batches that fit in memory.
        draws = MonteCarloMethod(max(9999, math.ceil(30 / threshold)), batch=1000, rng=np.random.default_rng(0))
        p_value = float(chi2_contingency(occurring, correction=False, method=draws).pvalue)
    shares = counts / counts.sum(1, keepdims=True)
    difference = float(np.abs(shares[0] - shares[1]).sum() / 2)
    return ShiftTest("predicted classes", f"chi-square, {counts.shape[1]} classes", difference, p_value, threshold)


def _counts(probabilities: Floats) -> npt.NDArray[np.intp]:
    return np.bincount(probabilities.argmax(1), minlength=probabilities.shape[1])


def _distances(reference: Floats, new: Floats) -> Floats:
    """Mahalanobis distances, with the Ledoit-Wolf covariance, which is reliable for few images too."""
    from sklearn.covariance import LedoitWolf

    fitted = LedoitWolf().fit(reference)
    usual = max(math.sqrt(np.median(fitted.mahalanobis(reference))), np.finfo(float).tiny)
    distances: Floats = np.sqrt(fitted.mahalanobis(new)) / usual
    return distances
