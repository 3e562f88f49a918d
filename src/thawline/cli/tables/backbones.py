"""Tables about networks."""

from collections.abc import Sequence

from rich.table import Table

from thawline.backbones import BackboneInfo

__all__ = ["backbones_table"]


_WIDE = 120
"""Terminal width at which most lists of layer groups take one or two lines."""


def backbones_table(infos: Sequence[BackboneInfo], width: int = _WIDE) -> Table:
    """One row per backbone; on a narrow terminal one line, without the names of its layer groups."""
    wide = width >= _WIDE
    table = Table(title=f"{len(infos)} backbones")
    table.add_column("backbone", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("image size", justify="right", no_wrap=True)
    table.add_column("weights")
    table.add_column("depths", justify="right")
    if wide:
        table.add_column("layer groups, from input to head")
    for info in infos:
        table.add_row(
            info.name,
            f"{info.parameters / 1e6:.1f} M",
            "-" if info.image_size is None else str(info.image_size),
            ", ".join(info.weights),
            f"0-{len(info.layer_groups)}",
            *([", ".join(info.layer_groups)] if wide else []),
        )
    return table
