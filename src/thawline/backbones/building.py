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
    """Let ``torch.empty``, which creates all weights of torchvision's models, allocate no storage.

    ``with torch.device("meta")`` would be shorter, but also applies to small tensors such as those from which regnets
    compute their widths, and so fails on 15 of the 80 models.
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
    """Build a network in evaluation mode, with shapes but no values (PyTorch's ``meta`` device).

    This takes milliseconds and no memory, while the real network takes seconds and gigabytes. The global random state
    is unchanged.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with _EmptyOnMeta():
                module = builder()
        except RuntimeError:  # it runs an image through a part of itself to determine a size
            with torch.device("meta"):
                module = builder()
    return module.to("meta").eval()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's random generator within the block; the global random state is unchanged afterwards."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which also seeds the GPUs' generators.
        torch.default_generator.manual_seed(seed)
        yield
