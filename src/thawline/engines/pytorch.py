"""The trained network in PyTorch: the engine that every package has, and the reference for the others."""

from thawline.engines._base import ENGINE_TOLERANCE
from thawline.engines._own import OwnNetwork

__all__ = ["PyTorch"]


class PyTorch(OwnNetwork):
    """Eager PyTorch, on the network's device."""

    name = "pytorch"
    tolerance = ENGINE_TOLERANCE
