"""Read a table file into records with line numbers, even if some are malformed.

The standard library's ``csv`` and ``json`` read line-based formats, because only they provide the line of a record;
PyArrow reads Parquet, openpyxl Excel's files. A table is kept in memory as a whole.
"""

import csv
import json
import math
import re
import threading
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from thawline.data._dialects import find_dialect, open_text, parsed
from thawline.data._spreadsheets import read_sheet
from thawline.data._table_files import open_bytes, open_table, table_suffix
from thawline.exceptions import DataError

__all__ = [
    "SAVE_AS_UTF8",
    "BadCell",
    "Cell",
    "Record",
    "Table",
    "arrow_cells",
    "class_names",
    "looks_like_labels",
    "read_table",
]

_LONGEST_CELL = 100_000_000  # characters; csv's own limit of 131,072 is too small for long documents
_LONGEST_LABEL = 100
_csv_limit = threading.Lock()
"""The maximum cell length is a global setting, which two threads must not change at the same time."""
_SURROGATES = re.compile("[\ud800-\udfff]")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


SAVE_AS_UTF8 = "Save the table as UTF-8, for example with `iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW`."


@dataclass(frozen=True)
class BadCell:
    """A cell without valid text, and the reason: ``is not UTF-8: byte 0xE9 at character 3``."""

    reason: str


Cell = str | BadCell | None
"""``None`` for a missing value."""


@dataclass(frozen=True)
class Record:
    """One row of a table."""

    line: int
    """Its first line, its row in a Parquet or Excel file, or its index in a JSON array; from 1."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """The content of a file."""

    columns: tuple[str, ...]
    """Names of columns; unnamed ones are numbered from ``1``."""
    header: bool
    """Whether the first line of the file names the columns; always for JSON and Parquet."""
    records: tuple[Record, ...]
    malformed: tuple[tuple[int, str], ...]
    """(line, reason) of each line that is not a record."""
    note: str
    """How the file was read, if that was not obvious; else empty."""

    def column(self, name: str) -> list[Cell]:
        """All cells of a column, in order."""
        index = self.columns.index(name)
        return [record.cells[index] for record in self.records]


def read_table(path: Path, *, names: Collection[str], header: bool | None = None, limit: int | None = None) -> Table:
    """Read a file by its extension.

    - ``.csv``: RFC 4180, with commas, semicolons, tabs or vertical bars, whichever fit the first 200 records.
    - ``.tsv``: quotation marks are taken literally, unless the whole file is well-formed with them as quotes.
    - ``.jsonl``: one JSON object per line; ``.json``: the same, or an array of objects.
    - ``.parquet``: also with class names in the notation of Hugging Face's datasets.
    - ``.xlsx``: the first sheet, by openpyxl.

    Text is read as UTF-8, with or without a byte order mark. Files with ``.gz`` appended are decompressed.

    Args:
        path: the file.
        names: names of columns in lower case, any of which identifies a first line as a header.
        header: whether the first line names the columns; ``None`` to detect it.
        limit: maximum number of records to read, to inspect a table; the result may then be empty.

    Raises:
        DataError: if the file cannot be read at all, is in UTF-16, is empty, or a column's name is repeated or not
            UTF-8.
    """
    try:
        table = _read(path, names, header, limit)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
    if not table.records and not table.malformed and limit is None:
        raise DataError(f"{path} has no rows: a table of texts needs a text and a label in each row.")
    if twice := sorted({name for name in table.columns if table.columns.count(name) > 1}):
        raise DataError(f"{path} names the column {twice[0]!r} twice: rename one of them.")
    return table


def _read(path: Path, names: Collection[str], header: bool | None, limit: int | None) -> Table:
    kind = table_suffix(path)
    if kind == ".parquet":
        return _read_parquet(path, limit)
    if kind == ".xlsx":
        return _read_excel(path, names, header, limit)
    with open_bytes(path) as file:
        beginning = file.read(4096)
    if beginning[:2] in _UTF16 or b"\0" in beginning:
        raise DataError(f"{path} is in UTF-16, or not text at all. Save it as UTF-8.")
    if kind == ".json" and beginning.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        return _read_json_array(path, limit)
    if kind in (".json", ".jsonl"):
        return _read_json_lines(path, limit)
    return _read_csv(path, names, header, limit)


def looks_like_labels(values: Sequence[Cell]) -> bool:
    """Whether these are few distinct short values that recur, like class labels."""
    given = [value for value in values if isinstance(value, str)]
    distinct = set(given)
    return 0 < len(distinct) <= max(2, len(given) // 3) and max(map(len, distinct)) <= _LONGEST_LABEL


def _cell(value: Any) -> Cell:
    """Convert numbers to text, whole ones without a point: pandas stores them as floats if one is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (list, tuple)):
        return BadCell("is a list, but each row needs one value")
    if isinstance(value, dict):
        return BadCell("is an object, not text")
    if isinstance(value, bytes):
        return BadCell("is binary, not text")
    return _text(str(value))


