"""Tables for narrow terminals: columns shrink before any word is broken."""

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Column, Table

__all__ = ["fit"]


def fit(shown: RenderableType, console: Console) -> None:
    """Set column widths, in a table or in the tables of a group, such that words stay whole.

    Rich shrinks the widest column first, however long its words are. If the longest words of all columns do not fit
    together, only the longest of them, such as paths, are broken.
    """
    for table in shown.renderables if isinstance(shown, Group) else [shown]:
        if isinstance(table, Table) and table.box is None:
            _fit(table, console)


def _fit(table: Table, console: Console) -> None:
    _, right, _, left = table.padding
    room = console.width - (left + right) * (len(table.columns) - 1) - (left + right) * table.pad_edge
    measured = [_measure(column, console) for column in table.columns]
    if sum(each.maximum for each in measured) <= room:
        return
    for column, width in zip(table.columns, _widths(measured, room), strict=True):
        column.width = width


def _measure(column: Column, console: Console) -> Measurement:
    """Lengths of the longest word and the longest line; for a column that may be truncated, its minimum width.

    Such a column has ``min_width``: rich's default would truncate every column that does not fold.
    """
    cells = [Measurement.get(console, console.options, cell) for cell in (column.header, *column.cells)]
    most = max(cell.maximum for cell in cells)
    if column.overflow == "ellipsis" and column.min_width is not None:
        return Measurement(min(column.min_width, most), most)
    return Measurement(most if column.no_wrap else max(cell.minimum for cell in cells), most)


def _widths(measured: Sequence[Measurement], room: int) -> list[int]:
    widths = [each.minimum for each in measured]
    while sum(widths) > room and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    wanted = [max(0, each.maximum - width) for each, width in zip(measured, widths, strict=True)]
    spare, wanting = room - sum(widths), sum(wanted)
    return [width + spare * want // wanting for width, want in zip(widths, wanted, strict=True)]
