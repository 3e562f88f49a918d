"""Find the columns of a table with the text, the label, the split and the group."""

import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal

from thawline.data._tables import Cell, Table, looks_like_labels
from thawline.data.contract import SPLIT_NAMES
from thawline.data.splits import Split
from thawline.exceptions import DataError

__all__ = ["NAME_OF_A_COLUMN", "ON_COMMAND_LINE", "USUAL", "Guess", "Role", "looks_like_texts", "split_of"]

Role = Literal["text", "image", "label", "split", "group"]

USUAL: dict[Role, tuple[str, ...]] = {
    "text": (
        *("text", "sentence", "content", "message", "review", "body", "comment", "document", "utterance", "tweet"),
        *("sms", "headline", "question", "query", "description", "review_text", "texts"),
    ),
    "image": (
        *("image_path", "file_name", "filename", "image", "filepath", "file_path", "path", "image_id", "image_name"),
        *("img_path", "img", "file", "image_file", "imagepath", "imageid", "id", "name", "img_id", "photo", "picture"),
    ),
    "label": (
        *("label", "class", "category", "target", "sentiment", "intent", "topic", "labels", "class_name", "tag"),
        *("breed", "species", "diagnosis", "label_name", "classname", "class_label"),
    ),
    "split": ("split", "subset", "partition"),
}
"""Usual names of these columns in lower case, by priority."""

_SHORTEST_TEXT = 10
"""Minimum median length, in characters, for a column without a usual name to count as texts."""

_FLAGS: set[Cell] = {"0", "1", "true", "false", "True", "False", "0.0", "1.0", None}

NAME_OF_A_COLUMN = re.compile(r"[^\W\d][\w.-]*")

_IN_RECIPE = "--set data.{role}_column="

ON_COMMAND_LINE = "--text-column="
"""The option for the column of a role."""


class Guess:
    """The role of each column: as given, or by name, or by content."""

    def __init__(
        self,
        name: str,
        tables: Sequence[Table],
        given: Mapping[Role, str | None],
        roles: Sequence[Role],
        *,
        option: str = _IN_RECIPE,
    ) -> None:
        self._name, self._tables, self._given, self._roles, self._option = name, tables, given, roles, option
        self._all = tables[0].columns
        self._found: dict[Role, tuple[str, str]] = {}

    def columns(self) -> tuple[dict[Role, str], str]:
        """The column of each existing role, and a description of how they were found.

        Raises:
            DataError: if no column, or more than one, matches; with all columns and the option to set.
        """
        for role in self._roles:
            self._as_given(role)
        for role in self._roles:
            if role not in self._found:
                self._by_name(role)
        for role in ("label", "text"):  # labels first: the remaining column is more likely the text
            if role in self._roles and role not in self._found:
                self._by_content(role)
        chosen = {role: column for role, (column, _) in self._found.items()}
        if len(set(chosen.values())) < len(chosen):
            raise DataError(f"One column of {self._name} cannot have two roles: {self._in_words(chosen)}.")
        for table in self._tables:
            if lacking := sorted(set(chosen.values()) - set(table.columns)):
                raise DataError(
                    f"The tables of {self._name} have different columns: one has no column {lacking[0]}, but "
                    f"{', '.join(table.columns)}."
                )
        return chosen, self._in_words(chosen)

    def _in_words(self, chosen: Mapping[Role, str]) -> str:
        hows = {role: f" ({how})" if how else "" for role, (_, how) in self._found.items()}
        return ", ".join(f"{role} in column {column}{hows[role]}" for role, column in chosen.items())

    def _as_given(self, role: Role) -> None:
        name = self._given.get(role)
        if name is None:
            return
        if name not in self._all and name.isdecimal() and 0 < int(name) <= len(self._all):
            name = self._all[int(name) - 1]
        if name not in self._all:
            option = self._option.format(role=role).removeprefix("--set ")  # it may be set in a recipe
            raise DataError(f"{option}{name!r} is not a column of {self._name}. {self._columns_are()}")
        self._found[role] = (name, "")

    def _by_name(self, role: Role) -> None:
        usual = USUAL.get(role, ())
        named = [name for name in self._free() if name.strip().casefold() in usual]
        if role == "split":  # one split name identifies the column; other values are bad rows
            named = [name for name in named if any(split_of(cell) for cell in self._cells(name))]
        first = [name for name in named if name.strip().casefold() == usual[0]] if usual else []
        if len(candidates := first or named) > 1:
            raise self._ambiguous(role, candidates)
        if candidates:
            self._found[role] = (candidates[0], "by its name")

    def _by_content(self, role: Role) -> None:
        free = self._free()
        if role == "label":
            candidates = [name for name in free if looks_like_labels(self._cells(name))]
        else:
            candidates = [name for name in free if looks_like_texts(self._cells(name))] if len(free) > 1 else free
        if len(candidates) != 1:
            raise self._ambiguous(role, candidates)
        self._found[role] = (candidates[0], "by its content")

    def _cells(self, name: str) -> list[Cell]:
        return [cell for table in self._tables if name in table.columns for cell in table.column(name)]

    def _free(self) -> list[str]:
        taken = {column for column, _ in self._found.values()}
        return [name for name in self._all if name not in taken]

    def _ambiguous(self, role: Role, candidates: Sequence[str]) -> DataError:
        what = f"several columns match: {', '.join(candidates)}" if candidates else "no column matches"
        one_each = ""
        if len(candidates) > 1 and all(set(self._cells(name)) <= _FLAGS for name in candidates):
            one_each = " They look like one column per class: a single column with the name of the class is required."
        return DataError(
            f"Cannot determine which column of {self._name} is the {role}: {what}.{one_each} {self._columns_are()} "
            f"Set it: {self._option.format(role=role)}NAME"
        )

    def _columns_are(self) -> str:
        if self._tables[0].header:
            return f"The columns are: {', '.join(self._all)}."
        otherwise = " (if there is: --set data.header=true)" if self._option == _IN_RECIPE else ""
        return f"There is no header line{otherwise}; the columns are named by number, 1 to {len(self._all)}."


def looks_like_texts(values: Sequence[Cell]) -> bool:
    """Whether values are mostly distinct and long, with several words or non-ASCII letters, unlike keys or URLs."""
    cells = [cell for cell in values if isinstance(cell, str)]
    return (
        bool(cells)
        and len(set(cells)) > len(cells) / 2
        and median(map(len, cells)) >= _SHORTEST_TEXT
        and sum(" " in cell.strip() or not cell.isascii() for cell in cells) > len(cells) / 2
    )


def split_of(cell: Cell) -> Split | None:
    return SPLIT_NAMES.get(cell.strip().casefold()) if isinstance(cell, str) else None
