"""timm's networks with fewer and narrower blocks of the same types, for families whose smallest one takes seconds."""

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache, wraps
from typing import Any
from unittest import mock

__all__ = ["TINY", "tiny"]

_FOUR = (1, 1, 2, 1)
"""Blocks of four stages, one of which has more than one."""
_WIDTHS = (16, 24, 32, 48)
_HEADS = (3, 6, 12, 24)
_SWIN: dict[str, Any] = {"embed_dim": 12, "depths": _FOUR}

TINY: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"embed_dim": 48, "depth": 3, "num_heads": 3},
    "cait_xxs24_224": {"embed_dim": 48, "depth": 3},
    "coat_tiny": {"embed_dims": [16] * 4, "serial_depths": [1] * 4, "parallel_depth": 2},
    "convit_tiny": {"embed_dim": 12, "depth": 3, "local_up_to_layer": 2},
    "convmixer_768_32": {"dim": 48, "depth": 3},
    "crossvit_tiny_240": {"embed_dim": [24, 48], "depth": [[1, 2, 0]] * 2},
    "csatv2": {"dims": _WIDTHS, "depths": (1, 1, 2, 2), "transformer_depths": (0, 0, 1, 1)},
    "davit_tiny": {"embed_dims": (12, 24, 48, 96), "depths": _FOUR},
    "densenet121": {"growth_rate": 8, "block_config": (2, 2, 3, 2)},
    "dpn48b": {"k_sec": _FOUR},
    "edgenext_xx_small": {"dims": _WIDTHS, "depths": (2, 2, 2, 2)},
    "efficientvit_b0": {"depths": (1, 1, 1, 2, 1), "head_widths": (64, 80)},
    "efficientformer_l1": {"embed_dims": _WIDTHS, "depths": (1, 1, 1, 2)},
    "efficientformerv2_s0": {"embed_dims": _WIDTHS, "depths": (1, 1, 2, 3)},
    "efficientvit_m0": {"embed_dim": [16, 32, 48], "depth": [1, 1, 2]},
    "efficientvim_m1": {"embed_dim": (16, 24, 32)},
    "fastvit_t8": {"embed_dims": (16, 32, 64, 128), "layers": _FOUR},
    "deit_tiny_patch16_224": {"embed_dim": 48, "depth": 3},
    "deit_tiny_distilled_patch16_224": {"embed_dim": 48, "depth": 3},
    "gcvit_xxtiny": {"embed_dim": 16, "depths": (2, 2, 2, 2)},
    "halonet_h1": {"stem_chs": 16},
    "hardcorenas_b": {},
    "res2next50": {"layers": list(_FOUR)},
    "gmlp_ti16_224": {"embed_dim": 32, "num_blocks": 3},
    "legacy_seresnet18": {"layers": [1, 1, 2, 1]},
    "levit_128s": {"embed_dim": (32, 48, 64), "depth": (1, 2, 1)},
    "lowformer_b0": {"width_list": [8, 16, 16, 32, 64], "depth_list": [0, 1, 1, 2, 1]},
    "mvitv2_tiny": {"embed_dim": 16, "depths": _FOUR},
    "nest_tiny": {"embed_dims": (12, 24, 48), "depths": (1, 1, 2)},
    "pit_ti_224": {"base_dims": [8] * 3, "depth": [1, 2, 1]},
    "poolformerv2_s12": {"dims": list(_WIDTHS), "depths": list(_FOUR)},
    "pvt_v2_b0": {"embed_dims": (8, 16, 40, 64), "depths": _FOUR},
    "rdnet_tiny": {"num_init_features": 16, "growth_rates": [16] * 7, "num_blocks_list": [1] * 7},
    "repvit_m0_9": {"embed_dim": _WIDTHS, "depth": _FOUR},
    "rexnet_100": {"depth_mult": 0.3, "width_mult": 0.5},
    "shvit_s1": {"embed_dim": (32, 48, 64), "depth": (1, 1, 2), "partial_dim": (8, 12, 16)},
    "swiftformer_xs": {"embed_dims": list(_WIDTHS), "layers": list(_FOUR)},
    "swin_tiny_patch4_window7_224": _SWIN,
    "swinv2_tiny_window8_256": _SWIN,
    "test_vit_relpos": {"embed_dim": 48, "depth": 3},
    "tiny_vit_5m_224": {"embed_dims": [16, 32, 40, 80], "depths": list(_FOUR)},
    "tnt_s_legacy_patch16_224": {"embed_dim": 48, "inner_dim": 8, "depth": 3},
    "twins_svt_small": {"embed_dims": [16, 32, 64, 128], "depths": list(_FOUR)},
    "vgg11_bn": {"model_cfg": [8, "M", 16, "M", 24, "M", 32, 32, "M", 48, "M"], "mlp_ratio": 0.02},
    "vit_tiny_patch16_dinov3_qkvb": {"embed_dim": 48, "depth": 3},
    "xcit_nano_12_p8_224": {"embed_dim": 32, "depth": 3},
}
"""Smaller settings by timm's name. Other settings, such as the kind of attention, are unchanged."""


@contextmanager
def tiny(name: str) -> Iterator[None]:
    """Within the block, timm builds the tiny network for a name in :data:`TINY`, and any other as usual.

    Args:
        name: Thawline's name, such as ``timm/convit_tiny``, or one of another library.
    """
    bare = name.removeprefix("timm/")
    if not name.startswith("timm/") or bare not in TINY:
        yield
        return
    from timm.models import _registry

    from thawline.backbones import _timm

    smaller = {bare: _smaller(bare, _registry.model_entrypoint(bare), TINY[bare])}
    with mock.patch.dict(_registry._model_entrypoints, smaller), mock.patch.object(_timm, "_cut", _cut()):
        yield


@cache
def _cut() -> Any:
    """A cached cut of tiny networks, separate from that of full networks with the same names."""
    from thawline.backbones import _timm

    return lru_cache(maxsize=None)(_timm._cut.__wrapped__)


def _smaller(name: str, build: Callable[..., Any], settings: dict[str, Any]) -> Callable[..., Any]:
    """timm's function for building a network, with other settings."""
    module = importlib.import_module(build.__module__)

    @wraps(build)
    def built(*arguments: Any, **given: Any) -> Any:
        # Some functions pass on their own settings too, which conflict with others.
        with mock.patch.multiple(module, **_changed(name, module, settings)):
            return build(*arguments, **given)

    return built


def _changed(name: str, module: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Replacements in a family's module for building the smaller network."""
    if name == "hardcorenas_b":
        stages = ["ds_r1_k3_s1_e1_c8_nre"], ["ir_r1_k5_s2_e3_c16_nre", "ir_r1_k3_s1_e3_c16_nre_se0.25"]
        return {"_gen_hardcorenas": _with(module._gen_hardcorenas, {"arch_def": [*stages, ["cn_r1_k1_s1_c64"]]})}
    if name in ("halonet_h1", "mvitv2_tiny"):
        usual = module.model_cfgs[name]
        if name == "halonet_h1":
            blocks = zip(usual.blocks, _FOUR, _WIDTHS, strict=True)
            settings |= {"blocks": tuple(dataclasses.replace(one, d=count, c=width) for one, count, width in blocks)}
        return {"model_cfgs": {**module.model_cfgs, name: dataclasses.replace(usual, **settings)}}
    return {"build_model_with_cfg": _with(module.build_model_with_cfg, settings)}


def _with(function: Callable[..., Any], settings: dict[str, Any]) -> Callable[..., Any]:
    """A function that is always called with these settings."""
    return lambda *arguments, **given: function(*arguments, **{**given, **settings})
