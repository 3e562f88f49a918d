"""Which labels the features contradict, and how many wrong ones there must be."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Contradictions", "contradictions"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Contradictions:
    """The labels to look at."""

    rows: Ints
    """Their numbers, the least likely label first; of each another class is likelier."""
    noise: float
    """Share of all labels that seems to be wrong, listed or not; 0 to 1."""
    accuracy: float
    """Share of the labels that were predicted from the features; 0 to 1."""


def contradictions(probabilities: Floats, labels: Ints) -> Contradictions:
    """The least likely labels, as many as there must be wrong ones.

    How often is a class the label of examples whose features rule it out? Of all pairs of an example and a class that
    is not its likeliest, the lower half by probability are such classes, and the share of them that are labels all the
    same is the rate at which wrong labels fall on any class. By it there are this many wrong labels among all pairs. A
    label that is the likeliest class is never listed.

    That a rate is found by counting examples, and not by averaging probabilities, is the idea of *confident learning*
    (Northcutt, Jiang and Chuang 2021). Its own rule counts every confident mistake of the probe as a wrong label, which
    is right only where mistakes are rarer than wrong labels; see ADR 37.

    Args:
        probabilities: ``[N, classes]``, of each example by a probe that has not seen it; of two classes at least.
        labels: ``[N]``.
    """
    count, classes = probabilities.shape
    own, agrees = probabilities[np.arange(count), labels], probabilities.argmax(1) == labels
    others = (classes - 1) * count
    ruled_out = np.partition(probabilities, others // 2 - 1, axis=None)[others // 2 - 1]
    wrong = min(count, round(others * np.count_nonzero(own <= ruled_out) / (others // 2)))
    rows = np.argsort(own, kind="stable")[:wrong]
    return Contradictions(rows[~agrees[rows]], wrong / count, float(agrees.mean()))
