"""The report on data."""

from collections import Counter
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from thawline.data import Manifest, printable, problem_titles
from thawline.data.contract import NOUNS, SPLITS, counted
from thawline.data.report import measured_lines

__all__ = ["data_report"]

_NAMED = 10
"""Maximum number of problems listed per kind; bad files are all listed."""


def data_report(manifest: Manifest) -> RenderableType:
    """A table of classes and splits, then the files or lines with each kind of problem, then the data digest."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("class", overflow="fold")
    for title in (*SPLITS, "all", "share"):
        table.add_column(title, justify="right")
    counts = manifest.counts()
    total = len(manifest.rows)
    for name, by_split in counts.items():
        own = sum(by_split.values())
        table.add_row(Text(printable(name)), *(f"{n:,}" for n in by_split.values()), f"{own:,}", f"{own / total:.1%}")
    sums = [sum(by_split[split] for by_split in counts.values()) for split in SPLITS]
    table.add_row("all", *(f"{n:,}" for n in sums), f"{total:,}", "", style="bold")

    parts: list[Any] = [Text(printable(f"{manifest.root}: {manifest.layout}")), Text(), table]
    if groups := _groups(manifest):
        parts += [Text(), Text(groups)]
    if measured := measured_lines(manifest.table, manifest.shapes):
        parts += [Text(), *map(Text, measured)]
    titles = problem_titles(manifest.kind)
    totals = Counter[str](problem.kind for problem in manifest.problems)
    if len(totals) > 1:
        parts += [Text(), Text("Problems, listed below", style="bold")]
        parts += [Text(f"{totals[kind]:>7,}  {title}") for kind, title in titles.items() if totals[kind]]
    for kind, title in titles.items():
        problems = [problem for problem in manifest.problems if problem.kind == kind]
        if problems:
            shown = problems if kind == "bad" else problems[:_NAMED]
            lines = [printable(f"{problem.path}: {problem.reason}") for problem in shown]
            if len(shown) < len(problems):
                lines.append(f"and {len(problems) - len(shown):,} more")
            parts += [Text(), Text(f"{title}: {len(problems):,}", style="bold")]
            parts += [Padding(Text(line), (0, 0, 0, 2)) for line in lines]
    parts += [Text(), Text(f"data digest {manifest.digest}")]
    return Group(*parts)


def _groups(manifest: Manifest) -> str:
    """The number of groups that stay on one side; empty if there are none."""
    sizes = Counter(row.group for row in manifest.rows if row.group is not None)
    if not sizes:
        return ""
    noun = NOUNS[manifest.kind]
    without = len(manifest.rows) - sizes.total()
    alone = f"; {counted(without, noun)} in none" if without else ""
    kept = "each is kept in one split"
    return f"Groups: {len(sizes):,}, of at most {counted(max(sizes.values()), noun)}{alone}; {kept}"
