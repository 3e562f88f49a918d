"""Tables about studies."""

from collections.abc import Sequence

from rich.table import Table

from thawline.search import TrialRecord
from thawline.search.leaderboard import (
    leaderboard_cells,
    leaderboard_rows,
    shortened_names,
    varied_hyperparameters,
)

__all__ = ["leaderboard_table"]


def leaderboard_table(records: Sequence[TrialRecord], metric: str, *, title: str | None = None) -> Table:
    """Trials by rank, without hyperparameters that are the same in all.

    A long backbone name is shortened in the table and given in full below.
    """
    varied = varied_hyperparameters(records)
    table = Table(
        title=title,
        title_justify="left",
        caption="\n".join(shortened_names(records)) or None,
        caption_justify="left",
        header_style="bold",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for name in ["rank", "trial", "state"]:
        table.add_column(name, justify="right" if name != "state" else "left", no_wrap=True)
    table.add_column(f"val/{metric}", justify="right", no_wrap=True)
    for name in [*varied, "epochs", "seconds"]:
        table.add_column(name.replace("_", "\n", 1).replace("_", " "), justify="right", no_wrap=True)
    # The only column that shrinks on a narrow terminal, so that a trial stays on one line.
    table.add_column("MLflow run", overflow="ellipsis", min_width=8)
    for row in leaderboard_rows(records):
        style = {"complete": "", "pruned": "dim", "failed": "red", "paused": "dim", "running": "cyan"}[row["state"]]
        table.add_row(*leaderboard_cells(row, varied), row["run_id"] or "-", style=style)
    return table
