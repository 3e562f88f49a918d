"""Prediction sets: the classes that an image or text may be of, which hold the true one as often as promised.

Split conformal prediction (Vovk et al., "Algorithmic Learning in a Random World", 2005) with the sets of Sadinle, Lei
and Wasserman, "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels", 2019: all classes whose probability
is at least that which all but a share of the held-out examples give their own class.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PredictionSets", "fit_prediction_sets"]


@dataclass(frozen=True)
class PredictionSets:
    """From which probability a class is in the set; the most probable one always is."""

    coverage: float
    """Share of sets that hold the true class, at least, for examples like those that it was fitted on."""
    threshold: float
    """0 where there were too few to promise anything: then every class is in every set."""
    items: int
    """Images or texts that it was fitted on."""

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self)


def fit_prediction_sets(
    probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], coverage: float
) -> PredictionSets:
    """Choose the threshold on examples that were not trained on.

    Of ``n`` of them, the k-th smallest probability of the true class with ``k = floor((n + 1) (1 - coverage))``: then a
    new example's true class is at least as probable in a share ``coverage`` of cases, whatever the network.

    Args:
        probabilities: ``[N, num_classes]``, as the model answers.
        labels: ``[N]``.
        coverage: above 0, below 1.
    """
    of_label = np.sort(probabilities[np.arange(len(labels)), labels])
    smallest = math.floor((len(labels) + 1) * (1 - coverage) + 1e-9)
    threshold = float(of_label[smallest - 1]) if smallest >= 1 else 0.0
    return PredictionSets(coverage, threshold, len(labels))
