"""The content of ``thawline backbones`` and ``thawline summary``."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thawline.backbones._base import Backbone, BackboneInfo, TextPreprocessing
from thawline.exceptions import BackboneError

if TYPE_CHECKING:  # it needs torch, unlike the listing
    from thawline.backbones._costs import GroupCost

__all__ = ["DepthCost", "depth_costs", "info_json", "summary_json", "summary_text"]

_ASSUMPTIONS = """\
FLOPs: a training step of {example}, forward through everything and backward through what is trained; an addition and a
multiplication are two. From the store: the frozen layer groups are not run. MB: activations kept for the backward pass.
GB: that, all weights, and gradients and AdamW's two averages of what is trained; without the libraries' overhead.
All in single precision: in bfloat16 about half is kept for the backward pass."""


@dataclass(frozen=True)
class DepthCost:
    """The cost of training at one freeze depth in operations and bytes, independent of the machine."""

    freeze_depth: int
    trainable: int
    """Number of trained parameters, including the head's."""
    flops: int
    """Floating-point operations of a training step per image: forward through everything, backward through the trained
    part. A multiply-add counts as two."""
    flops_from_store: int
    """The same if frozen activations are read from the store, so that the frozen layer groups are not run."""
    state_bytes: int
    """All weights and buffers, plus gradients and AdamW's two averages of the trained ones."""
    activation_bytes: int
    """Activations kept for the backward pass, per image."""
    memory_bytes: int
    """The sum of both for a batch."""


def info_json(info: BackboneInfo) -> dict[str, Any]:
    """Information on a backbone as plain JSON."""
    lists = {"layer_groups": list(info.layer_groups), "weights": list(info.weights), "tags": dict(info.tags)}
    return dataclasses.asdict(info) | lists


def depth_costs(backbone: Backbone, batch_size: int = 32) -> tuple[DepthCost, ...]:
    """The cost of training at every freeze depth, from 0 to the deepest; takes seconds and no memory.

    Batches are in single precision, with ``batch_size`` images of the backbone's own size, or texts of its maximum
    length. The backbone is unchanged.

    Raises:
        BackboneError: unless ``batch_size >= 1``.
    """
    if batch_size < 1:
        raise BackboneError(f"`batch_size >= 1` must hold, but got batch_size={batch_size}.")
    from thawline.backbones._costs import group_costs

    groups = group_costs(backbone)
    return tuple(_cost_of(backbone, groups, depth, batch_size) for depth in range(len(groups)))


def summary_text(
    backbone: Backbone, freeze_depth: int, batch_size: int = 32, costs: Sequence[DepthCost] | None = None
) -> str:
    """Tables of the layers (by torchinfo), of the layer groups at a depth, and of the cost of each depth.

    Sets the parameters' ``requires_grad`` for that depth. Takes seconds, unless the costs are already known.

    Raises:
        BackboneError: unless ``0 <= freeze_depth <= len(backbone.layer_groups)`` and ``batch_size >= 1``.
    """
    import torchinfo

    rows = _rows(backbone, freeze_depth)
    costs = costs if costs is not None else depth_costs(backbone, batch_size)
    preprocessing = backbone.preprocessing
    if isinstance(preprocessing, TextPreprocessing):
        import torch

        kind, example = "text", f"one text of {preprocessing.max_length} tokens"
        inputs: dict[str, Any] = {"input_data": torch.zeros(1, preprocessing.max_length, dtype=torch.int64)}
    else:
        kind, example = "image", "one image"
        inputs = {"input_size": (1, 3, preprocessing.image_size, preprocessing.image_size)}
    layers = torchinfo.summary(
        backbone.module,
        **inputs,
        col_names=("output_size", "num_params", "trainable"),
        row_settings=("var_names",),
        depth=4,
        device="cpu",
        mode="eval",
        verbose=0,
    )
    width = max(len(row["name"]) for row in rows)
    lines = [
        f"{row['name']:<{width}}  {row['parameters']:>13,}  {row['frozen_from_depth'] or 'never':>17}  "
        f"{'frozen' if row['frozen'] else 'trainable'}"
        for row in rows
    ]
    return "\n".join(
        [
            str(layers),
            "",
            f"{backbone.name} at freeze depth {freeze_depth} of {len(backbone.layer_groups)}",
            f"{'layer group':<{width}}  {'parameters':>13}  {'frozen from depth':>17}  now",
            *lines,
            "",
            "Cost of training at every freeze depth",
            *_cost_lines(costs, batch_size, kind),
            "",
            _ASSUMPTIONS.format(example=example),
        ]
    )


