"""The network as PyTorch compiles it, for a GPU; on a CPU it needs a C++ compiler, and minutes."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from thawline.engines._base import ENGINE_TOLERANCE
from thawline.engines._own import OwnNetwork

__all__ = ["Compiled"]

_SIZES = (1, 2, 32)
"""Batches that it is compiled for: one image alone; two, from which PyTorch concludes that the number varies; and as
many as servers and scoring compute at once, since an algorithm may depend on the number: one is for up to 15 images.
"""


class Compiled(OwnNetwork):
    """The network after ``torch.compile``, on whatever device it is; images alone.

    All compiling happens here, which takes from seconds to minutes. What then fits no compiled graph is computed by the
    network as it is: nothing is compiled while requests wait.

    Args:
        servable: a loaded package, see :mod:`thawline.registry.servable`.
        image: as the network is shown it, uint8 ``[S, S, 3]``.
        backend: of ``torch.compile``.
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
        own.network = torch._dynamo.run(servable.network)  # by what is compiled, else as it is
        super().__init__(own)
