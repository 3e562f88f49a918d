"""Networks that are built without memory, or with numbers drawn from a seed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

__all__ = ["build_without_memory", "seeded"]


_DRAWN = frozenset(
    {torch.Tensor.normal_, torch.Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_}
)
"""Where networks draw their first weights. On ``meta`` it does nothing, and yet PyTorch would load its compiler."""


class _EmptyOnMeta(TorchFunctionMode):
    """Give every ``torch.empty`` no storage: all weights of all torchvision models are made by it.

    ``with torch.device("meta")`` would be shorter but takes everything, also the small tensors that regnets compute
    their widths from, and so fails on 15 of the 80 models.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        if func in _DRAWN and (drawn := args[0] if args else kwargs["tensor"]).is_meta:
            return drawn
        return func(*args, **kwargs)


def build_without_memory(builder: Callable[[], nn.Module]) -> nn.Module:
    """What ``builder`` builds, in evaluation mode, with shapes but no numbers (PyTorch's ``meta`` device).

    Takes milliseconds and no memory where the real network takes seconds and gigabytes. The global random state is
    left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with _EmptyOnMeta():
                module = builder()
        except RuntimeError:  # it runs an image through a part of itself, to find out a size
            with torch.device("meta"):
                module = builder()
    return module.to("meta").eval()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw on the CPU from a seed for the time of the block; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would reach into the GPUs' generators too.
        torch.default_generator.manual_seed(seed)
        yield
