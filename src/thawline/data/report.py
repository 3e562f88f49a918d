"""What a scan found, in words and for programs."""

from collections import Counter
from dataclasses import asdict
from typing import Any

from thawline.data._files import as_text
from thawline.data.contract import NOUNS, SPLITS, DataKind, ImageShapes, Manifest, Problem, TextTable

__all__ = ["measured_lines", "problem_titles", "report_json"]


def problem_titles(kind: DataKind) -> dict[str, str]:
    """What problems of each kind are, in words, in the order in which they are shown."""
    noun = NOUNS[kind]
    return {
        "bad": "Cannot be decoded, left out" if kind == "images" else "Cannot be read, left out",
        "conflict": f"The same {noun} under two classes, left out",
        "leak": "Also in a split that is held out more, left out",
        "class": "Classes to look at",
        "duplicate": f"Copies of another {noun}, kept on the same side",
        "near": f"Nearly the same as another {noun}",
        "excluded": "Left out by data.exclude",
        "relabelled": "Under another class by data.relabel",
        "stray": "Not read",
    }


def measured_lines(table: TextTable | None, shapes: ImageShapes | None) -> list[str]:
    """How long the texts are, or formats and sizes of the images, in words; nothing where neither is known."""
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
    """All of it for programs: JSON types only, every problem in full."""

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
