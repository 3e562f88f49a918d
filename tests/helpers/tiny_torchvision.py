"""torchvision's networks with fewer and narrower blocks of the same types, for families whose smallest one is slow."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from inspect import signature
from typing import Any
from unittest import mock

from torch import nn

__all__ = ["TINY", "tiny"]

_FOUR = [1, 1, 2, 1]
"""Blocks of four stages, one of which has more than one."""
_NARROW = 48
"""Outputs of the two layers before the head of AlexNet and VGG, instead of 4096."""


class _NarrowLinear(nn.Linear):
    """Creates a plain linear layer with :data:`_NARROW` instead of 4096."""

    def __new__(cls, *sizes: int) -> nn.Linear:  # type: ignore[misc]
        return nn.Linear(*(_NARROW if size == 4096 else size for size in sizes))


class _NarrowLayers:
    """``torch.nn`` with narrow hidden layers in classifiers."""

    Linear = _NarrowLinear

    def __getattr__(self, name: str) -> Any:
        return getattr(nn, name)


def _with(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """A function that is always called with these settings."""

    def changed(*arguments: Any, **given: Any) -> Any:
        call = signature(function).bind(*arguments, **given)
        call.arguments.update(settings)
        return function(*call.args, **call.kwargs)

    return changed


def _narrow_classifier(module: Any) -> dict[str, Any]:
    return {"nn": _NarrowLayers()}


def _convnext(module: Any) -> dict[str, Any]:
    widths = (16, 24, 32, 48, None)
    blocks = [module.CNBlockConfig(*both, count) for *both, count in zip(widths, widths[1:], _FOUR, strict=False)]
    return {"_convnext": _with(module._convnext, block_setting=blocks)}


def _densenet(module: Any) -> dict[str, Any]:
    settings = {"growth_rate": 8, "block_config": (2, 2, 3, 2), "num_init_features": 16}
    return {"_densenet": _with(module._densenet, **settings)}


def _efficientnet_v2(module: Any) -> dict[str, Any]:
    fused, usual = module.FusedMBConvConfig, module.MBConvConfig
    blocks = [
        fused(1, 3, 1, 16, 16, 1),
        fused(4, 3, 2, 16, 24, 1),
        usual(4, 3, 2, 24, 32, 2),
        usual(6, 3, 1, 32, 40, 1),
    ]
    return {"_efficientnet": _with(module._efficientnet, inverted_residual_setting=blocks, last_channel=64)}


def _maxvit(module: Any) -> dict[str, Any]:
    settings = {"stem_channels": 8, "block_channels": [8, 16, 24, 32], "block_layers": _FOUR, "head_dim": 8}
    return {"_maxvit": _with(module._maxvit, **settings)}


def _swin(module: Any) -> dict[str, Any]:
    return {"_swin_transformer": _with(module._swin_transformer, embed_dim=12, depths=_FOUR)}


def _vit(module: Any) -> dict[str, Any]:
    settings = {"num_layers": 3, "num_heads": 3, "hidden_dim": 48, "mlp_dim": 96}
    return {"_vision_transformer": _with(module._vision_transformer, **settings)}


TINY: dict[str, Callable[[Any], dict[str, Any]]] = {
    "alexnet": _narrow_classifier,
    "convnext_tiny": _convnext,
    "densenet121": _densenet,
    "efficientnet_v2_s": _efficientnet_v2,
    "maxvit_t": _maxvit,
    "swin_t": _swin,
    "swin_v2_t": _swin,
    "vgg11_bn": _narrow_classifier,
    "vit_b_32": _vit,
}
"""Replacements in a family's module for building the smaller network, by torchvision's name."""


@contextmanager
def tiny(name: str) -> Iterator[None]:
    """Within the block, torchvision builds the tiny network for a name in :data:`TINY`, and any other as usual."""
    if name not in TINY:
        yield
        return
    from torchvision import models

    from thawline.backbones import _torchvision

    module = importlib.import_module(models.get_model_builder(name).__module__)
    with mock.patch.multiple(module, **TINY[name](module)), mock.patch.multiple(_torchvision, **_remembered()):
        yield


@cache
def _remembered() -> dict[str, Any]:
    """Cached information on tiny networks, separate from that on full ones with the same names."""
    from thawline.backbones import _torchvision

    found = {name: getattr(_torchvision, name).__wrapped__ for name in ("_cut", "_check_size")}
    return {name: lru_cache(maxsize=None)(find) for name, find in found.items()}