def summary_json(backbone: Backbone, freeze_depth: int, batch_size: int = 32) -> dict[str, Any]:
    """The layer groups with their frozen and trainable parts at a depth, and the cost of each depth, as plain JSON.

    Raises:
        BackboneError: unless ``0 <= freeze_depth <= len(backbone.layer_groups)`` and ``batch_size >= 1``.
    """
    rows = _rows(backbone, freeze_depth)
    preprocessing = backbone.preprocessing
    if isinstance(preprocessing, TextPreprocessing):
        size = {"max_length": preprocessing.max_length}
    else:
        size = {"image_size": preprocessing.image_size}
    return {
        "backbone": backbone.name,
        **size,
        "freeze_depth": freeze_depth,
        "parameters": sum(row["parameters"] for row in rows),
        "trainable": sum(row["parameters"] for row in rows if not row["frozen"]),
        "layer_groups": rows[:-1],
        "head": rows[-1],
        "batch_size": batch_size,
        "freeze_depths": [dataclasses.asdict(cost) for cost in depth_costs(backbone, batch_size)],
    }


def _cost_of(backbone: Backbone, groups: Sequence["GroupCost"], depth: int, batch_size: int) -> DepthCost:
    """Sum over the groups: frozen ones run forward only, and the first trained one passes no gradient on."""
    frozen, first, others = groups[:depth], groups[depth], groups[depth + 1 :]
    tail = first.forward + first.backward_first + sum(group.forward + group.backward for group in others)
    kept = dict(first.kept_first)
    for group in others:
        kept |= group.kept

    tensors = backbone.module.state_dict()
    names = {name for group in [*backbone.layer_groups[depth:], backbone.head] for name in group.tensors}
    trained = [parameter for name, parameter in backbone.module.named_parameters() if name in names]
    state = sum(tensor.nbytes for tensor in tensors.values()) + 3 * sum(parameter.nbytes for parameter in trained)
    activations = sum(kept.values())
    return DepthCost(
        freeze_depth=depth,
        trainable=sum(parameter.numel() for parameter in trained),
        flops=sum(group.forward for group in frozen) + tail,
        flops_from_store=tail,
        state_bytes=state,
        activation_bytes=activations,
        memory_bytes=state + batch_size * activations,
    )


def _cost_lines(costs: Sequence[DepthCost], batch_size: int, kind: str) -> list[str]:
    batch = f"GB at batch size {batch_size}"
    flops, memory = f"GFLOPs/{kind}", f"MB/{kind}"
    lines = [f"depth  {'trainable':>13}  {flops:>12}  {'from the store':>14}  {memory:>9}  {batch}"]
    lines += [
        f"{cost.freeze_depth:>5}  {cost.trainable:>13,}  {cost.flops / 1e9:>12.3f}  "
        f"{cost.flops_from_store / 1e9:>14.3f}  {cost.activation_bytes / 1e6:>9.2f}  "
        f"{cost.memory_bytes / 1e9:>{len(batch)}.2f}"
        for cost in costs
    ]
    return lines


def _rows(backbone: Backbone, freeze_depth: int) -> list[dict[str, Any]]:
    """One row for each layer group and, finally, the head; sets ``requires_grad`` to match."""
    deepest = len(backbone.layer_groups)
    if not 0 <= freeze_depth <= deepest:
        raise BackboneError(f"`0 <= depth <= {deepest}` must hold, but got depth={freeze_depth}.")
    parameters = dict(backbone.module.named_parameters())
    rows = []
    for number, group in enumerate([*backbone.layer_groups, backbone.head], start=1):
        own = [parameters[name] for name in group.tensors if name in parameters]
        for parameter in own:
            parameter.requires_grad_(number > freeze_depth)
        rows.append(
            {
                "name": group.name if group is not backbone.head else f"{group.name} (head)",
                "parameters": sum(parameter.numel() for parameter in own),
                "frozen": number <= freeze_depth,
                "frozen_from_depth": number if number <= deepest else None,
            }
        )
    return rows
