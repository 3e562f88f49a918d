"""What a scan found, for people and for programs."""

import io
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from thawline.data._files import as_text, printable
from thawline.data.contract import NOUNS, SPLITS, DataKind, Manifest, Problem, TextTable, counted

if TYPE_CHECKING:  # the processes that decode import this package and print nothing
    from rich.console import RenderableType

__all__ = ["problem_titles", "report", "report_json", "report_text"]

_NAMED = 10  # problems of one kind that are named; bad files are named all


def report(manifest: Manifest) -> "RenderableType":
    """A table of classes and splits, then every kind of problem with its files or lines, then the data digest."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

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
    if manifest.table is not None:
        parts += [Text(), Text(_lengths(manifest.table))]
    for kind, title in problem_titles(manifest.kind).items():
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


def problem_titles(kind: DataKind) -> dict[str, str]:
    """What problems of each kind are, in words, in the order in which they are shown."""
    noun = NOUNS[kind]
    return {
        "bad": "Cannot be decoded, left out" if kind == "images" else "Cannot be read, left out",
        "conflict": f"The same {noun} under two classes, left out",
        "leak": "Also in a split that is held out more, left out",
        "class": "Classes to look at",
        "duplicate": f"Copies of another {noun}, kept on the same side",
        "stray": "Not read",
    }


def _groups(manifest: Manifest) -> str:
    """How many groups stay on one side, or nothing where none are given."""
    sizes = Counter(row.group for row in manifest.rows if row.group is not None)
    if not sizes:
        return ""
    noun = NOUNS[manifest.kind]
    without = len(manifest.rows) - sizes.total()
    alone = f"; {counted(without, noun)} in none" if without else ""
    kept = "each stays on one side of the split"
    return f"Groups: {len(sizes):,}, of at most {counted(max(sizes.values()), noun)}{alone}; {kept}"


def _lengths(table: TextTable) -> str:
    return f"Length of a text in characters: {table.median_length:,} (median), {table.longest:,} (longest)"


def report_text(manifest: Manifest, *, width: int = 100) -> str:
    """:func:`report` as plain text, for logs and notes."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(report(manifest))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def report_json(manifest: Manifest) -> dict[str, Any]:
    """The same for programs: JSON types only, every problem in full."""

    def of(kind: str) -> list[Problem]:
        return [problem for problem in manifest.problems if problem.kind == kind]

    splits, titles = Counter(row.split for row in manifest.rows), problem_titles(manifest.kind)
    return {
        "path": str(manifest.root),
        "kind": manifest.kind,
        "layout": manifest.layout,
        "digest": manifest.digest,
        manifest.kind: len(manifest.rows),
        **({"table": asdict(manifest.table)} if manifest.table is not None else {}),
        "groups": len({row.group for row in manifest.rows} - {None}),
        "splits": {split: splits[split] for split in SPLITS},
        "classes": {name: dict(by_split) for name, by_split in manifest.counts().items()},
        "problems": {
            kind: [{"path": as_text(p.path), "reason": as_text(p.reason)} for p in of(kind)] for kind in titles
        },
    }
