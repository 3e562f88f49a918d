"""Unknown images and texts: those whose features lie farther from all trained ones than known ones do.

The distance to the nearest neighbour of Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", 2022:
of what the head is given, scaled to length 1. The threshold is chosen on validation, by split conformal prediction.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thawline.registry.servable import distances, scaled

__all__ = ["REFERENCE_FILE", "Reference", "fit_reference", "reference_rows", "write_reference"]

REFERENCE_FILE = "reference.safetensors"
"""Of a package: the features of the examples that others are compared with."""
_ROWS = 256
"""Of all classes together, but one of each class at least: a comparison costs as many products as there are numbers,
and each row of an EfficientNet's features takes 2.5 kB."""
_FARTHEST = 2.0
"""Distance of opposite features: nothing lies farther."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reference:
    """Features of trained examples, and how far from the nearest of them an item is unknown."""

    features: npt.NDArray[np.float16]
    """``[rows, F]``, each of length 1."""
    head: str
    """The network's layer whose input they are."""
    false_alarms: float
    """Share of items of the known classes that are called unknown, at most; for examples like those of validation."""
    threshold: float
    """A larger distance is unknown; 2 where there were too few examples to promise anything, so that nothing is."""
    items: int
    """Validation examples that it was fitted on."""

    def as_dict(self) -> dict[str, Any]:
        """All but the features, as JSON."""
        return {
            "head": self.head,
            "false_alarms": self.false_alarms,
            "threshold": self.threshold,
            "items": self.items,
            "rows": len(self.features),
        }


def reference_rows(labels: Sequence[int] | npt.NDArray[np.int64], most: int = _ROWS) -> npt.NDArray[np.int64]:
    """Which training examples become the reference, rising: as many of each class, evenly spread over the class.

    Args:
        labels: of all training examples, ``[N]``.
        most: rows, unless there are more classes.
    """
    of_class = [np.flatnonzero(np.asarray(labels) == label) for label in np.unique(labels)]
    left, chosen = most, []
    for number, rows in enumerate(sorted(of_class, key=len)):  # small classes leave their share to the large ones
        taken = min(len(rows), max(1, left // (len(of_class) - number)))
        chosen.append(rows[np.linspace(0, len(rows) - 1, taken).round().astype(np.int64)])
        left -= taken
    return np.sort(np.concatenate(chosen))


def fit_reference(trained: Floats, validation: Floats, *, head: str, false_alarms: float) -> Reference:
    """Choose the threshold on examples of the known classes that were not trained on.

    Of ``n`` of them, the k-th smallest distance with ``k = ceil((n + 1) (1 - false_alarms))``: then a new example of
    the known classes is farther away in a share ``false_alarms`` of cases at most, whatever the network.

    Args:
        trained: features of the examples that others are compared with, ``[rows, F]``.
        validation: features of the others, ``[N, F]``.
        head: the network's layer whose input they are.
        false_alarms: above 0, below 1.
    """
    features = scaled(trained).astype(np.float16)
    found = np.sort(distances(validation, features.astype(np.float32)))
    needed = math.ceil((len(found) + 1) * (1 - false_alarms) - 1e-9)
    threshold = float(found[needed - 1]) if needed <= len(found) else _FARTHEST
    return Reference(features, head, false_alarms, threshold, len(found))


def write_reference(reference: Reference, folder: Path) -> None:
    """Write the features as a package holds them."""
    import safetensors.numpy

    safetensors.numpy.save_file({"features": reference.features}, folder / REFERENCE_FILE)
