"""Manual corrections of single rows: exclude them with ``data.exclude``, or change their class with ``data.relabel``.

Both are paths of a CSV as written by ``thawline check DATA --labels``, from which the correct rows were removed after a
review. It is read at every scan, so the folder is unchanged, and decisions stay traceable.
"""

import csv
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from thawline.data._files import as_text
from thawline.data.contract import NAMED, NOUNS, Found, Item, Problem, counted, listed
from thawline.exceptions import DataError

if TYPE_CHECKING:  # decoding processes import this package and do not need pydantic
    from thawline.config import DataConfig

__all__ = ["DIGEST", "LABEL", "PATH", "SUGGESTED", "check_corrections", "corrected"]

PATH, LABEL, SUGGESTED, DIGEST = "path", "label", "suggested", "digest"
"""Columns to read. ``label`` and ``digest``, if they exist, are the row's state at the review."""

_DELIMITERS = ",;\t"
"""Spreadsheets use semicolons in many locales."""


@dataclass(frozen=True)
class _Row:
    line: int
    path: str
    label: str
    suggested: str
    digest: str


def check_corrections(config: "DataConfig") -> None:
    """Refuse files of corrections that cannot be read, without reading data.

    Raises:
        DataError: as :func:`corrected` does for the files themselves.
    """
    _read("exclude", config.exclude, (PATH,))
    _read("relabel", config.relabel, (PATH, SUGGESTED))


def corrected(found: Found, config: "DataConfig") -> Found:
    """Apply corrections: drop the rows of ``data.exclude``, and change the class of those of ``data.relabel``.

    Each is reported as a problem, ``excluded`` or ``relabelled``. Splits depend on content, so no other row moves.

    Raises:
        DataError: if a file cannot be read or lacks a column, names rows that are missing or have changed since the
            review, suggests an unknown class, or contradicts itself or the other file.
    """
    if config.exclude is None and config.relabel is None:
        return found
    out = _chosen("exclude", config.exclude, _read("exclude", config.exclude, (PATH,)), found)
    moved = _chosen("relabel", config.relabel, _read("relabel", config.relabel, (PATH, SUGGESTED)), found)
    if both := sorted(out.keys() & moved.keys()):
        raise DataError(
            f"data.exclude={config.exclude} and data.relabel={config.relabel} both name "
            f"{counted(len(both), NOUNS[found.kind])}:\n{listed(both)}\nRemove each from one of them."
        )
    _check_classes(moved, config.relabel, found)
    items: list[Item] = []
    problems: list[Problem] = []
    for item in found.items:
        name, was = _name(item.path), item.class_name
        if name in out:
            problems.append(Problem(item.path, f"was {was}", "excluded"))
        elif name in moved and moved[name].suggested != was:
            now = moved[name].suggested
            problems.append(Problem(item.path, f"{now} instead of {was}", "relabelled"))
            items.append(replace(item, class_name=now))
        else:
            items.append(item)
    return replace(found, items=items, problems=[*found.problems, *problems])


def _read(option: str, path: Path | None, columns: Sequence[str]) -> list[_Row]:
    """The rows of a file with these columns; empty without a file."""
    if path is None:
        return []
    given = f"data.{option}={path}"
    try:
        with path.expanduser().open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(_DELIMITERS, key=first.count))
            named = list(reader.fieldnames or [])
            records = [(reader.line_num, record) for record in reader]
    except FileNotFoundError:
        raise DataError(f"{given}: there is no such file. `thawline check DATA --labels MODEL` writes one.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{given} cannot be read as UTF-8 CSV: {error}.") from None
    if lacking := [column for column in columns if column not in named]:
        raise DataError(
            f"{given} has no column {' and no column '.join(lacking)}; it has: {', '.join(named) or 'none'}. "
            f"`thawline check DATA --labels MODEL` writes such a file; data.{option} needs {' and '.join(columns)}."
        )
    rows = [
        _Row(line, *((record.get(column) or "").strip() for column in (PATH, LABEL, SUGGESTED, DIGEST)))
        for line, record in records
    ]
    if empty := [row.line for row in rows for column in columns if not getattr(row, column)]:
        raise DataError(f"{given} has no {' or no '.join(columns)} in line {empty[0]}: fill it in, or remove the line.")
    return rows


def _chosen(option: str, file: Path | None, rows: Sequence[_Row], found: Found) -> dict[str, _Row]:
    """The row of each path; all paths must be in the data."""
    given, noun = f"data.{option}={file}", NOUNS[found.kind]
    there = {_name(item.path): item for item in found.items}
    unreadable = {_name(problem.path) for problem in found.problems if problem.kind == "bad"}
    chosen: dict[str, _Row] = {}
    unknown, changed = [], []
    for row in rows:
        name = _name(row.path)
        item = there.get(name)
        if item is None:
            if name not in unreadable:  # unreadable files are already skipped
                unknown.append(f"line {row.line}: {row.path}")
            continue
        if chosen.setdefault(name, row).suggested != row.suggested and option == "relabel":
            raise DataError(
                f"{given} names {row.path} twice, in lines {chosen[name].line} and {row.line}: "
                f"{chosen[name].suggested} or {row.suggested}? Remove one of the lines."
            )
        if reason := _change(row, item):
            changed.append(f"{row.path}: {reason}")
    if unknown:
        raise DataError(
            f"{given} names {counted(len(unknown), noun)} that are not in {found.root}:\n{listed(unknown)}\n"
            "Paths are relative to the data, with /, as `thawline check DATA --json` lists them. Remove these lines."
        )
    if changed:
        raise DataError(
            f"{given} was made for other data: {counted(len(changed), noun)} changed since.\n{listed(changed)}\n"
            "Remove these lines, or write the file again with `thawline check DATA --labels MODEL`."
        )
    return chosen


def _change(row: _Row, item: Item) -> str:
    """What changed in a row since the review; a class that is already corrected is fine."""
    if row.digest and row.digest != item.digest:
        return "its content has changed"
    if row.label and item.class_name not in (row.label, row.suggested):
        return f"it was {row.label}, and is now {item.class_name}"
    return ""


def _check_classes(moved: dict[str, _Row], file: Path | None, found: Found) -> None:
    wrong = [f"line {row.line}: {row.suggested}" for row in moved.values() if row.suggested not in found.classes]
    if wrong:
        more = ", …" if len(found.classes) > NAMED else ""
        raise DataError(
            f"data.relabel={file} suggests labels that are not classes of {found.root}:\n{listed(wrong)}\n"
            f"Its classes are {', '.join(found.classes[:NAMED])}{more}."
        )


def _name(path: str) -> str:
    """A path as written to a CSV: in Unicode normal form, whatever the bytes of its name."""
    return unicodedata.normalize("NFC", as_text(path)).removeprefix("./")
