"""The logits of a split: what a network is measured by."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

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
    network: nn.Module,
    inputs: Inputs,
    runtime: Runtime,
    batch_size: int,
    on_batch: Callable[[], object] = lambda: None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Logits ``[N, num_classes]``, fp32 on the CPU, by a network in evaluation mode that takes such inputs.

    Args:
        network: as it is on the device.
        inputs: all of which are measured.
        runtime: device and precision.
        batch_size: rows at once.
        on_batch: called after every batch.
        ranks: several processes that call this share the batches out; all of them get all logits.
    """
    parts = evaluation_order(inputs, batch_size)
    logits = []
    for _, batch in batches(inputs, ranks.own(parts), 0, runtime):
        with runtime.autocast():
            logits.append(network(batch).float())
        on_batch()
    in_order = torch.from_numpy(np.argsort(np.concatenate(parts)))
    whole = ranks.gathered(logits, [len(rows) for rows in parts])
    return whole.cpu()[in_order]  # one copy: each would wait for the device
