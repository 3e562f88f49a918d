"""Tables about the home and the machine."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:  # the doctor must not need packages that may be broken
    from thawline.cleaning import Survey
    from thawline.doctor import Finding

__all__ = ["clean_table", "clean_total", "findings_table"]


def findings_table(findings: "Sequence[Finding]") -> Table:
    """The findings of the doctor, with advice: errors first, then warnings."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "check", "found", "what to do"):
        table.add_column(name, overflow="fold")
    styles = {"ok": "green", "warning": "yellow", "wrong": "red"}
    order = list(styles)
    for finding in sorted(findings, key=lambda each: -order.index(each.status)):
        mark = f"[{styles[finding.status]}]{finding.status}[/]"
        table.add_row(mark, *map(escape, (finding.subject, finding.detail, finding.advice)))
    return table


def clean_table(found: "Survey") -> Table:
    """Items to remove, or already removed."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what", overflow="fold")
    # The only column that shrinks on a narrow terminal: file names are hashes.
    table.add_column("where", overflow="ellipsis", no_wrap=True, min_width=30)
    for name in ("how many", "size"):
        table.add_column(name, justify="right")
    table.add_column("why", overflow="fold")
    for item in found.items:
        size = "?" if item.bytes is None else decimal(item.bytes)
        table.add_row(*map(escape, (item.kind, item.name, str(len(item.parts)), size, item.why)))
    return table


def clean_total(found: "Survey", *, removed: bool, failures: int = 0) -> str:
    """Summarise in a sentence, with the option that removes the items."""
    if not found.items:
        return "There is nothing to remove."
    amount = f"{sum(len(item.parts) for item in found.items)} files or records, {decimal(found.bytes)}"
    if removed:
        return f"Removed: {amount}, except {failures}." if failures else f"Removed: {amount}."
    return f"Nothing was removed. The same command with --yes removes all of this: {amount}."
