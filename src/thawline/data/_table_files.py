"""Table files: recognise them by name, and open them, compressed or not."""

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
"""File extensions of tables, in lower case."""

_OPEN = "~$"
"""Prefix of Excel's temporary file beside an open one."""
_PEEK = 1 << 16  # bytes for recognising JSON


def is_table_file(path: Path) -> bool:
    """Whether a file is a table by its name; its content and existence do not matter."""
    return path.name.lower().endswith(TABLE_SUFFIXES)


def table_suffix(path: Path) -> str:
    """The extension without compression in lower case: ``.csv`` also for ``a.csv.gz``."""
    name = path.name.lower()
    return Path(name.removesuffix(_COMPRESSED) if name.endswith(TABLE_SUFFIXES) else name).suffix


def table_stem(path: Path) -> str:
    """A table's name without extensions: ``a`` for ``a.csv.gz``; for other files, the name without extension."""
    ending = next((s for s in sorted(TABLE_SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(s)), None)
    return path.stem if ending is None else path.name[: -len(ending)]


def tables_among(files: Sequence[Path]) -> list[Path]:
    """The tables of a folder, in order.

    Compressed tables, JSON and spreadsheets are only used if there are no others: otherwise they are copies, or
    describe the data. JSON is only a table if it has one object per row.

    Args:
        files: files of the folder.
    """
    named = [file for file in files if is_table_file(file) and not file.name.startswith(_OPEN) and file.is_file()]
    plain = [file for file in named if file.suffix.lower() in _PLAIN]
    return plain or [file for file in named if table_suffix(file) != ".json" or _holds_objects(file)]


def open_bytes(path: Path) -> io.BufferedIOBase:
    """Open a table, decompressed.

    Raises:
        OSError: if it cannot be opened; while reading also ``EOFError`` and ``zlib.error``, if it is damaged.
    """
    # Not a with statement, as the caller closes it.
    return gzip.open(path, "rb") if path.name.lower().endswith(_COMPRESSED) else path.open("rb")


def open_table(path: Path, *, newline: str) -> IO[str]:
    """Open a table as text, with or without a byte order mark; bytes that are not UTF-8 are kept as surrogates.

    Args:
        path: the file.
        newline: see :func:`open`.

    Raises:
        OSError: as :func:`open_bytes` does.
    """
    if path.name.lower().endswith(_COMPRESSED):
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def _holds_objects(file: Path) -> bool:
    """Whether JSON is an array of objects or has one per line, unlike settings and descriptions."""
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
