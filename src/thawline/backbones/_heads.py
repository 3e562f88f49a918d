"""How every head begins, whatever its library draws, and how it is given other weights."""

import torch
from torch import Tensor, nn

from thawline.backbones._base import Backbone

__all__ = ["initialise_head", "write_head"]

_ABOVE_RELU = 5.0


@torch.no_grad()
def initialise_head(backbone: Backbone) -> None:
    """Give the head weights of 0, so that the first loss is that of guessing, ln C.

    Libraries draw heads at very different scales: torchvision's EfficientNet and MNASNet, and timm's EfficientNet and
    MobileNetV3, from U(±1/sqrt(classes)), eleven times too large for ten classes. Their first loss is several times
    ln C, and its gradient destroys the pretrained layers. Others have features with norms of hundreds, so that no scale
    of random weights is small for all. Weights of 0 are, and they are not stuck there: each class has labels of its
    own, and so a gradient of its own. The layers in front of the head learn from the second step on.

    SqueezeNet has a ReLU after its head, whose gradient at 0 is 0. There the bias is the same positive number for all
    classes, which changes no probability.
    """
    layer = _layer(backbone)
    layer.weight.zero_()
    if layer.bias is not None:
        layer.bias.fill_(_ABOVE_RELU if _has_relu_behind(backbone) else 0.0)


@torch.no_grad()
def write_head(backbone: Backbone, weight: Tensor, bias: Tensor, *, lowest: float) -> None:
    """Give the head the weights of a linear classifier of the features that it is given.

    Args:
        backbone: any; a head without a bias gets none.
        weight: ``[classes, features]``.
        bias: ``[classes]``.
        lowest: the lowest score that they give to what they were fitted to. Where there is a ReLU after the head, all
            scores are raised by as much, so that it lets them pass: the same number for all classes changes no
            probability.
    """
    layer = _layer(backbone)
    layer.weight.copy_(weight.view_as(layer.weight))
    if layer.bias is not None:
        layer.bias.copy_(bias + (_ABOVE_RELU - lowest if _has_relu_behind(backbone) else 0.0))


def _layer(backbone: Backbone) -> nn.Linear | nn.Conv2d:
    layer = backbone.module.get_submodule(backbone.head.name)
    assert isinstance(layer, nn.Linear | nn.Conv2d)  # noqa: S101  what can be a head, see outputs_of
    return layer


def _has_relu_behind(backbone: Backbone) -> bool:
    return str(backbone.architecture.get("builder", "")).startswith("squeezenet")
