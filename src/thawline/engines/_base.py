"""What an engine is."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "BF16_TOLERANCE",
    "ENGINE_TOLERANCE",
    "INT8_TOLERANCE",
    "Engine",
    "EngineName",
    "Outputs",
    "Unavailable",
]

Outputs: TypeAlias = tuple[list[list[float]], npt.NDArray[np.float32] | None]
"""Calibrated probabilities ``[N][num_classes]``; and what the head was given, ``[N, F]``, where the package compares it
with that of known examples."""

EngineName = Literal["auto", "pytorch", "pytorch-compiled", "onnxruntime", "openvino", "openvino-bf16"]
"""``auto`` is the fastest of those that pass."""

ENGINE_TOLERANCE = 1e-3
"""Largest difference of a probability from the trained network's, as the gate asks of the package itself. Networks of
more than a hundred layers differ by some 1e-5; a wrong normalisation or class order by far more. Two classes that are
closer to each other than twice this are a tie; but for ties every engine must name the trained network's class."""
BF16_TOLERANCE = 2e-2
"""The same for an engine that computes in bf16, whose numbers have eight significant bits: logits differ by some 0.03,
and a probability near one half by a quarter of the difference of two of them."""
INT8_TOLERANCE = 2e-2
"""Largest difference of a probability of a network in int8 from what the same network answered where it was quantised.
Rounding differs by less; a processor without VNNI, on which sums of 8-bit products overflow, by far more."""


class Unavailable(Exception):
    """An engine that cannot be used here, or not with this package; the message says why."""


class Engine(Protocol):
    """Computes a network. Several threads may ask it at once."""

    @property
    def name(self) -> str:
        """As ``--engine`` names it."""
        ...

    @property
    def tolerance(self) -> float:
        """Largest difference of a probability from the trained network's with which it is used."""
        ...

    def outputs(self, prepared: Sequence[Any]) -> Outputs:
        """One forward pass of what the package prepared.

        Args:
            prepared: of each image uint8 ``[S, S, 3]``, of each text its tokens, int32 ``[T]``; at least one.
        """
        ...

    def probabilities(self, prepared: Sequence[Any]) -> list[list[float]]:
        """The probabilities alone, ``[N][num_classes]``."""
        ...
