"""Render a table as on a terminal."""

import io

from rich.console import Console, RenderableType

__all__ = ["rendered"]


def rendered(shown: RenderableType, width: int = 100) -> str:
    """Its text without colours, on a terminal with this many columns."""
    file = io.StringIO()
    Console(file=file, width=width, color_system=None, legacy_windows=False).print(shown)
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())
