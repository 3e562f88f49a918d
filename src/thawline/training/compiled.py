"""A network compiled by PyTorch, used for full batches."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from thawline.training.observation import Observer

__all__ = ["BACKEND", "Compiled"]

BACKEND: str | Callable[..., Any] = "inductor"
"""Backend of ``torch.compile``. It generates kernels, so it needs Triton on a GPU and a C++ compiler on a CPU."""


class Compiled(nn.Module):
    """A network compiled for batches of one size, when the first of them arrives. Other batches run uncompiled.

    Compiling takes seconds to minutes, so the shorter last batch of an epoch is not worth it. Steps whose gradients are
    observed run uncompiled too: hooks would break the compiled graph into pieces.
    """

    def __init__(self, network: nn.Module, rows: int, observer: Observer | None) -> None:
        """Wrap a network without compiling it yet.

        Args:
            network: takes a tensor ``[n, ...]``. Its parameters become this module's.
            rows: ``n`` of the batches to run compiled.
            observer: observer attached to the network.
        """
        super().__init__()
        self.network = network
        self._rows, self._observer = rows, observer
        self._compiled = (torch.compile(network, dynamic=False, backend=BACKEND),)  # in a tuple: not a submodule

    def forward(self, batch: Tensor) -> Tensor:
        """The result of ``network``, except for the last bits."""
        (compiled,) = self._compiled
        is_watched = self._observer is not None and self._observer.is_watching
        result: Tensor = (self.network if is_watched or len(batch) != self._rows else compiled)(batch)
        return result
