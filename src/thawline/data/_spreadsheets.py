"""Read the cells of the first sheet of an Excel file."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from thawline.exceptions import DataError

__all__ = ["read_sheet"]


def read_sheet(path: Path, limit: int | None) -> tuple[list[tuple[int, list[Any]]], str]:
    """(row from 1, values) of each non-empty row, all of the same width, and a note on the sheet.

    Formulas give the value stored when the file was saved.

    Args:
        path: an ``.xlsx`` file.
        limit: maximum number of rows to read.

    Raises:
        DataError: if openpyxl is not installed, or the file is not an Excel file.
    """
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise DataError(
            f"{path} needs the package openpyxl: pip install 'thawline[excel]', or save the sheet as CSV in UTF-8."
        ) from None
    try:
        book = load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # its parsers raise many types: of zipfile, XML, KeyError, ValueError
        raise DataError(f"{path} cannot be read as an Excel file: {_first_line(error)}.") from None
    try:
        sheet = book.worksheets[0] if book.worksheets else None
        rows = list(islice(_rows(sheet), limit)) if sheet is not None else []
        names = [each.title for each in book.worksheets]
    except Exception as error:
        raise DataError(f"{path} cannot be read as an Excel file: {_first_line(error)}.") from None
    finally:
        book.close()
    width = max((len(values) for _, values in rows), default=0)
    padded = [(number, values + [None] * (width - len(values))) for number, values in rows]
    note = f"the first of {len(names)} sheets, {names[0]}" if len(names) > 1 else ""
    return padded, note


def _rows(sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    sheet.reset_dimensions()  # some programs write wrong ones, which would hide rows
    for number, cells in enumerate(sheet.iter_rows(values_only=True), 1):
        values = list(cells)
        while values and (values[-1] is None or values[-1] == ""):
            values.pop()
        if values:
            yield number, values


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
