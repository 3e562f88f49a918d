"""Backbones with input-dependent predictions: a new head has weights of 0, and the same output for all inputs."""

import torch
from torch import nn

from thawline import backbones
from thawline.backbones import Backbone

__all__ = ["created_with_random_head", "head_of", "with_random_head"]


def with_random_head(backbone: Backbone, seed: int = 1) -> Backbone:
    """Give a backbone's head random weights that preserve the scale of features."""
    weight = head_of(backbone).weight.detach()
    drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    weight.copy_(drawn / weight[0].numel() ** 0.5)
    return backbone


def created_with_random_head(name: str, num_classes: int = 3, **options: object) -> Backbone:
    """Like :func:`thawline.backbones.create`, with a random head."""
    return with_random_head(backbones.create(name, num_classes=num_classes, **options))  # type: ignore[arg-type]


def head_of(backbone: Backbone) -> nn.Linear | nn.Conv2d:
    """The layer that returns the logits."""
    head = backbone.module.get_submodule(backbone.head.name)
    assert isinstance(head, nn.Linear | nn.Conv2d)
    return head
