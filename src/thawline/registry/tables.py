"""The registry for the terminal: a verdict's criteria, and who was champion when."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.table import Table

from thawline.registry.gate import Verdict
from thawline.registry.reigns import Reign

__all__ = ["history_rows", "history_table", "verdict_table"]


def verdict_table(verdict: Verdict) -> Table:
    """Every criterion, its value, what is required, and whether it is fulfilled."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("criterion", "value", "required", ""):
        table.add_column(name, overflow="fold")
    for each in verdict.criteria:
        table.add_row(each.name, each.value, each.threshold, "[green]pass[/]" if each.passed else "[red]fail[/]")
    return table


def history_rows(reigns: Sequence[Reign]) -> list[dict[str, Any]]:
    """The champions as JSON, the oldest first; times are ISO 8601 in UTC."""
    return [
        {
            "version": reign.version,
            "since": reign.since.isoformat(timespec="seconds") if reign.since else None,
            "until": reign.until.isoformat(timespec="seconds") if reign.until else None,
            "by": reign.by,
            "reason": reign.reason,
        }
        for reign in reigns
    ]


def history_table(model: str, reigns: Sequence[Reign]) -> Table:
    """The champions, the newest first, in local time."""
    table = Table(title=f"Champions of {model}", box=None, pad_edge=False, header_style="bold", title_justify="left")
    for name in ("version", "since", "until", "by", "reason"):
        table.add_column(name, overflow="fold")
    for index, reign in enumerate(reversed(reigns)):
        until = "now" if index == 0 and reign.until is None else _local(reign.until)
        table.add_row(reign.version, _local(reign.since), until, reign.by, reign.reason)
    return table


def _local(moment: datetime | None) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else "unknown"
