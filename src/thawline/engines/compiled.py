"""The network compiled by PyTorch, for GPUs; on a CPU, compiling needs a C++ compiler, and minutes."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from thawline.engines._base import ENGINE_TOLERANCE
from thawline.engines._own import OwnNetwork

__all__ = ["Compiled"]

_SIZES = (1, 2, 32)
"""Batch sizes to compile for: one image; two, from which PyTorch concludes that the size varies; and the maximum of
servers and scoring, since an algorithm may depend on the size: one is for up to 15 images.
"""


class Compiled(OwnNetwork):
    """The network after ``torch.compile``, on its device; only for images.

    All compiling happens in the constructor, and takes seconds to minutes. Inputs that fit no compiled graph are
    computed by the original network, so that nothing is compiled while requests wait.

    Args:
        servable: a loaded package, see :mod:`thawline.registry.servable`.
        image: a prepared image, uint8 ``[S, S, 3]``.
        backend: backend of ``torch.compile``.
    """

    name = "pytorch-compiled"
    tolerance = ENGINE_TOLERANCE

    def __init__(
        self, servable: Any, image: npt.NDArray[np.uint8], *, backend: str | Callable[..., Any] = "inductor"
    ) -> None:
        import torch
        import torch._dynamo

        own = copy.copy(servable)
        own.network = torch.compile(servable.network, backend=backend)
        for size in _SIZES:
            own.outputs([image] * size)
        own.network = torch._dynamo.run(servable.network)  # compiled graphs, else the original network
        super().__init__(own)
