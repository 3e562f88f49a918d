"""What an engine is."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

__all__ = ["ENGINE_TOLERANCE", "Engine", "EngineName", "Unavailable"]

EngineName = Literal["auto", "pytorch", "onnxruntime"]
"""``auto`` is the fastest of those that pass."""

ENGINE_TOLERANCE = 1e-3
"""Largest difference of a probability from the trained network's, as the gate asks of the package itself. Networks of
more than a hundred layers differ by some 1e-5; a wrong normalisation or class order by far more. Labels are then equal
but for ties: where two classes are closer to each other than twice this."""


class Unavailable(Exception):
    """An engine that cannot be used here, or not with this package; the message says why."""


class Engine(Protocol):
    """Computes a network. Thread safety: after it was made, nothing is written."""

    @property
    def name(self) -> str:
        """As ``--engine`` names it."""
        ...

    def probabilities(self, prepared: Sequence[Any]) -> list[list[float]]:
        """Calibrated probabilities ``[N][num_classes]`` of what the package prepared, by one forward pass.

        Args:
            prepared: of each image uint8 ``[S, S, 3]``, of each text its tokens, int32 ``[T]``; at least one.
        """
        ...
