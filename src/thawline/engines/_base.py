"""The engine protocol."""

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
"""Calibrated probabilities ``[N][num_classes]``; and inputs of the head, ``[N, F]``, if the package has reference
examples."""

EngineName = Literal["auto", "pytorch", "pytorch-compiled", "onnxruntime", "openvino", "openvino-bf16"]
"""``auto`` is the fastest engine that passes the checks."""

ENGINE_TOLERANCE = 1e-3
"""Maximum difference of a probability from the trained network's, the same as the gate's for the package. Networks of
more than a hundred layers differ by some 1e-5; a wrong normalisation or class order causes far more. Two classes closer
than twice this are a tie; except for ties, every engine must predict the trained network's class."""
BF16_TOLERANCE = 2e-2
"""The same for an engine in bf16, which has eight significant bits: logits differ by some 0.03, and a probability near
one half by a quarter of the difference of two of them."""
INT8_TOLERANCE = 2e-2
"""Maximum difference of a probability of a network in int8 from the values recorded at quantisation. Rounding causes
less; a processor without VNNI, on which sums of 8-bit products overflow, causes far more."""


class Unavailable(Exception):
    """An engine cannot be used on this machine or with this package; the message is the reason."""


class Engine(Protocol):
    """Computes a network. It must be thread-safe."""

    @property
    def name(self) -> str:
        """Its name for ``--engine``."""
        ...

    @property
    def tolerance(self) -> float:
        """Maximum allowed difference of a probability from the trained network's."""
        ...

    def outputs(self, prepared: Sequence[Any]) -> Outputs:
        """One forward pass on items prepared by the package.

        Args:
            prepared: images, uint8 ``[S, S, 3]``, or tokens of texts, int32 ``[T]``; at least one.
        """
        ...

    def probabilities(self, prepared: Sequence[Any]) -> list[list[float]]:
        """Only the probabilities, ``[N][num_classes]``."""
        ...
