"""Probabilities that mean what they say: one temperature for all logits, fitted on what was not trained on."""

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from thawline.registry.statistics import calibration_error

__all__ = ["Calibration", "calibrate"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SHOWN_BINS = 5


@dataclass(frozen=True)
class Calibration:
    """The temperature, and what it did to the images or texts that it was fitted on."""

    temperature: float
    items: int
    """Images or texts that it was fitted on."""
    error_before: float
    """Expected calibration error, 0 to 1."""
    error_after: float
    reliability: tuple[dict[str, str], ...]
    """For fifths of the probability: what share of the answers that sure was right, and how many there were."""

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return asdict(self)


def calibrate(logits: Floats, labels: Ints) -> Calibration:
    """Fit the number by which logits are divided so that the probabilities have the least loss.

    It changes no prediction, only how sure the model says it is: above 1 less, below 1 more (Guo et al., On Calibration
    of Modern Neural Networks, 2017).

    Args:
        logits: ``[N, num_classes]`` on images or texts that were not trained on.
        labels: ``[N]``.

    Returns:
        With a temperature between 0.05 and 20.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax, softmax

    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    temperature = float(np.exp(found.x))
    correct = logits.argmax(1) == labels
    before, after = (softmax(logits / divisor, axis=1).max(1) for divisor in (1.0, temperature))
    return Calibration(
        temperature=temperature,
        items=len(labels),
        error_before=calibration_error(before, correct),
        error_after=calibration_error(after, correct),
        reliability=tuple(_reliability(before, after, correct)),
    )


def _reliability(before: Floats, after: Floats, correct: npt.NDArray[np.bool_]) -> list[dict[str, str]]:
    edges = np.linspace(0, 1, _SHOWN_BINS + 1)
    return [
        {
            "confidence": f"{low:.1f} to {high:.1f}",
            "before": _share(correct[(before > low) & (before <= high)]),
            "after": _share(correct[(after > low) & (after <= high)]),
        }
        for low, high in pairwise(edges)
    ]


def _share(correct: npt.NDArray[np.bool_]) -> str:
    return f"{correct.mean():.2f}, {len(correct)}" if len(correct) else "none"
