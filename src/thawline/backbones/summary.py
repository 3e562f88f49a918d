"""What ``thawline backbones`` and ``thawline summary`` show."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from thawline.backbones._base import Backbone, BackboneInfo
from thawline.exceptions import BackboneError

__all__ = ["info_json", "listing", "summary_json", "summary_text"]


def listing(infos: Sequence[BackboneInfo]) -> Table:
    """A table of backbones for a terminal."""
    table = Table(title=f"{len(infos)} backbones")
    table.add_column("backbone", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("image size", justify="right", no_wrap=True)
    table.add_column("weights")
    table.add_column("depths", justify="right")
    table.add_column("layer groups, from input to head")
    for info in infos:
        table.add_row(
            info.name,
            f"{info.parameters / 1e6:.1f} M",
            str(info.image_size),
            ", ".join(info.weights),
            f"0-{len(info.layer_groups)}",
            ", ".join(info.layer_groups),
        )
    return table


def info_json(info: BackboneInfo) -> dict[str, Any]:
    """The same as plain JSON."""
    return dataclasses.asdict(info) | {"layer_groups": list(info.layer_groups), "weights": list(info.weights)}


def summary_text(backbone: Backbone, freeze_depth: int) -> str:
    """Tables of the layers (by torchinfo) and of the layer groups, with what is frozen and trainable at a depth.

    The parameters' ``requires_grad`` is left as at that depth.

    Raises:
        BackboneError: unless ``0 <= freeze_depth <= len(backbone.layer_groups)``.
    """
    import torchinfo

    rows = _rows(backbone, freeze_depth)
    size = backbone.preprocessing.image_size
    layers = torchinfo.summary(
        backbone.module,
        input_size=(1, 3, size, size),
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
        ]
    )


def summary_json(backbone: Backbone, freeze_depth: int) -> dict[str, Any]:
    """The layer groups, from input to head, with what is frozen and trainable at a depth, as plain JSON.

    Raises:
        BackboneError: unless ``0 <= freeze_depth <= len(backbone.layer_groups)``.
    """
    rows = _rows(backbone, freeze_depth)
    return {
        "backbone": backbone.name,
        "image_size": backbone.preprocessing.image_size,
        "freeze_depth": freeze_depth,
        "parameters": sum(row["parameters"] for row in rows),
        "trainable": sum(row["parameters"] for row in rows if not row["frozen"]),
        "layer_groups": rows[:-1],
        "head": rows[-1],
    }


def _rows(backbone: Backbone, freeze_depth: int) -> list[dict[str, Any]]:
    """One row for each layer group and, last, the head; sets ``requires_grad`` to match."""
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
