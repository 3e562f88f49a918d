"""Unknown images and texts: those whose features are unusually far from all training examples.

The distance is that to the nearest neighbour (Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors",
2022), between inputs of the head scaled to length 1. The threshold is chosen on validation, by split conformal
prediction.
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
"""File of a package with the features of its reference examples."""
_ROWS = 256
"""Maximum number of reference examples over all classes, but at least one per class: a comparison costs one product per
value, and each row of an EfficientNet's features takes 2.5 kB."""
_FARTHEST = 2.0
"""Distance of opposite features, the maximum."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reference:
    """Features of training examples, and the distance from the nearest above which an item is unknown."""

    features: npt.NDArray[np.float16]
    """``[rows, F]``, each of length 1."""
    head: str
    """The network's layer whose input they are."""
    false_alarms: float
    """Maximum fraction of items of known classes that are flagged unknown, for examples like those of validation."""
    threshold: float
    """Items at a larger distance are unknown; 2, which disables the flag, if there were too few examples."""
    items: int
    """Number of validation examples that it was fitted on."""

    def as_dict(self) -> dict[str, Any]:
        """Everything except the features, as JSON."""
        return {
            "head": self.head,
            "false_alarms": self.false_alarms,
            "threshold": self.threshold,
            "items": self.items,
            "rows": len(self.features),
        }


def reference_rows(labels: Sequence[int] | npt.NDArray[np.int64], most: int = _ROWS) -> npt.NDArray[np.int64]:
    """Indices of the reference examples, ascending: equally many of each class, evenly spread over the class.

    Args:
        labels: labels of all training examples, ``[N]``.
        most: maximum number of rows, unless there are more classes.
    """
    of_class = [np.flatnonzero(np.asarray(labels) == label) for label in np.unique(labels)]
    left, chosen = most, []
    for number, rows in enumerate(sorted(of_class, key=len)):  # small classes leave room for large ones
        taken = min(len(rows), max(1, left // (len(of_class) - number)))
        chosen.append(rows[np.linspace(0, len(rows) - 1, taken).round().astype(np.int64)])
        left -= taken
    return np.sort(np.concatenate(chosen))


def fit_reference(trained: Floats, validation: Floats, *, head: str, false_alarms: float) -> Reference:
    """Choose the threshold on examples of the known classes that were not used for training.

    With ``n`` examples, it is the k-th smallest distance for ``k = ceil((n + 1) (1 - false_alarms))``: then a new
    example of the known classes is farther away with probability ``false_alarms`` at most, whatever the network.

    Args:
        trained: features of the reference examples, ``[rows, F]``.
        validation: features of the validation examples, ``[N, F]``.
        head: the network's layer whose input they are.
        false_alarms: above 0, below 1.
    """
    features = scaled(trained).astype(np.float16)
    found = np.sort(distances(validation, features.astype(np.float32)))
    needed = math.ceil((len(found) + 1) * (1 - false_alarms) - 1e-9)
    threshold = float(found[needed - 1]) if needed <= len(found) else _FARTHEST
    return Reference(features, head, false_alarms, threshold, len(found))


def write_reference(reference: Reference, folder: Path) -> None:
    """Write the features in the format of a package."""
    import safetensors.numpy

    safetensors.numpy.save_file({"features": reference.features}, folder / REFERENCE_FILE)
