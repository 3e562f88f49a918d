"""Attribution: which parts of an image are evidence for a class, by the captum method that fits the network."""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from thawline.backbones.tracing import Step, steps_of, trace
from thawline.exceptions import ConfigError

__all__ = ["Explainer", "Method"]

Method = Literal["auto", "grad-cam", "integrated-gradients", "occlusion"]

_BATCH = 16
"""Maximum batch size, to limit memory, which is that of training."""
_COARSEST = 4
"""Minimum width and height of feature maps. The last maps of a small image have 2 or 1, without spatial detail."""
_FINEST = 14
"""Maximum number of squares per side over which integrated gradients are summed: single pixels are noisy."""
_STEPS = 24
"""Steps of the integral, each with a forward and a backward pass. The error was 1 % of the logit's change; with 16
steps it was 6 %."""
_MAPS = "explained_maps"
_POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)

_Attribute = Callable[[Tensor, Tensor], Tensor]
"""Images ``[N, 3, S, S]`` and classes ``[N]`` to evidence ``[N, 1, h, w]``, for the class or, below 0, against it."""


class Explainer:
    """Explains the logits of one network, which is left unchanged.

    ``auto`` is Grad-CAM for convolutional networks. It is integrated gradients for networks with attention (``vit_*``,
    ``swin_*``, ``maxvit_*``), whose last maps no longer correspond to positions in the image, and for networks that
    ``torch.fx`` cannot trace (Hugging Face's), whose last maps cannot be found.

    Args:
        network: a classifier of torchvision, timm or Hugging Face: images ``[N, 3, S, S]`` to logits ``[N, classes]``.
        image_size: ``S``.
        method: ``auto`` or one of the others; :attr:`method` is the method in use.

    Raises:
        ConfigError: if the method does not fit the network.
    """

    def __init__(self, network: nn.Module, image_size: int, method: Method = "auto") -> None:
        if method in ("auto", "grad-cam"):
            obstacle = _obstacle(network)
            if method == "grad-cam" and obstacle:
                raise ConfigError(
                    f"Grad-CAM explains convolutional networks, but a {type(network).__name__} {obstacle}. "
                    "Use --method integrated-gradients or occlusion."
                )
            method = "integrated-gradients" if obstacle else "grad-cam"
        self.method: Method = method
        self._network = network
        with _evaluating(network):
            self._attribute = _METHODS[method](network, image_size)

    def __call__(self, images: Tensor, classes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Heat maps of images: the strength of the evidence for a class at each position.

        Args:
            images: float ``[N, 3, S, S]``, preprocessed, on the network's device.
            classes: ``[N]``, index of the class to explain in each.

        Returns:
            float32 ``[N, S, S]``, from 0 to 1 for the position with the strongest evidence for the class; all 0 if
            there is none.
        """
        targets = torch.as_tensor(np.asarray(classes), device=images.device)
        with _evaluating(self._network):
            maps = [
                _heat(self._attribute(batch.detach(), chosen), images.shape[-1])
                for batch, chosen in zip(torch.split(images, _BATCH), torch.split(targets, _BATCH), strict=True)
            ]
        return np.concatenate(maps)


def _obstacle(network: nn.Module) -> str:
    """The reason why Grad-CAM cannot explain a network; empty if it can."""
    if any("Attention" in type(module).__name__ for module in network.modules()):
        return "has attention, which moves information to other positions"
    try:
        with _evaluating(network):
            trace(network)
    except Exception:  # the network's code may raise anything for a stand-in for its images
        return "has data-dependent control flow, so its last maps cannot be found"
    return ""


def _heat(evidence: Tensor, size: int) -> np.ndarray:
    heat = F.interpolate(evidence.detach().float().clamp(min=0), size=(size, size), mode="bilinear")[:, 0]
    highest = heat.amax((1, 2), keepdim=True)
    heat = torch.where(highest > 0, heat / highest, 0)
    return np.asarray(heat.cpu().numpy(), dtype=np.float32)


def _grad_cam(network: nn.Module, image_size: int) -> _Attribute:
    from captum.attr import LayerGradCam

    module = _with_named_maps(network, image_size)
    method = LayerGradCam(module, module.get_submodule(_MAPS))

    def attribute(images: Tensor, classes: Tensor) -> Tensor:
        maps: Tensor = method.attribute(images, target=classes, relu_attributions=True)
        return maps

    return attribute


def _integrated_gradients(network: nn.Module, image_size: int) -> _Attribute:
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(network)
    squares = max(1, min(_FINEST, image_size // 8))

    def attribute(images: Tensor, classes: Tensor) -> Tensor:
        pixels: Tensor = method.attribute(images, target=classes, n_steps=_STEPS, internal_batch_size=_BATCH)
        return F.adaptive_avg_pool2d(pixels.sum(1, keepdim=True), squares)

    return attribute


def _occlusion(network: nn.Module, image_size: int) -> _Attribute:
    from captum.attr import Occlusion

    method = Occlusion(network)
    window, step = max(1, image_size // 4), max(1, image_size // 8)

    def attribute(images: Tensor, classes: Tensor) -> Tensor:
        change: Tensor = method.attribute(
            images, target=classes, sliding_window_shapes=(3, window, window), strides=(3, step, step)
        )
        return change.sum(1, keepdim=True)

    return attribute


_METHODS: dict[Method, Callable[[nn.Module, int], _Attribute]] = {
    "grad-cam": _grad_cam,
    "integrated-gradients": _integrated_gradients,
    "occlusion": _occlusion,
}


def _with_named_maps(network: nn.Module, image_size: int) -> fx.GraphModule:
    """The same network with the same layers, in which the maps to explain pass through an extra module.

    The maps may come from a function (``cat``, ``relu``), which captum cannot hook. Also, its hooks then stay off the
    network itself.
    """
    module = fx.GraphModule(network, trace(network))
    module.add_module(_MAPS, nn.Identity())
    name = _last_maps(network, image_size)
    node = next(node for node in module.graph.nodes if node.name == name)
    with module.graph.inserting_after(node):
        maps = module.graph.call_module(_MAPS, (node,))
    node.replace_all_uses_with(maps, delete_user_cb=lambda user: user is not maps)
    module.recompile()
    return module


def _last_maps(network: nn.Module, image_size: int) -> str:
    """Name of the operation with the last spatial maps before the head that all later layers depend on.

    In networks that end in pooling, these are the pooled maps. A head may be a convolution (SqueezeNet's).
    """
    steps = steps_of(_without_numbers(network), image_size)
    layers = [_layer(network, step) for step in steps]
    head = max(i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear | nn.Conv2d))
    found = [
        step.node.name
        for step, layer in zip(steps[:head], layers[:head], strict=True)
        if step.is_cut and _are_maps(step.shape) and not isinstance(layer, _POOLING)
    ]
    return found[-1]


def _layer(network: nn.Module, step: Step) -> nn.Module | None:
    return network.get_submodule(str(step.node.target)) if step.node.op == "call_module" else None


def _are_maps(shape: torch.Size | None) -> bool:
    return shape is not None and len(shape) == 4 and shape[2] == shape[3] >= _COARSEST


def _without_numbers(network: nn.Module) -> nn.Module:
    """A copy whose tensors have only shapes (PyTorch's ``meta`` device), without memory."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor.to("meta") for tensor in tensors})


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put the network in evaluation mode within the block; each module's own mode is restored."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
