"""The network as it was trained, by PyTorch: the engine that every package has, and that others are compared with."""

from thawline.engines._base import ENGINE_TOLERANCE
from thawline.engines._own import OwnNetwork

__all__ = ["PyTorch"]


class PyTorch(OwnNetwork):
    """Eager PyTorch, on whatever device the network is."""

    name = "pytorch"
    tolerance = ENGINE_TOLERANCE
