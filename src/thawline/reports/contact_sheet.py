"""Data as one self-contained page to look at before anything is trained: examples of each class, and problems."""

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
"""Examples of one class, at most."""
_MOST = 600
"""Examples of all classes: the page has 10 kB of each."""
_NAMED = 100
"""Problems of one kind that are named; those with a picture are also shown, as many as examples of a class."""
_PICTURED = ("conflict", "leak", "duplicate", "near")
"""Problems of images that can be decoded."""


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
        manifest: of data that are still there: the examples are read again.

    Raises:
        DataError: if a file is gone, or holds something else than when it was scanned.
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
    examples = iter(_examples(manifest, [*chain.from_iterable(chosen)]))  # of all at once: a table is read whole
    return [
        _Class(manifest.classes[label], len(rows[label]), [*islice(examples, len(shown))])
        for label, shown in enumerate(chosen)
    ]


def _spread(rows: Sequence[Row], most: int) -> list[Row]:
    """Evenly spread over the rows, which are in the order of splits and digests."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows)), dtype=int))
    return [rows[number] for number in chosen.tolist()]


def _examples(manifest: Manifest, rows: Sequence[Row]) -> list[_Example]:
    if manifest.kind == "texts":
        texts = texts_of(manifest, rows)
        return [_Example(row.path, **shown_example(text)) for row, text in zip(rows, texts, strict=True)]
    files = files_of(manifest, rows)
    return [_pictured(row.path, file) for row, file in zip(rows, files, strict=True)]


def _pictured(caption: str, file: Path) -> _Example:
    # Whatever its size, the scan has accepted it; Pillow's own bound holds.
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
    """Those that are images; of texts the lines say it all."""
    if manifest.kind == "texts":
        return []
    shown: list[_Example] = []
    for problem in problems:
        try:
            shown.append(_pictured(f"{problem.path}: {problem.reason}", manifest.root / problem.path))
        except (OSError, BadImage):  # the line below names it all the same
            continue
    return shown
