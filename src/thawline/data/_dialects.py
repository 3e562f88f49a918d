"""Detect how the fields of a CSV or TSV file are separated, from many of its first rows, never only the first."""

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from thawline.data._table_files import open_table, table_suffix

__all__ = ["Dialect", "find_dialect", "open_text", "parsed"]

_ROWS = 200  # records for detecting a dialect
_DELIMITERS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "vertical bars"}
"""By priority if several fit equally: texts rarely contain tabs."""
_FEWEST = 3  # records to distinguish a header with one field less from a mistake


@dataclass(frozen=True)
class Dialect:
    """Options of :func:`csv.reader` for a file, and notes for the user."""

    options: dict[str, Any]
    skipped: int = 0
    """Lines at the beginning without records: Excel's ``sep=;``, comments."""
    unnamed_first: bool = False
    """Whether the header has no field for the first column, as when R writes row names."""
    notes: tuple[str, ...] = field(default=())


def find_dialect(path: Path) -> Dialect:
    """The dialect with which most of the first records have the same number of fields, at least two.

    Raises:
        OSError: if the file cannot be read.
    """
    skipped, notes = 0, []
    delimiters = list(_DELIMITERS) if table_suffix(path) == ".csv" else ["\t"]
    if (named := _excel_separator(path)) is not None:
        delimiters, skipped = [named], 1
        notes.append("the first line, sep=, is Excel's")
    best, spaces = _best(path, delimiters, skipped)
    comments = _comments(path, best, skipped)
    if comments:
        skipped += comments
        notes.append(f"{comments} comment line{'s' if comments > 1 else ''} at the beginning skipped")
        best, spaces = _best(path, delimiters, skipped)
    options = {"delimiter": best, "strict": True, **({"skipinitialspace": True} if spaces else {})}
    if table_suffix(path) == ".csv" and best != ",":
        notes.append(f"fields are separated by {_DELIMITERS.get(best, repr(best))}")
    if spaces:
        notes.append("spaces after them are removed")
    if table_suffix(path) != ".csv" and not _quotes_well_formed(path, skipped):
        options = {"delimiter": best, "quoting": csv.QUOTE_NONE}
        notes.append("quotation marks are taken literally")
    unnamed = _header_is_one_short(path, options, skipped)
    if unnamed:
        notes.append("the header does not name the first column, which is named 1")
    return Dialect(options, skipped, unnamed, tuple(notes))


def open_text(path: Path, skipped: int = 0) -> IO[str]:
    """The file as text, after the skipped lines; bytes that are not UTF-8 are kept as surrogates."""
    file = open_table(path, newline="")
    for _ in range(skipped):
        file.readline()
    return file


def parsed(file: IO[str], dialect: Dialect) -> Iterator[tuple[int, int, list[str] | str]]:
    """Yield (first line, last line, fields or error) of each record; skips empty lines.

    Args:
        file: file from :func:`open_text`, after the skipped lines.
        dialect: dialect of the file.
    """
    reader = csv.reader(file, **dialect.options)
    while True:
        first = dialect.skipped + reader.line_num + 1
        fields: list[str] | str
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # the reader continues with the next line
            fields = f"is malformed: {error}"
        if fields:
            yield first, dialect.skipped + reader.line_num, fields


def _excel_separator(path: Path) -> str | None:
    """The delimiter in Excel's first line ``sep=;``."""
    with open_text(path) as file:
        first = file.readline(20).rstrip("\r\n").strip('"')
    return first[4:] if first.lower().startswith("sep=") and len(first) == 5 else None


def _best(path: Path, delimiters: list[str], skipped: int) -> tuple[str, bool]:
    """The delimiter, and whether to remove spaces after it, that fit most of the first records."""
    ranked = [
        (_fit(path, {"delimiter": delimiter, "strict": True, "skipinitialspace": spaces}, skipped), delimiter, spaces)
        for spaces in (False, True)
        for delimiter in delimiters
    ]
    fit, delimiter, spaces = max(ranked, key=lambda each: each[0])  # the first among equals
    if not fit:
        return ("," if "," in delimiters else delimiters[0]), False
    return delimiter, spaces or ((fit, delimiter, True) in ranked and _quotes_behind_spaces(path, delimiter, skipped))


def _quotes_behind_spaces(path: Path, delimiter: str, skipped: int) -> bool:
    records = _first_records(path, {"delimiter": delimiter}, skipped)
    return any(cell.startswith(" ") and cell.lstrip(" ").startswith('"') for record in records for cell in record)


def _fit(path: Path, options: dict[str, Any], skipped: int) -> float:
    """Share of the first records with the most frequent number of fields; 0 if that is one."""
    records = _first_records(path, options, skipped)
    widths = Counter(len(fields) for fields in records if isinstance(fields, list))
    if not widths:
        return 0.0
    width, count = widths.most_common(1)[0]
    return count / len(records) if width > 1 else 0.0


def _first_records(path: Path, options: dict[str, Any], skipped: int) -> list[list[str] | str]:
    with open_text(path, skipped) as file:
        return [fields for _, _, fields in islice(parsed(file, Dialect(options, skipped)), _ROWS)]


def _comments(path: Path, delimiter: str, skipped: int) -> int:
    """Number of initial lines with ``#`` whose number of fields differs from the records below."""
    records = _first_records(path, {"delimiter": delimiter}, skipped)
    widths = Counter(len(fields) for fields in records)
    with open_text(path, skipped) as file:
        lines = list(islice(file, _ROWS))
    count = next((number for number, line in enumerate(lines) if not line.startswith("#")), 0)
    usual = widths.most_common(1)[0][0] if widths else 0
    fits = any(len(next(csv.reader([line], delimiter=delimiter), [])) == usual for line in lines[:count])
    return 0 if fits else count


def _header_is_one_short(path: Path, options: dict[str, Any], skipped: int) -> bool:
    """Whether all records except the first have one field more than the first."""
    widths = [len(fields) for fields in _first_records(path, options, skipped) if isinstance(fields, list)]
    return len(widths) >= _FEWEST and widths[0] > 1 and set(widths[1:]) == {widths[0] + 1}


def _quotes_well_formed(path: Path, skipped: int) -> bool:
    """Whether every record of a TSV file has the same number of fields with ``"`` read as a quote.

    Messages contain stray quotes, two of which may enclose hundreds of lines. So if quoting would join lines, but
    without it each line has the same number of fields, quotes are literal.
    """
    widths, joins = set(), False
    with open_text(path, skipped) as file:
        for first, last, fields in parsed(file, Dialect({"delimiter": "\t", "strict": True})):
            if isinstance(fields, str):
                return False
            widths.add(len(fields))
            joins = joins or last > first
    if len(widths) > 1:
        return False
    with open_text(path, skipped) as file:
        return not joins or len({line.count("\t") for line in file if line.strip()}) > 1
