"""Files that are tables: their names, and opening them whether they are compressed or not."""

import gzip
import io
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

__all__ = ["TABLE_SUFFIXES", "is_table_file", "open_bytes", "open_table", "table_stem", "table_suffix", "tables_among"]

_PLAIN = (".csv", ".tsv", ".jsonl", ".parquet")
_COMPRESSED = ".gz"
TABLE_SUFFIXES = (*_PLAIN, ".csv.gz", ".tsv.gz", ".jsonl.gz", ".json", ".json.gz", ".xlsx")
"""How the names of tables end, in lower case."""

_OPEN = "~$"
"""How the file begins that Excel keeps beside one that is open."""
_PEEK = 1 << 16  # bytes by which JSON is known


def is_table_file(path: Path) -> bool:
    """Whether a file is a table by its name; its content, and whether it is there, does not matter."""
    return path.name.lower().endswith(TABLE_SUFFIXES)


def table_suffix(path: Path) -> str:
    """How a table is read, ``.csv`` of ``a.csv.gz`` too, in lower case."""
    name = path.name.lower()
    return Path(name.removesuffix(_COMPRESSED) if name.endswith(TABLE_SUFFIXES) else name).suffix


def table_stem(path: Path) -> str:
    """Its name without the ending: ``a`` of ``a.csv.gz``; of a file that is no table without its extension."""
    ending = next((s for s in sorted(TABLE_SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(s)), None)
    return path.stem if ending is None else path.name[: -len(ending)]


def tables_among(files: Sequence[Path]) -> list[Path]:
    """The tables of a folder, in order.

    Compressed tables, JSON and spreadsheets are taken where there are no others: beside these they are copies, or
    describe the data. Of JSON only what holds one object for each row is a table.

    Args:
        files: what lies in the folder.
    """
    named = [file for file in files if is_table_file(file) and not file.name.startswith(_OPEN) and file.is_file()]
    plain = [file for file in named if file.suffix.lower() in _PLAIN]
    return plain or [file for file in named if table_suffix(file) != ".json" or _holds_objects(file)]


def open_bytes(path: Path) -> io.BufferedIOBase:
    """The content of a table, unpacked.

    Raises:
        OSError: if it cannot be opened; while reading also ``EOFError`` and ``zlib.error``, if it is damaged.
    """
    # Not a with statement: the caller closes it.
    return gzip.open(path, "rb") if path.name.lower().endswith(_COMPRESSED) else path.open("rb")


def open_table(path: Path, *, newline: str) -> IO[str]:
    """A table as text, with or without a byte order mark; bytes that are not UTF-8 are kept as surrogates.

    Args:
        path: the file.
        newline: as :func:`open` takes it.

    Raises:
        OSError: as :func:`open_bytes` does.
    """
    if path.name.lower().endswith(_COMPRESSED):
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def _holds_objects(file: Path) -> bool:
    """Whether JSON is an array of objects, or has one in each line; settings and descriptions are neither."""
    try:
        with open_bytes(file) as opened:
            beginning = opened.read(_PEEK).removeprefix(b"\xef\xbb\xbf").lstrip()
    except (OSError, EOFError, zlib.error):
        return False
    if beginning.startswith(b"["):
        return beginning[1:].lstrip().startswith(b"{")
    lines = beginning.splitlines()
    try:
        return len(lines) > 1 and isinstance(json.loads(lines[0]), dict) and lines[1].startswith(b"{")
    except ValueError:
        return False
