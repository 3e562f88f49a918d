"""Prediction sets: the classes that an image or text may belong to, with a guaranteed coverage of the true class.

Split conformal prediction (Vovk et al., "Algorithmic Learning in a Random World", 2005) with the sets of Sadinle, Lei
and Wasserman, "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels", 2019: all classes whose probability
reaches a threshold, which the true class reaches in the desired fraction of the held-out examples.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PredictionSets", "fit_prediction_sets"]


@dataclass(frozen=True)
class PredictionSets:
    """The threshold of probability for the set; the most probable class is always in it."""

    coverage: float
    """Minimum fraction of sets that contain the true class, for examples like those that it was fitted on."""
    threshold: float
    """0 if there were too few examples for a guarantee: then every class is in every set."""
    items: int
    """Number of images or texts that it was fitted on."""

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self)


def fit_prediction_sets(
    probabilities: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], coverage: float
) -> PredictionSets:
    """Choose the threshold on examples that were not used for training.

    With ``n`` examples, it is the k-th smallest probability of the true class, ``k = floor((n + 1) (1 - coverage))``:
    then the true class of a new example reaches it with probability ``coverage``, whatever the network.

    Args:
        probabilities: ``[N, num_classes]``, calibrated.
        labels: ``[N]``.
        coverage: above 0, below 1.
    """
    of_label = np.sort(probabilities[np.arange(len(labels)), labels])
    smallest = math.floor((len(labels) + 1) * (1 - coverage) + 1e-9)
    threshold = float(of_label[smallest - 1]) if smallest >= 1 else 0.0
    return PredictionSets(coverage, threshold, len(labels))
