"""What is decayed, and what is not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import write_tiny

from thawline import backbones
from thawline.backbones import Backbone
from thawline.backbones.networks import OneHead
from thawline.freezing import freeze_to, trainable_parameters
from thawline.training.hyperparameters import Hyperparameters
from thawline.training.optim import build_optimizer

pytestmark = pytest.mark.usefixtures("one_thread")

TRAINING = Hyperparameters(
    backbone="any", freeze_depth=0, learning_rate=0.1, weight_decay=0.5, head_learning_rate_factor=1.0, optimizer="sgd"
)


def made(name: str, image_size: int | None = 32) -> Backbone:
    return backbones.create(name, num_classes=3, weights="none", image_size=image_size)


def shrunk_by_decay(backbone: Backbone) -> set[str]:
    """Names of the parameters that a step without any gradient makes smaller: nothing but decay does that."""
    freeze_to(backbone, 0, batch_norm="train_all")
    parameters = trainable_parameters(backbone)
    optimizer = build_optimizer(parameters, backbone, TRAINING)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {name for name, parameter in parameters.items() if not torch.equal(parameter, torch.ones_like(parameter))}


@pytest.mark.parametrize(
    "name",
    ["test_vit", "swin_tiny_patch4_window7_224", "levit_128s", "deit_tiny_distilled_patch16_224", "resnet10t"],
)
def test_of_timm_s_networks_the_same_is_decayed_as_by_timm(name: str) -> None:
    from timm.optim import param_groups_weight_decay

    backbone = made(f"timm/{name}", 224 if "swin" in name or "levit" in name else 32)
    network: Any = backbone.module.network if isinstance(backbone.module, OneHead) else backbone.module
    listed = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    groups = param_groups_weight_decay(network, 0.5, no_weight_decay_list=listed)
    theirs = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    names = {name for name, parameter in backbone.module.named_parameters() if id(parameter) in theirs}
    names.add(f"{backbone.head.name}.weight")
    assert shrunk_by_decay(backbone) == names != set()


@pytest.mark.parametrize(
    ("name", "spared", "decayed"),
    [
        ("vit_b_32", {"class_token", "encoder.pos_embedding"}, "conv_proj.weight"),
        ("swin_t", {"features.1.0.attn.relative_position_bias_table"}, "features.1.0.attn.qkv.weight"),
        (
            "swin_v2_t",
            {"features.1.0.attn.logit_scale", "features.1.0.attn.cpb_mlp.0.weight"},
            "features.1.0.attn.qkv.weight",
        ),
    ],
)
def test_tokens_and_positions_of_torchvision_s_networks_are_not_decayed(
    name: str, spared: set[str], decayed: str
) -> None:
    backbone = made(name, 64)
    assert spared <= dict(backbone.module.named_parameters()).keys()
    shrunk = shrunk_by_decay(backbone)
    assert not shrunk & spared
    assert decayed in shrunk


@pytest.mark.parametrize(
    ("kind", "spared", "decayed"),
    [
        ("vit", {"embeddings.cls_token", "embeddings.position_embeddings"}, "embeddings.patch_embeddings"),
        ("dinov2_with_registers", {"embeddings.register_tokens"}, "embeddings.patch_embeddings"),
        ("swin", {".relative_position_bias_table"}, "embeddings.patch_embeddings"),
        ("swinv2", {".continuous_position_bias_mlp", ".logit_scale"}, "embeddings.patch_embeddings"),
        ("convnextv2", {".grn."}, "dwconv.weight"),
        ("bert", {"LayerNorm"}, "embeddings.position_embeddings.weight"),
    ],
)
def test_tokens_and_positions_of_huggingface_s_networks_are_not_decayed_but_tables_are(
    kind: str, spared: set[str], decayed: str, tmp_path: Path
) -> None:
    backbone = made(f"hf:{write_tiny(kind, tmp_path)}", None)
    parameters = [name for name, _ in backbone.module.named_parameters()]
    shrunk = shrunk_by_decay(backbone)
    for part in spared:
        assert any(part in name for name in parameters)
        assert not [name for name in shrunk if part in name]
    assert any(decayed in name for name in shrunk)
    assert f"{backbone.head.name}.weight" in shrunk
