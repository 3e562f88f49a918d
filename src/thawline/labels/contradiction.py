"""Labels that contradict the features, and an estimate of the number of wrong labels."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Contradictions", "contradictions"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Contradictions:
    """The suspect labels."""

    rows: Ints
    """Row numbers, the least likely label first; for each, another class is more likely."""
    noise: float
    """Estimated share of wrong labels, listed or not; 0 to 1."""
    accuracy: float
    """Share of labels that the features predict correctly; 0 to 1."""


def contradictions(probabilities: Floats, labels: Ints) -> Contradictions:
    """Find the least likely labels, as many as the estimated number of wrong ones.

    How often is a class the label of examples whose features rule it out? Among all pairs of an example and a class
    other than its most likely one, the half with the lower probabilities are classes that the features rule out. The
    share of these that are labels nevertheless is the rate of wrong labels per pair, from which their total number
    follows. A label that is the most likely class is never listed.

    Estimating a rate by counting examples, not by averaging probabilities, is the idea of *confident learning*
    (Northcutt, Jiang and Chuang 2021). Its own rule counts every confident mistake of the probe as a wrong label, which
    is correct only if mistakes are rarer than wrong labels; see ADR 37.

    Args:
        probabilities: ``[N, classes]``, for each example from a probe that has not seen it; at least two classes.
        labels: ``[N]``.
    """
    count, classes = probabilities.shape
    own, agrees = probabilities[np.arange(count), labels], probabilities.argmax(1) == labels
    others = (classes - 1) * count
    ruled_out = np.partition(probabilities, others // 2 - 1, axis=None)[others // 2 - 1]
    wrong = min(count, round(others * np.count_nonzero(own <= ruled_out) / (others // 2)))
    rows = np.argsort(own, kind="stable")[:wrong]
    return Contradictions(rows[~agrees[rows]], wrong / count, float(agrees.mean()))
