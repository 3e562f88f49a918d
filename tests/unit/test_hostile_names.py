"""Names, paths and reasons stand in tables as they are, also if they look like markup."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from thawline.cli.tables.home import findings_table
from thawline.cli.tables.models import explanations_table, history_table, verdict_table
from thawline.doctor import Finding
from thawline.registry import Outcome, Reign, Verdict
from thawline.registry.gate import Criterion

NAME = "dog[bold] [ops-1] [/b]"
EXPLAINED = {"path": NAME, "predicted": NAME, "probability": 0.9, "target": NAME, "method": "grad-cam", "file": NAME}
TABLES = {
    "doctor": (findings_table([Finding("W&B", "ok", NAME, NAME)]), 2),
    "history": (history_table(NAME, [Reign("1", None, None, NAME, NAME)]), 3),
    "verdict": (verdict_table(Verdict(Outcome.HOLD, "", (Criterion(NAME, True, NAME, NAME),))), 3),
    "explain": (explanations_table([EXPLAINED]), 4),
    "explain, unreadable": (explanations_table([{"path": NAME, "error": NAME}]), 2),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_shows_what_looks_like_markup(name: str) -> None:
    table, times = TABLES[name]
    assert isinstance(table, Table)
    console = Console(file=io.StringIO(), width=300)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().count(NAME) == times
