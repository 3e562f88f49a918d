"""Calibration inside a network: its last layer divided by the temperature, so that plain softmax is calibrated."""

import copy

import torch
from torch import Tensor, nn

from thawline.exceptions import RegistryError

__all__ = ["calibrated"]

_TOLERANCE = 1e-4
"""Of a logit, which is some ten at most: what rounding makes of dividing earlier."""


def calibrated(network: nn.Module, temperature: float, images: Tensor, num_classes: int) -> nn.Module:
    """A copy of the network whose logits are divided by the temperature.

    Its last layer gives the logits, or its last layers, where a network adds up several (DeiT's and LeViT's). Which
    they are is tried out.

    Args:
        network: in evaluation mode.
        temperature: above 0.
        images: as the network takes them, to try on.
        num_classes: of the network.

    Raises:
        RegistryError: if no layer gives the logits.
    """
    if temperature == 1:
        return network
    with torch.inference_mode():
        wanted = network(images) / temperature
    names = [name for name, layer in network.named_modules() if _outputs(layer) == num_classes]
    for count in range(1, len(names) + 1):
        changed = copy.deepcopy(network)
        with torch.no_grad():
            for name in names[-count:]:
                for parameter in changed.get_submodule(name).parameters():
                    parameter.div_(temperature)
        with torch.inference_mode():
            if torch.allclose(changed(images), wanted, rtol=_TOLERANCE, atol=_TOLERANCE):
                return changed
    raise RegistryError(
        f"The network is calibrated by dividing its logits by {temperature:.3f}, but no last layer was found that they "
        "come from. Choose --format onnx, whose graph holds the division."
    )


def _outputs(layer: nn.Module) -> int:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv2d) else 0
