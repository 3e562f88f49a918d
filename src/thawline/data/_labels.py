"""Normalise labels across file formats, and find similar labels."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from thawline.data._tables import BadCell, Cell
from thawline.exceptions import DataError

__all__ = ["LabelColumn", "check_classes", "look_alikes", "several_in_one", "wrong_label"]

_MISSING = {"nan", "NaN", "<NA>"}
"""Representations of missing values by pandas. ``None`` and ``NA`` may be classes."""
_BETWEEN = ("|", ";", ",", "+", " ")
"""Separators of several labels in one cell."""
_BOOLEANS = {"true", "false"}
_WHOLE = re.compile(r"([+-]?\d+)\.0+")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


class LabelColumn:
    """The names of the classes in a column of labels: the same in CSV, JSON lines and Parquet.

    Booleans are ``True`` in CSV and ``true`` in JSON; whole numbers are stored as floats if one was missing. All cells
    of the column decide whether they are such values or just names of classes.
    """

    def __init__(self, cells: Iterable[Cell]) -> None:
        given = {cell.strip() for cell in cells if isinstance(cell, str) and not wrong_label(cell)}
        self._booleans = bool(given) and {cell.lower() for cell in given} <= _BOOLEANS
        self._numbers = all(map(_NUMBER.fullmatch, given))

    def name(self, cell: Cell) -> str:
        """Name of the class: in Unicode normal form NFC, stripped, booleans in lower case, ``1.0`` as ``1``."""
        name = unicodedata.normalize("NFC", str(cell)).strip()
        if self._booleans:
            return name.lower()
        whole = _WHOLE.fullmatch(name) if self._numbers else None
        return whole[1] if whole else name


def check_classes(trained: set[str], total: int, *, column: str, of: str, where: str, how: str) -> None:
    """Refuse unsuitable labels: a classifier needs at least two, and several examples of each.

    Args:
        trained: classes of the training split.
        total: number of examples of all splits.
        column: column of the labels.
        of: kind of data, ``images`` or ``texts``.
        where: the table or folder, for the message.
        how: how the columns were found.

    Raises:
        DataError: with the option for another column.
    """
    another = "Choose another column with --set data.label_column=NAME"
    if len(trained) < 2:
        found = f"only one label ({next(iter(trained))})" if trained else "no label"
        raise DataError(
            f"{where} has {found} of {of} to train on in column {column}; a classifier needs at least two. {how}. "
            f"{another}"
        )
    if len(trained) > max(2, total / 2):
        raise DataError(
            f"Column {column} of {where} has {len(trained):,} different labels for {total:,} {of}, too few {of} for "
            f"each. Is it the label? {another}"
        )


def wrong_label(cell: Cell) -> str:
    """Why a cell is not a label, or an empty string."""
    if isinstance(cell, BadCell):
        return f"the label {cell.reason}"
    if cell is None or not cell.strip():
        return "the label is missing"
    if cell.strip() in _MISSING:
        return (
            f"the label is missing: it is {cell.strip()}, pandas' missing value. A class with this name "
            "needs another one, such as not-a-number"
        )
    return ""


def look_alikes(names: Sequence[str]) -> list[list[str]]:
    """Names that look the same: they differ only in case, width, spaces or invisible characters."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        shown = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
        alike[" ".join(shown.casefold().split())].append(name)
    return [group for group in alike.values() if len(group) > 1]


def several_in_one(names: Sequence[str]) -> list[str]:
    """Names that combine others, such as ``cat|dog`` beside ``cat`` and ``dog``: each row should have one label."""
    known = set(names)
    return [name for name in names if any(_all_known(name.split(mark), known) for mark in _BETWEEN if mark in name)]


def _all_known(parts: list[str], known: set[str]) -> bool:
    found = {part.strip() for part in parts}
    return len(found) > 1 and found <= known
