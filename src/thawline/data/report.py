"""The results of a scan, in words and as JSON."""

from collections import Counter
from dataclasses import asdict
from typing import Any

from thawline.data._files import as_text
from thawline.data.contract import NOUNS, SPLITS, DataKind, ImageShapes, Manifest, Problem, TextTable

__all__ = ["measured_lines", "problem_titles", "report_json"]


def problem_titles(kind: DataKind) -> dict[str, str]:
    """Titles of the kinds of problems, in display order."""
    noun = NOUNS[kind]
    return {
        "bad": "Cannot be decoded, skipped" if kind == "images" else "Cannot be read, skipped",
        "conflict": f"The same {noun} under two classes, skipped",
        "leak": "Also in a held-out split, skipped",
        "class": "Classes to check",
        "duplicate": f"Copies of another {noun}, kept in the same split",
        "near": f"Nearly the same as another {noun}",
        "excluded": "Excluded by data.exclude",
        "relabelled": "Relabelled by data.relabel",
        "stray": "Not read",
    }


def measured_lines(table: TextTable | None, shapes: ImageShapes | None) -> list[str]:
    """Lengths of the texts, or formats and sizes of the images, in words; empty if unknown."""
    if table is not None:
        return [f"Length of a text in characters: {table.median_length:,} (median), {table.longest:,} (longest)"]
    if shapes is None:
        return []
    formats = ", ".join(f"{name} {count:,}" for name, count in shapes.formats.items())
    median, smallest, largest = (
        f"{width:,} x {height:,}" for width, height in (shapes.median, shapes.smallest, shapes.largest)
    )
    least, middle, greatest = shapes.aspect
    return [
        f"Formats: {formats}",
        f"Sizes in pixels: {median} (median), {smallest} to {largest}",
        f"Width divided by height: {middle:.2f} (median), {least:.2f} to {greatest:.2f}",
    ]


def report_json(manifest: Manifest) -> dict[str, Any]:
    """The complete report as JSON types, with every problem."""

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
        **({"shapes": asdict(manifest.shapes)} if manifest.shapes is not None else {}),
        "groups": len({row.group for row in manifest.rows} - {None}),
        "splits": {split: splits[split] for split in SPLITS},
        "classes": {name: dict(by_split) for name, by_split in manifest.counts().items()},
        "problems": {
            kind: [{"path": as_text(p.path), "reason": as_text(p.reason)} for p in of(kind)] for kind in titles
        },
    }
