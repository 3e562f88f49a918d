"""A network compiled by PyTorch, used for full batches."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from thawline.training.observation import Observer
from thawline.training.runtime import is_out_of_memory

__all__ = ["BACKEND", "Compiled"]

_log = logging.getLogger(__name__)

BACKEND: str | Callable[..., Any] = "inductor"
"""Backend of ``torch.compile``. It generates kernels, so it needs Triton on a GPU and a C++ compiler on a CPU."""


class Compiled(nn.Module):
    """A network compiled for batches of one size, when the first of them arrives. Other batches run uncompiled.

    Compiling takes seconds to minutes, so the shorter last batch of an epoch is not worth it. Steps whose gradients are
    observed run uncompiled too: hooks would break the compiled graph into pieces. A network that cannot be compiled is
    used uncompiled: a study may resume on a machine without a compiler.
    """

    def __init__(
        self,
        network: nn.Module,
        rows: int,
        observer: Observer | None,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        """Wrap a network without compiling it yet.

        Args:
            network: takes a tensor ``[n, ...]``. Its parameters become this module's.
            rows: ``n`` of the batches to run compiled.
            observer: observer attached to the network.
            on_failure: called once with the reason if the network cannot be compiled; by default, a warning is logged.
        """
        super().__init__()
        self.network = network
        self._rows, self._observer, self._on_failure = rows, observer, on_failure or _warn
        torch._dynamo.reset()  # earlier networks count towards a limit, after which nothing is compiled any more
        self._compiled = (torch.compile(network, dynamic=False, backend=BACKEND),)  # in a tuple: not a submodule

    def forward(self, batch: Tensor) -> Tensor:
        """The result of ``network``, except for the last bits."""
        (compiled,) = self._compiled
        is_watched = self._observer is not None and self._observer.is_watching
        if is_watched or len(batch) != self._rows:
            return self._uncompiled(batch)
        try:
            result: Tensor = compiled(batch)
        except torch._dynamo.exc.TorchDynamoException as error:
            if is_out_of_memory(error):
                raise
            self._compiled = (self.network,)
            self._on_failure(" ".join(str(error).strip().splitlines()[:2]))  # "backend=… raised:", and what
            return self._uncompiled(batch)
        return result

    def _uncompiled(self, batch: Tensor) -> Tensor:
        result: Tensor = self.network(batch)
        return result


def _warn(reason: str) -> None:
    _log.warning("training continues uncompiled, because compiling failed: %s", reason)
