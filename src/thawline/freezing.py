"""Freezing a backbone down to a depth, and what "frozen" must mean for batch-norms and dropout.

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
    """Let gradients reach the parameters from layer group ``depth`` on, the head included, and no others.

    Call it before the optimizer is made, with ``trainable_parameters(backbone)``: a frozen parameter that is given to
    an optimizer with an old gradient is still moved, by momentum and by weight decay.

    With ``batch_norm="frozen_eval"`` the scale and shift of batch-norms stay frozen after ``depth`` too: it is that of
    the trial, ``Hyperparameters.batch_norm``, and must be the same for :func:`train_mode`.

    This is half of freezing. Batch-norms update their running statistics in every forward pass in training mode,
    whether or not anything requires gradients: they are buffers. :func:`train_mode` is the other half.

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
    """Put the layer groups from ``depth`` on into training mode, and the frozen ones into evaluation mode.

    Use it in place of ``module.train()``, at the beginning of every epoch (and after every evaluation). With
    ``module.train()`` alone a "frozen" group

    * still moves the running mean and variance of its batch-norms, so that it is a different network after each epoch;
    * normalises by the statistics of the batch, so its results depend on which images happen to be together;
    * still applies dropout and stochastic depth, so the same image gives other activations each time.

    In evaluation mode its activations are a function of the image alone, and so could be stored. (Batch-norm's part of
    this is what timm's ``freeze`` does by swapping the layers; here they stay what they are.)

    Unless ``batch_norm`` is ``"train_all"``, the batch-norms of thawed groups are put into evaluation mode as well:
    a batch of a few dozen images says less about the mean and variance of a channel than pretraining on a million did.

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
    """Whether what batch-norms do (``frozen_eval``, …) makes a difference to it."""
    return bool(_batch_norms(backbone))


def moving_statistics(backbone: Backbone) -> list[Tensor]:
    """The means and variances that batch-norms in training mode update: all of ``train_all``, else none."""
    moving = [norm for norm in _batch_norms(backbone).values() if norm.training]
    return [buffer for norm in moving for buffer in norm.buffers(recurse=False) if buffer.is_floating_point()]


def _batch_norms(backbone: Backbone) -> dict[str, nn.Module]:
    """By name, timm's own among them: they derive from torch's."""
    return {name: module for name, module in backbone.module.named_modules() if isinstance(module, _BatchNorm)}


def _check(backbone: Backbone, depth: int) -> None:
    deepest = len(backbone.layer_groups)
    if not 0 <= depth <= deepest:
        raise BackboneError(f"`0 <= depth <= {deepest}` must hold, but got depth={depth}.")
