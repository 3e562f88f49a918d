"""Two samples of images, as a model sees them: do they come from one distribution?

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
    """``[N, D]``: what the head, the last layer, is given."""
    probabilities: Floats
    """``[N, num_classes]``."""

    def take(self, rows: npt.NDArray[np.bool_]) -> "Answers":
        """Those of some of the images; ``rows`` is a mask ``[N]``."""
        return Answers(self.features[rows], self.probabilities[rows])


@dataclass(frozen=True)
class ShiftTest:
    """One of the three tests."""

    part: str
    """``features``, ``probabilities`` or ``predicted classes``."""
    method: str
    difference: float
    """How large the shift is, whatever the number of images, 0 (none) to 1: the largest distance between two
    distribution functions (Kolmogorov-Smirnov), or half the sum of the differences of the classes' shares."""
    p_value: float
    """Of the whole part, corrected for the number of its dimensions."""
    threshold: float

    @property
    def drift(self) -> bool:
        """Whether so large a difference is more than chance."""
        return self.p_value <= self.threshold


@dataclass(frozen=True, eq=False)
class Comparison:
    """What distinguishes the new images from the reference."""

    tests: tuple[ShiftTest, ...]
    distances: Floats
    """``[M]``: how far each new image is from the middle of the reference, as a multiple of the reference's median."""


def compare(reference: Answers, new: Answers, *, alpha: float) -> Comparison:
    """Three two-sample tests whose false-alarm rate is together at most ``alpha``, by Bonferroni's inequality.

    - Features: their principal components, each compared by Kolmogorov's and Smirnov's test.
    - Probabilities: those of each class, compared in the same way ("black box shift detection"; Lipton, Wang and Smola,
      2018), which found most shifts in the paper's study.
    - Predicted classes: the chi-square statistic of their counts, with a p-value from random tables of the same
      margins, because the usual approximation fails for classes that are seldom predicted.

    The principal components are those of both samples together. Fitted to the reference alone they would follow its
    chance, spread it wider than any new sample, and raise false alarms. As it is, the samples are treated alike until
    they are compared, so that every p-value holds for any distribution and any number of images. They must be
    independent draws: frames of one video are not.

    Args:
        reference: ``N`` images.
        new: ``M`` images, through the same model.
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
    """``[num_classes]``: share of the images that each class is predicted for."""
    shares: Floats = _counts(answers.probabilities) / len(answers.probabilities)
    return shares


def _components(reference: Floats, new: Floats) -> tuple[Floats, Floats]:
    """``[N, D]`` and ``[M, D]`` to ``[N, K]`` and ``[M, K]``, the first components of both; K is at most 32."""
    from sklearn.decomposition import PCA

    together = np.concatenate([reference, new]).astype(np.float64)
    with np.errstate(invalid="ignore"):  # of features that never vary: a share of no variance, which nobody reads
        components: Floats = PCA(min(_COMPONENTS, *together.shape), random_state=0).fit_transform(together)
    return components[: len(reference)], components[len(reference) :]


def _kolmogorov_smirnov(part: str, what: str, reference: Floats, new: Floats, threshold: float) -> ShiftTest:
    """``[N, K]`` against ``[M, K]``: the smallest of K p-values counts, K times as large (Bonferroni)."""
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
    """Of the classes that ``[N, num_classes]`` and ``[M, num_classes]`` probabilities predict."""
    from scipy.stats import MonteCarloMethod, chi2_contingency

    counts = np.stack([_counts(reference), _counts(new)])
    occurring = counts[:, counts.sum(0) > 0]
    p_value = 1.0
    if occurring.shape[1] > 1:
        # Enough draws that the smallest p-value is well below the threshold, in batches that fit into memory.
        draws = MonteCarloMethod(max(9999, math.ceil(30 / threshold)), batch=1000, rng=np.random.default_rng(0))
        p_value = float(chi2_contingency(occurring, correction=False, method=draws).pvalue)
    shares = counts / counts.sum(1, keepdims=True)
    difference = float(np.abs(shares[0] - shares[1]).sum() / 2)
    return ShiftTest("predicted classes", f"chi-square, {counts.shape[1]} classes", difference, p_value, threshold)


def _counts(probabilities: Floats) -> npt.NDArray[np.intp]:
    return np.bincount(probabilities.argmax(1), minlength=probabilities.shape[1])


def _distances(reference: Floats, new: Floats) -> Floats:
    """Mahalanobis' distance, with Ledoit's and Wolf's covariance, which is sound for few images too."""
    from sklearn.covariance import LedoitWolf

    fitted = LedoitWolf().fit(reference)
    usual = max(math.sqrt(np.median(fitted.mahalanobis(reference))), np.finfo(float).tiny)
    distances: Floats = np.sqrt(fitted.mahalanobis(new)) / usual
    return distances
