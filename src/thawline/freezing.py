"""Freeze a backbone down to a depth, and define "frozen" for batch-norms and dropout.

*Freeze depth* is the number of layer groups frozen, counted from the input: 0 trains everything, ``len(layer_groups)``
trains the head only.
"""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from thawline.backbones import Backbone
from thawline.config import BatchNorm
from thawline.exceptions import BackboneError

__all__ = ["freeze_to", "has_batch_norms", "moving_statistics", "train_mode", "trainable_parameters"]


def freeze_to(backbone: Backbone, depth: int, *, batch_norm: BatchNorm) -> None:
    """Require gradients only for parameters from layer group ``depth`` on, including the head.

    Call it before creating the optimizer with ``trainable_parameters(backbone)``: an optimizer still changes a frozen
    parameter with an old gradient, by momentum and by weight decay.

    With ``batch_norm="frozen_eval"``, scale and shift of all batch-norms stay frozen, also after ``depth``. Pass the
    trial's ``Hyperparameters.batch_norm``, the same as for :func:`train_mode`.

    This is only half of freezing. In training mode, batch-norms update their running statistics, which are buffers, in
    every forward pass, even without gradients. :func:`train_mode` is the other half.

    Raises:
        BackboneError: unless ``0 <= depth <= len(backbone.layer_groups)``.
    """
    _check(backbone, depth)
    frozen = {name for group in backbone.layer_groups[:depth] for name in group.tensors}
    if batch_norm == "frozen_eval":
        norms = _batch_norms(backbone).items()
        frozen |= {f"{prefix}.{name}" for prefix, norm in norms for name, _ in norm.named_parameters(recurse=False)}
    for name, parameter in backbone.module.named_parameters():
        parameter.requires_grad_(name not in frozen)
        if name in frozen:
            parameter.grad = None


def train_mode(backbone: Backbone, depth: int, *, batch_norm: BatchNorm) -> None:
    """Set the layer groups from ``depth`` on to training mode, and the frozen ones to evaluation mode.

    Use it instead of ``module.train()`` at the start of every epoch (and after every evaluation). With
    ``module.train()`` only, a "frozen" group

    * still updates the running mean and variance of its batch-norms, so it is a different network after each epoch;
    * normalises by batch statistics, so its results depend on the other images in the batch;
    * still applies dropout and stochastic depth, so the same image gives different activations each time.

    In evaluation mode its activations depend only on the image, so they can be stored. (timm's ``freeze`` achieves this
    for batch-norms by replacing the layers; here the layers stay the same.)

    Unless ``batch_norm`` is ``"train_all"``, the batch-norms of thawed groups are also set to evaluation mode: a batch
    of a few dozen images gives worse estimates of a channel's mean and variance than pretraining on a million.

    Raises:
        BackboneError: unless ``0 <= depth <= len(backbone.layer_groups)``.
    """
    _check(backbone, depth)
    backbone.module.train()
    for group in backbone.layer_groups[:depth]:
        for name in group.modules:
            backbone.module.get_submodule(name).eval()
    if batch_norm != "train_all":
        for norm in _batch_norms(backbone).values():
            norm.eval()


def trainable_parameters(backbone: Backbone) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name, in the order of the module."""
    return {name: parameter for name, parameter in backbone.module.named_parameters() if parameter.requires_grad}


def has_batch_norms(backbone: Backbone) -> bool:
    """Whether the batch-norm setting (``frozen_eval``, …) affects the backbone."""
    return bool(_batch_norms(backbone))


def moving_statistics(backbone: Backbone) -> list[Tensor]:
    """The means and variances updated by batch-norms in training mode: all with ``train_all``, else none."""
    moving = [norm for norm in _batch_norms(backbone).values() if norm.training]
    return [buffer for norm in moving for buffer in norm.buffers(recurse=False) if buffer.is_floating_point()]


def _batch_norms(backbone: Backbone) -> dict[str, nn.Module]:
    """Batch-norms by name, including timm's, which derive from torch's."""
    return {name: module for name, module in backbone.module.named_modules() if isinstance(module, _BatchNorm)}


def _check(backbone: Backbone, depth: int) -> None:
    deepest = len(backbone.layer_groups)
    if not 0 <= depth <= deepest:
        raise BackboneError(f"`0 <= depth <= {deepest}` must hold, but got depth={depth}.")
