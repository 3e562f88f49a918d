"""Initialise heads in the same way for all libraries, and load weights into them."""

import torch
from torch import Tensor, nn

from thawline.backbones._base import Backbone

__all__ = ["initialise_head", "write_head"]

_ABOVE_RELU = 5.0


@torch.no_grad()
def initialise_head(backbone: Backbone) -> None:
    """Initialise the head's weights to 0, so that the first loss is at chance level, ln C.

    Libraries initialise heads at very different scales: torchvision's EfficientNet and MNASNet, and timm's EfficientNet
    and MobileNetV3, from U(±1/sqrt(classes)), eleven times too large for ten classes. Their first loss is several times
    ln C, and its gradient destroys the pretrained layers. Other networks have features with norms of hundreds, so no
    scale of random weights is small enough for all. Weights of 0 are, and they do not stay there: each class has
    different labels, and so a different gradient. The layers before the head learn from the second step on.

    SqueezeNet has a ReLU after its head, whose gradient at 0 is 0. There the bias is the same positive number for all
    classes, which does not change probabilities.
    """
    layer = _layer(backbone)
    layer.weight.zero_()
    if layer.bias is not None:
        layer.bias.fill_(_ABOVE_RELU if _has_relu_behind(backbone) else 0.0)


@torch.no_grad()
def write_head(backbone: Backbone, weight: Tensor, bias: Tensor, *, lowest: float) -> None:
    """Load a linear classifier of the head's input features into the head.

    Args:
        backbone: any backbone; for a head without a bias, ``bias`` is ignored.
        weight: ``[classes, features]``.
        bias: ``[classes]``.
        lowest: the lowest score on the data that it was fitted to. If a ReLU follows the head, all scores are raised by
            that amount to pass through it: adding the same number to all classes does not change probabilities.
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
