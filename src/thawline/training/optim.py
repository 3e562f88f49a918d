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
"""Names of parameters without weight decay, whatever their dimensions: biases, learned tokens, positions and
temperatures, as named by torchvision and transformers. Their training recipes exclude them from decay; timm's networks
list their own. Positions in an embedding table (``position_embeddings.weight`` of BERT and CLIP) are decayed, as in
their recipes."""


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    backbone: Backbone,
    hyperparameters: Hyperparameters,
    *,
    fused: bool = False,
) -> Optimizer:
    """Build an optimizer for exactly these parameters.

    There is one group per learning rate, with and without weight decay, see :func:`without_decay`; the head's come
    first. The head learns ``head_learning_rate_factor`` times faster than ``learning_rate``, and each layer group, from
    the last on, ``layer_decay`` times as fast as the one after it.

    Args:
        parameters: parameters by their names in the backbone.
        backbone: the backbone.
        hyperparameters: kind of optimizer, learning rate and weight decay.
        fused: whether one kernel updates all parameters, see :func:`is_fused`; it rounds differently.
    """
    groups = _groups(parameters, backbone, hyperparameters)
    if hyperparameters.optimizer == "sgd":
        return SGD(groups, lr=hyperparameters.learning_rate, momentum=0.9, nesterov=True, fused=fused or None)
    return AdamW(groups, lr=hyperparameters.learning_rate, fused=fused or None)


def is_fused(config: TrainConfig, runtime: Runtime) -> bool:
    """Whether the optimizer is one kernel: on CUDA, where kernel launches are expensive and bits may differ.

    In half precision it skips steps on the device, which would otherwise require a sync.
    """
    return runtime.device.type == "cuda" and not config.exact


def add_parameters(
    optimizer: Optimizer,
    parameters: Mapping[str, nn.Parameter],
    backbone: Backbone,
    hyperparameters: Hyperparameters,
) -> None:
    """Add thawed parameters to an optimizer, in their own groups; the state of the others is unchanged.

    A schedule stores the learning rates of its initial groups: rebuild it with the number of steps taken.
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
    """Names of the parameters that weight decay would pull to 0 without regularising.

    They are the biases and normalisation scales (tensors of fewer than two dimensions), class tokens, positions and
    similar parameters, and those listed by timm's networks (``no_weight_decay``).
    """
    patterns = (*_NOT_DECAYED, *_listed_by_timm(backbone.module))
    return frozenset(
        name
        for name, parameter in parameters.items()
        if parameter.ndim < 2 or any(fnmatchcase(name, pattern) for pattern in patterns)
    )


def _listed_by_timm(module: nn.Module) -> list[str]:
    """Names, and patterns of names, of parameters that a timm network excludes from decay; empty for other networks."""
    network, prefix = (module.network, "network.") if isinstance(module, networks.OneHead) else (module, "")
    listed = getattr(network, "no_weight_decay", None)
    return [] if listed is None else [prefix + name for name in listed()]


def build_schedule(optimizer: Optimizer, *, total_steps: int, warmup_fraction: float, steps: int = 0) -> LambdaLR:
    """Linear warm-up over a share of all optimizer steps, then cosine decay to zero.

    It applies to all parameters. Those thawed later join at the schedule's current factor, without their own warm-up.

    Args:
        optimizer: an optimizer of :func:`build_optimizer`.
        total_steps: number of optimizer steps of the whole training.
        warmup_fraction: share of warm-up steps, in [0, 1).
        steps: number of steps already taken.
    """
    return LambdaLR(optimizer, lambda step: schedule_factor(step, total_steps, warmup_fraction), last_epoch=steps - 1)


def schedule_factor(step: int, total_steps: int, warmup_fraction: float) -> float:
    """Factor of the learning rate at a step, in [0, 1].

    ``step`` counts from 0; the factor is above 0 in the first step of a warm-up, and near 0 in the last step.
    """
    warmup_steps = math.ceil(total_steps * warmup_fraction)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
