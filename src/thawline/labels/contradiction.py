"""Which labels the features contradict, and how many wrong ones there must be."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Contradictions", "contradictions"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Contradictions:
    """The labels that are likelier wrong than worth keeping."""

    rows: Ints
    """Their numbers, the least likely label first; of each another class is likelier."""
    noise: float
    """Share of all labels that seems to be wrong, listed or not; 0 to 1."""
    accuracy: float
    """Share of the labels that were predicted from the features; 0 to 1."""


def contradictions(probabilities: Floats, labels: Ints) -> Contradictions:
    """Labels that held-out features make unlikely, as many as wrong ones are expected among them.

    How often is a class the label of examples whose features rule it out? Over all pairs of an example and a class that
    is not its likeliest, ordered by probability, the lower half are such classes, and the share of them that still are
    labels is the rate at which wrong labels fall on any class. So of the pairs below any probability it is known how
    many wrong labels to expect, and how many labels there are. The list ends where the F1 that these two predict is
    the highest. A label that is the likeliest class is never on it.

    The estimate of a rate by counting confident examples, instead of by averaging probabilities, is that of *confident
    learning* (Northcutt, Jiang and Chuang 2021). Its own rule counts every confident mistake of the probe as a wrong
    label, which is right only where mistakes are rarer than wrong labels; see ADR 37.

    Args:
        probabilities: ``[N, classes]``, of each example by a probe that has not seen it; of two classes at least.
        labels: ``[N]``.
    """
    count, classes = probabilities.shape
    own = probabilities[np.arange(count), labels]
    pairs = np.sort(probabilities, axis=None)
    lower = (classes - 1) * count // 2
    rate = np.count_nonzero(own <= pairs[lower - 1]) / lower
    every = rate * (classes - 1) * count
    order = np.argsort(own, kind="stable")
    agrees = probabilities.argmax(1) == labels
    if every == 0:
        return Contradictions(order[:0], 0.0, float(agrees.mean()))
    listed = np.arange(1, count + 1)
    wrong = np.minimum(rate * np.searchsorted(pairs, own[order], side="right"), listed)
    end = int(np.argmax(2 * wrong / (listed + every))) + 1
    rows = order[:end]
    return Contradictions(rows[~agrees[rows]], min(1.0, every / count), float(agrees.mean()))
