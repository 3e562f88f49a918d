"""Tables about networks."""

from collections.abc import Sequence

from rich.table import Table

from thawline.backbones import BackboneInfo

__all__ = ["backbones_table"]


def backbones_table(infos: Sequence[BackboneInfo]) -> Table:
    """One line for each backbone."""
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
            "-" if info.image_size is None else str(info.image_size),
            ", ".join(info.weights),
            f"0-{len(info.layer_groups)}",
            ", ".join(info.layer_groups),
        )
    return table
