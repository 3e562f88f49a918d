"""Find the image file of a table cell."""

import unicodedata
from collections import defaultdict
from functools import cached_property
from pathlib import Path

from thawline.data._listing import images_below
from thawline.data._naming import split_name
from thawline.exceptions import DataError

__all__ = ["ImageIndex", "plain"]


class ImageIndex:
    """The image files below a folder, to be found by path, name, or name without extension."""

    def __init__(self, base: Path) -> None:
        self.base = base

    @cached_property
    def files(self) -> dict[str, str]:
        """Relative paths in Unicode normal form NFC, mapped to the actual paths."""
        if not self.base.is_dir():
            raise DataError(f"There is no folder {self.base} of images: set data.image_folder.")
        return {plain(path): path for path in images_below(self.base, self.base, set(), [])}

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for plain in self.files:
            name = plain.rpartition("/")[2]
            found[name].append(plain)
            found[name.rpartition(".")[0]].append(plain)
        return found

    def find(self, cell: str, hint: str | None) -> list[str]:
        """Paths of the files that match a cell: none, one, or several if it is ambiguous.

        Args:
            cell: a path, whose beginning may be from another machine, or a name with or without extension.
            hint: the table's name: among several files, those in a folder with this name, or this split, are preferred.
        """
        wanted = plain(cell)
        if wanted in self.files:
            return [self.files[wanted]]
        candidates = self._by_name.get(wanted.rpartition("/")[2], [])
        if len(candidates) > 1:
            candidates = _by_longest_end(candidates, wanted)
        if len(candidates) > 1 and hint is not None:
            own = [path for path in candidates if _lies_in(path, hint)]
            candidates = own or candidates
        return [self.files[path] for path in candidates]


def plain(path: str) -> str:
    """A path normalised for comparison: with slashes, in Unicode normal form NFC."""
    return unicodedata.normalize("NFC", path.strip().replace("\\", "/").removeprefix("./"))


def _by_longest_end(candidates: list[str], wanted: str) -> list[str]:
    """The candidates that share the longest trailing part with a path."""

    def agreeing(path: str) -> int:
        ours, theirs = path.split("/")[-2::-1], wanted.split("/")[-2::-1]
        return next(
            (n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )

    most = max(map(agreeing, candidates))
    return [path for path in candidates if agreeing(path) == most]


def _lies_in(path: str, hint: str) -> bool:
    """Whether one of its folders has the name of a table, or of its split."""
    split = split_name(hint)
    for folder in path.split("/")[:-1]:
        found = split_name(folder)
        if folder.casefold() == hint.casefold() or (found and split and found.split == split.split):
            return True
    return False
