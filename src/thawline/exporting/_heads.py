"""Calibration as part of a network: dividing its last layer by the temperature makes plain softmax calibrated."""

import copy

import torch
from torch import Tensor, nn

from thawline.exceptions import RegistryError

__all__ = ["calibrated"]

_TOLERANCE = 1e-4
"""Tolerance of a logit, which is at most about ten: the rounding error of dividing earlier."""


def calibrated(network: nn.Module, temperature: float, images: Tensor, num_classes: int) -> nn.Module:
    """A copy of the network whose logits are divided by the temperature.

    The logits come from the last layer, or from the sum of several last layers (DeiT and LeViT), which are found by
    trial.

    Args:
        network: in evaluation mode.
        temperature: above 0.
        images: normalised inputs for the trials.
        num_classes: number of classes.

    Raises:
        RegistryError: if no layer computes the logits.
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
        f"The network is calibrated by dividing its logits by {temperature:.3f}, but the last layer that computes them "
        "was not found. Choose --format onnx, whose graph contains the division."
    )


def _outputs(layer: nn.Module) -> int:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv2d) else 0
