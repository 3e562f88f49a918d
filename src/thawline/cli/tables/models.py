"""Tables about registered models and their predictions."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.markup import escape
from rich.table import Table

from thawline.data import DataKind, printable
from thawline.registry import Reign, Verdict

__all__ = ["explanations_table", "history_table", "predictions_table", "verdict_table"]

_SHOWN_LETTERS = 60
"""Maximum number of characters shown of a text."""


def verdict_table(verdict: Verdict) -> Table:
    """Every criterion with its value, its threshold, and whether it is met."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("criterion", "value", "required", ""):
        table.add_column(name, overflow="fold")
    for each in verdict.criteria:
        table.add_row(
            *map(escape, (each.name, each.value, each.threshold)), "[green]pass[/]" if each.passed else "[red]fail[/]"
        )
    return table


def history_table(model: str, reigns: Sequence[Reign]) -> Table:
    """The champions, newest first, in local time."""
    table = Table(
        title=f"Champions of {escape(model)}", box=None, pad_edge=False, header_style="bold", title_justify="left"
    )
    for name in ("version", "since", "until", "by", "reason"):
        table.add_column(name, overflow="fold")
    for index, reign in enumerate(reversed(reigns)):
        until = "now" if index == 0 and reign.until is None else _local(reign.until)
        table.add_row(reign.version, _local(reign.since), until, escape(reign.by), escape(reign.reason))
    return table


def predictions_table(predictions: Sequence[dict[str, Any]]) -> Table:
    """Predictions: the class, its probability, the runner-up and, if the model has them, the prediction set.

    If an item is unknown, its class is in parentheses.
    """
    sets = any("prediction_set" in each for each in predictions)
    kind: DataKind = "texts" if "text" in predictions[0] else "images"
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("text" if kind == "texts" else "file", "class", "probability", "next", *["may be"] * sets):
        table.add_column(name, overflow="fold")
    for prediction in predictions:
        shown = escape(_shortened(prediction["text"]) if kind == "texts" else printable(prediction["path"]))
        if "error" in prediction:
            table.add_row(shown, f"[red]{escape(prediction['error'])}[/]", "", "")
            continue
        ranked = sorted(prediction["probabilities"].items(), key=lambda item: -item[1])
        runner_up = f"{ranked[1][0]} {ranked[1][1]:.3f}" if len(ranked) > 1 else ""
        name = f"unknown ({prediction['class']})" if prediction.get("unknown") else prediction["class"]
        row = [shown, escape(name), f"{prediction['probability']:.3f}", escape(runner_up)]
        table.add_row(*row, *[escape(", ".join(prediction.get("prediction_set", ())))] * sets)
    return table


def explanations_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The class explained in each image, and the file written."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("file", "class", "probability", "explained", "method", "picture"):
        table.add_column(name, overflow="fold")
    for row in rows:
        if "error" in row:
            table.add_row(escape(printable(row["path"])), f"[red]{escape(row['error'])}[/]", "", "", "", "")
            continue
        cells = (
            printable(row["path"]), row["predicted"], f"{row['probability']:.3f}",
            row["target"], row["method"], printable(row["file"]),
        )  # fmt: skip
        table.add_row(*map(escape, cells))
    return table


def _local(moment: datetime | None) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else "unknown"


def _shortened(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= _SHOWN_LETTERS else f"{line[: _SHOWN_LETTERS - 1]}…"
