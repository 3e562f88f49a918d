"""Optimizer and learning-rate schedule."""

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from thawline.backbones import Backbone, networks
from thawline.config import TrainConfig
from thawline.training.hyperparameters import Hyperparameters
from thawline.training.runtime import Runtime

__all__ = ["add_parameters", "build_optimizer", "build_schedule", "is_fused", "schedule_factor", "without_decay"]

_NOT_DECAYED = (
    *("*.bias", "*.grn.weight"),
    *("*cls_token", "*class_token", "*dist_token", "*distillation_token", "*reg_token", "*register_tokens"),
    *("*pos_embed", "*pos_embedding", "*position_embeddings", "*absolute_pos_embed"),
    *("*relative_position_bias_table", "*attention_biases", "*logit_scale"),
    *("*cpb_mlp.*", "*continuous_position_bias_mlp.*"),
)
"""Names of parameters that are not decayed, whatever their dimensions: biases, learned tokens, positions and
temperatures, as torchvision and transformers name them. The recipes that their networks were trained with leave them
out; timm's networks list their own. Positions that are looked up in a table (``position_embeddings.weight`` of BERT and
CLIP) are decayed, as in the recipes of those."""


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    backbone: Backbone,
    hyperparameters: Hyperparameters,
    *,
    fused: bool = False,
) -> Optimizer:
    """An optimizer over exactly these parameters, by their names in the backbone.

    They are in one group for each learning rate, with and without weight decay, see :func:`without_decay`; those of the
    head come first. The head learns ``head_learning_rate_factor`` times faster than ``learning_rate``, and each layer
    group, from the last on, ``layer_decay`` times as fast as the one after it.

    Args:
        parameters: by name.
        backbone: of which they are.
        hyperparameters: kind of optimizer and rates.
        fused: whether a kernel steps all of them at once, see :func:`is_fused`; it rounds differently.
    """
    groups = _groups(parameters, backbone, hyperparameters)
    if hyperparameters.optimizer == "sgd":
        return SGD(groups, lr=hyperparameters.learning_rate, momentum=0.9, nesterov=True, fused=fused or None)
    return AdamW(groups, lr=hyperparameters.learning_rate, fused=fused or None)


def is_fused(config: TrainConfig, runtime: Runtime) -> bool:
    """Whether the optimizer is one kernel: on CUDA, where every kernel is launched, and where bits may differ.

    In half precision it skips steps by itself, for which else the host would wait for the device.
    """
    return runtime.device.type == "cuda" and not config.exact


def add_parameters(
    optimizer: Optimizer,
    parameters: Mapping[str, nn.Parameter],
    backbone: Backbone,
    hyperparameters: Hyperparameters,
) -> None:
    """Give an optimizer parameters that were thawed, in groups of their own; the state of the others stays as it is.

    A schedule holds the rates of the groups that it was built with: rebuild it, with the steps that were taken.
    """
    for group in _groups(parameters, backbone, hyperparameters):
        optimizer.add_param_group(group)


def _groups(
    parameters: Mapping[str, nn.Parameter], backbone: Backbone, hyperparameters: Hyperparameters
) -> list[dict[str, Any]]:
    spared = without_decay(parameters, backbone)
    made: dict[tuple[float, float], list[nn.Parameter]] = {}
    for distance, layer in enumerate([backbone.head, *reversed(backbone.layer_groups)]):
        factor = hyperparameters.layer_decay**distance if distance else hyperparameters.head_learning_rate_factor
        members = set(layer.tensors)
        for name, parameter in parameters.items():
            if name in members:
                decay = 0.0 if name in spared else hyperparameters.weight_decay
                made.setdefault((hyperparameters.learning_rate * factor, decay), []).append(parameter)
    return [
        {"params": members, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), members in made.items()
    ]


def without_decay(parameters: Mapping[str, nn.Parameter], backbone: Backbone) -> frozenset[str]:
    """Names of those parameters that weight decay would pull to 0 without regularising.

    They are the biases and normalisation scales (tensors of fewer than two dimensions), class tokens, positions and
    their like, and what a network of timm lists itself (``no_weight_decay``).
    """
    patterns = (*_NOT_DECAYED, *_listed_by_timm(backbone.module))
    return frozenset(
        name
        for name, parameter in parameters.items()
        if parameter.ndim < 2 or any(fnmatchcase(name, pattern) for pattern in patterns)
    )


def _listed_by_timm(module: nn.Module) -> list[str]:
    """Names, and patterns of names, by which a network of timm says what is not decayed; none of other networks."""
    network, prefix = (module.network, "network.") if isinstance(module, networks.OneHead) else (module, "")
    listed = getattr(network, "no_weight_decay", None)
    return [] if listed is None else [prefix + name for name in listed()]


def build_schedule(optimizer: Optimizer, *, total_steps: int, warmup_fraction: float, steps: int = 0) -> LambdaLR:
    """Linear warm-up over a share of all optimizer steps, then half a cosine down to zero.

    All parameters follow it, those that are thawed later too: they join at the share of their learning rate that is in
    force by then, without a warm-up of their own.

    Args:
        optimizer: made by :func:`build_optimizer`.
        total_steps: optimizer steps of the whole training.
        warmup_fraction: share of them that warm up, in [0, 1).
        steps: those that were taken already.
    """
    return LambdaLR(optimizer, lambda step: schedule_factor(step, total_steps, warmup_fraction), last_epoch=steps - 1)


def schedule_factor(step: int, total_steps: int, warmup_fraction: float) -> float:
    """Share of the learning rate in force at a step, in [0, 1].

    ``step`` counts from 0; the first step of a warm-up has a rate above 0 and the last of all steps one near 0.
    """
    warmup_steps = math.ceil(total_steps * warmup_fraction)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
