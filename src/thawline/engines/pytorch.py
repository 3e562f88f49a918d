"""The network as it was trained, by PyTorch: the engine that every package has, and that others are compared with."""

from collections.abc import Sequence
from typing import Any

from thawline.engines._base import ENGINE_TOLERANCE, Outputs

__all__ = ["PyTorch"]


class PyTorch:
    """Eager PyTorch, on whatever device the network is.

    Args:
        servable: a loaded package, see :mod:`thawline.registry.servable`.
    """

    name = "pytorch"
    tolerance = ENGINE_TOLERANCE

    def __init__(self, servable: Any) -> None:
        self._compute = servable.outputs

    def outputs(self, prepared: Sequence[Any]) -> Outputs:
        """See :class:`~thawline.engines.Engine`."""
        found: Outputs = self._compute(list(prepared))
        return found

    def probabilities(self, prepared: Sequence[Any]) -> list[list[float]]:
        """See :class:`~thawline.engines.Engine`."""
        return self.outputs(prepared)[0]
