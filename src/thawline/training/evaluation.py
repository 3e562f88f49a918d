"""Compute the logits of a split, from which metrics are computed."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from thawline.backbones import Backbone, section
from thawline.training.inputs import Inputs, batches, evaluation_order
from thawline.training.ranks import ALONE, Ranks
from thawline.training.runtime import Runtime

__all__ = ["logits_of", "predict"]


def predict(backbone: Backbone, inputs: Inputs, runtime: Runtime, batch_size: int) -> Tensor:
    """Logits ``[N, num_classes]``, fp32 on the CPU, of images or stored activations; leaves the module in eval."""
    module = backbone.module.to(runtime.device).eval()
    return logits_of(section(backbone, inputs.boundary) if inputs.boundary else module, inputs, runtime, batch_size)


@torch.inference_mode()
def logits_of(
    network: Callable[[Tensor], Tensor],
    inputs: Inputs,
    runtime: Runtime,
    batch_size: int,
    on_batch: Callable[[], object] = lambda: None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Logits ``[N, num_classes]``, fp32 on the CPU, by a network in evaluation mode that takes such inputs.

    Args:
        network: a network on the device. If it returns ``[n, ...]`` for a batch, the result is ``[N, ...]``.
        inputs: all are evaluated.
        runtime: device and precision.
        batch_size: rows per batch.
        on_batch: called after every batch.
        ranks: with several processes, each computes some of the batches; all of them get all logits.
    """
    parts = evaluation_order(inputs, batch_size)
    logits = []
    for _, batch in batches(inputs, ranks.own(parts), 0, runtime):
        with runtime.autocast():
            logits.append(network(batch).float())
        on_batch()
    in_order = torch.from_numpy(np.argsort(np.concatenate(parts)))
    whole = ranks.gathered(logits, [len(rows) for rows in parts])
    return whole.cpu()[in_order]  # one copy, because each one syncs with the device
