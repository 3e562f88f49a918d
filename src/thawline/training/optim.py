"""Optimizer and learning-rate schedule."""

import math
from collections.abc import Container, Mapping
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from thawline.training.hyperparameters import Hyperparameters

__all__ = ["build_optimizer", "build_schedule", "schedule_factor"]


def build_optimizer(
    parameters: Mapping[str, nn.Parameter], head: Container[str], hyperparameters: Hyperparameters
) -> Optimizer:
    """An optimizer over exactly these parameters, by name, of which ``head`` names those of the head.

    Four groups at most: thawed layer groups and head, each with and without weight decay. Biases and normalisation
    scales (tensors of fewer than two dimensions) are not decayed: decay would pull them to 0 without regularising.
    The head learns ``head_learning_rate_factor`` times faster.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault((name in head, parameter.ndim >= 2), []).append(parameter)
    settings: list[dict[str, Any]] = [
        {
            "params": members,
            "lr": hyperparameters.learning_rate * (hyperparameters.head_learning_rate_factor if in_head else 1.0),
            "weight_decay": hyperparameters.weight_decay if decayed else 0.0,
        }
        for (in_head, decayed), members in groups.items()
    ]
    if hyperparameters.optimizer == "sgd":
        return SGD(settings, lr=hyperparameters.learning_rate, momentum=0.9, nesterov=True)
    return AdamW(settings, lr=hyperparameters.learning_rate)


def build_schedule(optimizer: Optimizer, *, total_steps: int, warmup_fraction: float) -> LambdaLR:
    """Linear warm-up over a share of all optimizer steps, then half a cosine down to nought."""
    return LambdaLR(optimizer, lambda step: schedule_factor(step, total_steps, warmup_fraction))


def schedule_factor(step: int, total_steps: int, warmup_fraction: float) -> float:
    """Share of the learning rate in force at a step, in [0, 1].

    ``step`` counts from 0; the first step of a warm-up has a rate above 0 and the last of all steps one near 0.
    """
    warmup_steps = math.ceil(total_steps * warmup_fraction)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
