"""The report of a drift check."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from thawline.data import printable
from thawline.drift import DriftReport
from thawline.drift.report import CLASS_COLUMNS, TEST_COLUMNS

__all__ = ["drift_table"]


def drift_table(report: DriftReport) -> RenderableType:
    """The tests, the predicted classes, and the images farthest from the reference."""
    tests = _table(TEST_COLUMNS)
    for test, (*cells, verdict) in report.test_rows():
        tests.add_row(*cells, Text(verdict, "red" if test.drift else "green"))
    classes = _table(CLASS_COLUMNS)
    for share, cells in report.class_rows():
        classes.add_row(Text(printable(share.name)), *cells)
    unusual = _table(("farthest from the reference", "times the usual distance"))
    for image in report.unusual:
        unusual.add_row(Text(printable(image.path)), f"{image.distance:.1f}")
    heading = f"{report.model} version {report.version}; reference: {report.reference}"
    bad = [Text(f"Unreadable: {printable(path)}: {reason}", "red") for path, reason in report.bad.items()]
    note = [Text(report.note, "yellow")] if report.note else []
    return Group(Text(printable(heading), "bold"), "", tests, "", classes, "", unusual, "", *bad, *note)


def _table(columns: Sequence[str]) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made