def _text(text: str) -> Cell:
    """The text, unless it contains NUL, a byte of another encoding, or half a pair of ``\\u`` escapes."""
    if "\0" in text:
        return BadCell(f"contains a NUL at character {text.index(chr(0)) + 1}")
    found = None if text.isascii() else _SURROGATES.search(text)
    if found is None:
        return text
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte kept by Python's error handler "surrogateescape"
        return BadCell(f"is not UTF-8: byte 0x{code - 0xDC00:02X} at character {found.start() + 1}")
    return BadCell(f"contains half a surrogate pair, \\u{code:04x}, at character {found.start() + 1}")


# ------------------------------------------------------------------------------------------------------ CSV and TSV


def _read_csv(path: Path, names: Collection[str], header: bool | None, limit: int | None) -> Table:
    with _long_cells():
        dialect = find_dialect(path)
        with open_text(path, dialect.skipped) as file:
            records_of_file = list(islice(parsed(file, dialect), limit))
    if dialect.unnamed_first and records_of_file and header is not False:
        first, last, fields = records_of_file[0]
        records_of_file[0] = (first, last, ["", *fields])
        header = True
    width = next((len(fields) for _, _, fields in records_of_file if isinstance(fields, list)), 0)
    records, malformed = [], []
    for first, last, fields in records_of_file:
        if isinstance(fields, list) and len(fields) == width:
            records.append(Record(first, tuple(_text(field) if field else None for field in fields)))
            continue
        reason = fields if isinstance(fields, str) else _wrong_width(len(fields), width)
        if last > first:  # an unclosed quote consumes many lines, each of which counts
            reason += f" (one record from line {first} to {last})"
        malformed += [(line, reason) for line in range(first, last + 1)]
    return _named(path, records, malformed, width, names=names, header=header, note="; ".join(dialect.notes))


def _named(
    path: Path,
    records: list[Record],
    malformed: list[tuple[int, str]],
    width: int,
    *,
    names: Collection[str],
    header: bool | None,
    note: str,
) -> Table:
    """The table of these records, the first of which may be a header."""
    columns = tuple(str(number) for number in range(1, width + 1))
    if header is None:
        header = _is_header([record.cells for record in records], names)
    if header and records:
        for cell in records[0].cells:
            if isinstance(cell, BadCell):
                raise DataError(f"The first line of {path} names a column that {cell.reason}. {SAVE_AS_UTF8}")
        named = [cell.strip() if isinstance(cell, str) else "" for cell in records[0].cells]
        columns = tuple(name or number for name, number in zip(named, columns, strict=True))
        del records[0]
    return Table(columns, header, tuple(records), tuple(malformed), note)


def _read_excel(path: Path, names: Collection[str], header: bool | None, limit: int | None) -> Table:
    rows, note = read_sheet(path, limit)
    records = [
        Record(number, tuple(None if value == "" else _cell(value) for value in values)) for number, values in rows
    ]
    width = len(records[0].cells) if records else 0
    return _named(path, records, [], width, names=names, header=header, note=note)


def _wrong_width(found: int, expected: int) -> str:
    return f"has {found} field{'' if found == 1 else 's'}, the first line has {expected}"


@contextmanager
def _long_cells() -> Iterator[None]:
    with _csv_limit:
        before = csv.field_size_limit(_LONGEST_CELL)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _is_header(rows: Sequence[tuple[Cell, ...]], names: Collection[str]) -> bool:
    """Whether the first row is a header: a cell is a usual name, or a column of labels does not start with a label.

    Two texts are also few distinct values, so only recurring labels indicate a header.
    """
    if not rows:
        return False
    first, others = rows[0], rows[1:]
    columns = list(zip(*others, strict=True)) if others else [() for _ in first]
    for cell, column in zip(first, columns, strict=True):
        if isinstance(cell, str) and cell.strip().casefold() in names and cell not in column:
            return True
    labels = [
        (cell, column)
        for cell, column in zip(first, columns, strict=True)
        if looks_like_labels(column) and len(set(column)) < len(column)
    ]
    return bool(labels) and all(cell not in column for cell, column in labels)


