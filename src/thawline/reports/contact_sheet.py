"""Data as one self-contained page for inspection before training: examples of each class, and problems."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from thawline.data import BadImage, Manifest, Problem, Row, decode, files_of, report_json, texts_of
from thawline.data.contract import NOUNS
from thawline.data.report import measured_lines, problem_titles
from thawline.reports._templates import template
from thawline.reports.gallery import SIDE, shown_example
from thawline.reports.page import class_rows
from thawline.reports.values import DataSummary

__all__ = ["contact_sheet"]

_EACH = 12
"""Maximum number of examples per class."""
_MOST = 600
"""Maximum number of examples over all classes, each of which adds 10 kB to the page."""
_NAMED = 100
"""Maximum number of problems listed per kind; up to ``_EACH`` with images are also shown."""
_PICTURED = ("conflict", "leak", "duplicate", "near")
"""Kinds of problems whose images can be decoded."""


@dataclass(frozen=True)
class _Example:
    caption: str
    picture: bytes | None = None
    text: str | None = None


@dataclass(frozen=True)
class _Class:
    name: str
    count: int
    examples: list[_Example]


@dataclass(frozen=True)
class _Problems:
    title: str
    count: int
    lines: list[str]
    more: int
    examples: list[_Example]


def contact_sheet(manifest: Manifest) -> str:
    """The page, as HTML; a browser that opens it sends no request.

    Args:
        manifest: manifest of data that still exist, because the examples are read again.

    Raises:
        DataError: if a file was removed or changed after the scan.
    """
    each = max(1, min(_EACH, _MOST // len(manifest.classes)))
    shown = manifest.classes[:_MOST]
    data, noun = DataSummary.model_validate(report_json(manifest)), NOUNS[manifest.kind]
    return template("contact_sheet.html").render(
        data=data,
        noun=noun,
        classes=class_rows(data),
        measured=measured_lines(manifest.table, manifest.shapes),
        each=each,
        omitted=len(manifest.classes) - len(shown),
        sheets=_sheets(manifest, len(shown), each),
        problems=_problems(manifest),
    )


def _sheets(manifest: Manifest, classes: int, each: int) -> list[_Class]:
    rows: list[list[Row]] = [[] for _ in manifest.classes]
    for row in manifest.rows:
        rows[row.label].append(row)
    chosen = [_spread(of_class, each) for of_class in rows[:classes]]
    examples = iter(_examples(manifest, [*chain.from_iterable(chosen)]))  # for all at once: tables are read whole
    return [
        _Class(manifest.classes[label], len(rows[label]), [*islice(examples, len(shown))])
        for label, shown in enumerate(chosen)
    ]


def _spread(rows: Sequence[Row], most: int) -> list[Row]:
    """Choose evenly spaced rows; they are sorted by split and digest."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows)), dtype=int))
    return [rows[number] for number in chosen.tolist()]


def _examples(manifest: Manifest, rows: Sequence[Row]) -> list[_Example]:
    if manifest.kind == "texts":
        texts = texts_of(manifest, rows)
        return [_Example(row.path, **shown_example(text)) for row, text in zip(rows, texts, strict=True)]
    files = files_of(manifest, rows)
    return [_pictured(row.path, file) for row, file in zip(rows, files, strict=True)]


def _pictured(caption: str, file: Path) -> _Example:
    # Any size: the scan has accepted it, and Pillow's own limit applies.
    image = decode(file.read_bytes(), max_pixels=sys.maxsize, shortest=SIDE)
    return _Example(caption, **shown_example(np.asarray(image)))


def _problems(manifest: Manifest) -> list[_Problems]:
    found: list[_Problems] = []
    for kind, title in problem_titles(manifest.kind).items():
        problems = [problem for problem in manifest.problems if problem.kind == kind]
        if problems:
            lines = [f"{problem.path}: {problem.reason}" for problem in problems[:_NAMED]]
            shown = _of_problems(manifest, problems[:_EACH]) if kind in _PICTURED else []
            found.append(_Problems(title, len(problems), lines, len(problems) - len(lines), shown))
    return found


def _of_problems(manifest: Manifest, problems: Sequence[Problem]) -> list[_Example]:
    """Examples of problems with images; for texts, the listed lines suffice."""
    if manifest.kind == "texts":
        return []
    shown: list[_Example] = []
    for problem in problems:
        try:
            shown.append(_pictured(f"{problem.path}: {problem.reason}", manifest.root / problem.path))
        except (OSError, BadImage):  # it is still listed below
            continue
    return shown
