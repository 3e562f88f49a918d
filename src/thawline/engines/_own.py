"""Engines that use the package's own computation."""

from collections.abc import Sequence
from typing import Any

from thawline.engines._base import Outputs

__all__ = ["OwnNetwork"]


class OwnNetwork:
    """The network of a loaded package, computed by the package itself; subclasses name the engine.

    Args:
        servable: a loaded package, see :mod:`thawline.registry.servable`.
    """

    name: str
    tolerance: float

    def __init__(self, servable: Any) -> None:
        self._compute = servable.outputs

    def outputs(self, prepared: Sequence[Any]) -> Outputs:
        """See :class:`~thawline.engines.Engine`."""
        found: Outputs = self._compute(list(prepared))
        return found

    def probabilities(self, prepared: Sequence[Any]) -> list[list[float]]:
        """See :class:`~thawline.engines.Engine`."""
        return self.outputs(prepared)[0]
