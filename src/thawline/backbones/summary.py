"""What ``thawline backbones`` and ``thawline summary`` show."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from thawline.backbones._base import Backbone, BackboneInfo, LayerGroup
from thawline.exceptions import BackboneError

if TYPE_CHECKING:
    import torch

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

    The backbone is left frozen to that depth.

    Raises:
        BackboneError: unless ``0 <= freeze_depth <= len(backbone.layer_groups)``.
    """
    import torchinfo

    _freeze(backbone, freeze_depth)
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
    rows = _rows(backbone, freeze_depth)
    width = max(len("head"), *(len(row["name"]) for row in rows))
    lines = [
        f"{'' if row['depth'] is None else row['depth']!s:>5}  {row['name']:<{width}}  {row['parameters']:>13,}  "
        f"{'frozen' if row['frozen'] else 'trainable'}"
        for row in rows
    ]
    return "\n".join(
        [
            str(layers),
            "",
            f"{backbone.name} at freeze depth {freeze_depth} of {len(backbone.layer_groups)}",
            f"depth  {'layer group':<{width}}  {'parameters':>13}",
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
