"""What a label is called, whichever file it comes from, and labels that look like one another."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from thawline.data._tables import BadCell, Cell
from thawline.exceptions import DataError

__all__ = ["LabelColumn", "check_classes", "look_alikes", "several_in_one", "wrong_label"]

_MISSING = {"nan", "NaN", "<NA>"}
"""What pandas writes where there is none, if it is told to. ``None`` and ``NA`` may be classes."""
_BETWEEN = ("|", ";", ",", "+", " ")
"""What stands between several labels in one cell."""
_BOOLEANS = {"true", "false"}
_WHOLE = re.compile(r"([+-]?\d+)\.0+")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


class LabelColumn:
    """The names of the classes in a column of labels: the same in CSV, JSON lines and Parquet.

    A column of booleans reads ``True`` in CSV and ``true`` in JSON; one of whole numbers is stored as floats where one
    was missing. Both are told from classes that are merely called so by all cells of the column.
    """

    def __init__(self, cells: Iterable[Cell]) -> None:
        given = {cell.strip() for cell in cells if isinstance(cell, str) and not wrong_label(cell)}
        self._booleans = bool(given) and {cell.lower() for cell in given} <= _BOOLEANS
        self._numbers = all(map(_NUMBER.fullmatch, given))

    def name(self, cell: Cell) -> str:
        """Of the class: in Unicode's form NFC, without spaces around it, booleans in lower case, ``1.0`` as ``1``."""
        name = unicodedata.normalize("NFC", str(cell)).strip()
        if self._booleans:
            return name.lower()
        whole = _WHOLE.fullmatch(name) if self._numbers else None
        return whole[1] if whole else name


def check_classes(trained: set[str], total: int, *, column: str, of: str, where: str, how: str) -> None:
    """Refuse labels that are none: a classifier needs two at least, and several examples of each.

    Args:
        trained: classes of the training split.
        total: examples, of all splits.
        column: that holds the labels.
        of: what has them, ``images`` or ``texts``.
        where: the table or folder, as it is shown.
        how: how the columns were told.

    Raises:
        DataError: with how another column is named.
    """
    another = "Another column is named by --set data.label_column=NAME"
    if len(trained) < 2:
        found = f"only one label ({next(iter(trained))})" if trained else "no label"
        raise DataError(
            f"{where} holds {found} of {of} to train on in column {column}; a classifier needs at least two. {how}. "
            f"{another}"
        )
    if len(trained) > max(2, total / 2):
        raise DataError(
            f"Column {column} of {where} holds {len(trained):,} different labels of {total:,} {of}, too few {of} of "
            f"each. Is it the label? {another}"
        )


def wrong_label(cell: Cell) -> str:
    """Why a cell is no label, or nothing."""
    if isinstance(cell, BadCell):
        return f"the label {cell.reason}"
    if cell is None or not cell.strip():
        return "the label is missing"
    if cell.strip() in _MISSING:
        return (
            f"the label is missing: it reads {cell.strip()}, which pandas writes where there is none. A class that is "
            "called so needs another name, such as not-a-number"
        )
    return ""


def look_alikes(names: Sequence[str]) -> list[list[str]]:
    """Names that people take for the same: they differ only in case, width, spaces or characters that are not shown."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        shown = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
        alike[" ".join(shown.casefold().split())].append(name)
    return [group for group in alike.values() if len(group) > 1]


def several_in_one(names: Sequence[str]) -> list[str]:
    """Names that put others together, as ``cat|dog`` beside ``cat`` and ``dog``: each row should have one label."""
    known = set(names)
    return [name for name in names if any(_all_known(name.split(mark), known) for mark in _BETWEEN if mark in name)]


def _all_known(parts: list[str], known: set[str]) -> bool:
    found = {part.strip() for part in parts}
    return len(found) > 1 and found <= known