# --------------------------------------------------------------------------------------------- JSON and Parquet


def _read_json_lines(path: Path, limit: int | None) -> Table:
    objects: list[tuple[int, dict[str, Any]]] = []
    malformed: list[tuple[int, str]] = []
    with open_table(path, newline="\n") as file:
        for number, line in islice(enumerate(file, 1), limit):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                malformed.append((number, f"is not JSON: {error}"))
                continue
            if isinstance(value, dict):
                objects.append((number, value))
            else:
                malformed.append((number, f"is a {type(value).__name__}, not a JSON object"))
    if malformed and not objects and table_suffix(path) == ".json":
        raise DataError(f"{path} must be an array of JSON objects, or have one per line. Save it so, or as CSV.")
    return _of_objects(objects, malformed)


def _read_json_array(path: Path, limit: int | None) -> Table:
    try:
        with open_table(path, newline="") as file:
            values = json.load(file)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}.") from None
    numbered = list(islice(enumerate(values, 1), limit))
    objects = [(number, value) for number, value in numbered if isinstance(value, dict)]
    if numbered and not objects:
        raise DataError(f"{path} is an array of {type(values[0]).__name__}, not of JSON objects with labels.")
    malformed = [
        (number, f"is a {type(value).__name__}, not a JSON object")
        for number, value in numbered
        if not isinstance(value, dict)
    ]
    return _of_objects(objects, malformed)


def _of_objects(objects: list[tuple[int, dict[str, Any]]], malformed: list[tuple[int, str]]) -> Table:
    columns = tuple(dict.fromkeys(key for _, value in objects for key in value))
    records = tuple(Record(number, tuple(_cell(value.get(name)) for name in columns)) for number, value in objects)
    return Table(columns, True, records, tuple(malformed), "")


def _read_parquet(path: Path, limit: int | None) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Not `read_table`: in a folder named label=spam it would add a column, and it rejects duplicate names.
        with pq.ParquetFile(path) as file:
            if limit is None:
                table = file.read()
            else:
                table = pa.Table.from_batches(islice(file.iter_batches(limit), 1), file.schema_arrow)
        named = class_names(table.schema)
        columns = [
            arrow_cells(column, named.get(name)) for name, column in zip(table.column_names, table.columns, strict=True)
        ]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}.") from None
    records = tuple(Record(number, cells) for number, cells in enumerate(zip(*columns, strict=True), 1))
    return Table(tuple(table.column_names), True, records, (), "")


def arrow_cells(column: Any, classes: Sequence[str] | None) -> list[Cell]:
    """The cells of one column. Decodes strings itself: PyArrow does not check them, or fails for a whole column."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        values = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else _text(value.decode("utf-8", "surrogateescape")) for value in values]
    if classes is None:
        return [_cell(value) for value in column.to_pylist()]
    return [_class_cell(value, classes) for value in column.to_pylist()]


def _class_cell(value: Any, names: Sequence[str]) -> Cell:
    """The class name of a number; pandas converts integers to floats if one is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or value == -1:
        return None  # Hugging Face's value for an unknown label
    if isinstance(value, (list, tuple)):
        return BadCell("is a list of labels, but each row needs one")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return BadCell(f"is {value!r}, but the file has class names for the numbers 0 to {len(names) - 1}")
    if not 0 <= value < len(names):
        return BadCell(f"is number {value}, but the file has class names for the numbers 0 to {len(names) - 1}")
    return names[value]


def class_names(schema: Any) -> dict[str, list[str]]:
    """Class names for columns of numbers, as stored in the file by Hugging Face's datasets."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        described = dict(features.items())
    except (TypeError, KeyError, ValueError, AttributeError):  # no such metadata, or in another format
        return {}
    names = {name: _names_of(feature) for name, feature in described.items()}
    return {name: found for name, found in names.items() if found is not None}


def _names_of(feature: Any) -> list[str] | None:
    """Class names of a label feature, or of a list of them, described by a JSON list or by its elements."""
    if isinstance(feature, list):
        return _names_of(feature[0]) if len(feature) == 1 else None
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel":
        names = feature.get("names")
        return list(map(str, names)) if isinstance(names, list) else None
    return _names_of(feature.get("feature"))
