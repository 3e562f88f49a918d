"""Interpret names of folders and files: splits, structure, and files of systems and programs."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from thawline.data.contract import SPLIT_NAMES
from thawline.data.splits import Split

__all__ = [
    "ARCHIVE_SUFFIXES",
    "SplitName",
    "is_junk",
    "is_structure",
    "split_name",
    "split_names",
    "without_shard",
    "words",
]

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_SPLITS: dict[str, Split] = SPLIT_NAMES | {
    "trn": "train",
    "trainval": "train",
    "validate": "validation",
    "evaluation": "validation",
    "tst": "test",
    "holdout": "test",
    "heldout": "test",
}
_FILLERS = {
    *("set", "sets", "data", "dataset", "datasets", "split", "splits", "folder", "dir", "file", "files", "sample"),
    *("samples", "subset", "image", "images", "img", "imgs", "pic", "pics", "picture", "pictures", "photo", "photos"),
}
"""Words without meaning beside the name of a split: ``training_set``, ``train-images``."""
_STRUCTURE = _FILLERS | {
    *("annotation", "annotations", "label", "labels", "mask", "masks", "jpg", "jpeg", "jpegs", "png", "jpegimages"),
    *("raw", "all", "archive", "input", "output", "crop", "crops", "thumb", "thumbs", "thumbnail", "thumbnails"),
}
"""Words that are not names of classes."""
_JUNK = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "#snapshot", "@recycle"),
    *("@recently-snapshot", "$recycle.bin", "recycler", "system volume information", "lost+found", "__pycache__"),
    *("@tmp", "@sharebin", "found.000"),
}
_COMPOUND = re.compile(r"([a-z]+?)(?:set|data|images|imgs|img)?\d*")
_SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$")


@dataclass(frozen=True)
class SplitName:
    """A name that contains the name of a split."""

    split: Split
    rest: tuple[str, ...]
    """The other meaningful words."""


def is_junk(path: Path) -> bool:
    """Whether it is hidden, or belongs to a system, a file server or an image viewer."""
    return path.name.startswith(".") or path.name.lower() in _JUNK


def is_structure(name: str) -> bool:
    """Whether a folder's name only denotes images or a split, not a class."""
    named = [word for word in words(name) if not word.isdecimal()]
    return bool(named) and all(word in _STRUCTURE or _split_of(word) is not None for word in named)


def without_shard(stem: str) -> str:
    """``train`` for ``train-00000-of-00004``, Hugging Face's names of parts of a table."""
    return _SHARD.sub("", stem)


def words(name: str) -> list[str]:
    """``trainingSet2`` and ``training_set-2`` are both ``training``, ``set``, ``2``; in lower case."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", without_shard(name))
    return re.findall(r"[^\W_]+", apart.casefold())


def split_name(name: str) -> SplitName | None:
    """The split in the name of a folder or table, regardless of its other words."""
    found = words(name)
    splits = [split for word in found if (split := _split_of(word)) is not None]
    if splits == ["train", "validation"]:  # "train_val" is everything except the test images
        splits = ["train"]
    if len(splits) != 1:
        return None
    rest = tuple(w for w in found if _split_of(w) is None and w not in _FILLERS and not w.isdecimal())
    return SplitName(splits[0], rest)


def split_names(names: Iterable[str]) -> dict[Split, list[str]]:
    """The names of splits among the names of neighbouring folders or tables.

    A name without other words is a split. With other words, as in ``seg_train`` or ``asl_alphabet_test``, it is one
    only if another name has the same words and another split: ``train_station`` is a class.
    """
    plain: dict[Split, list[str]] = defaultdict(list)
    groups: dict[tuple[str, ...], dict[Split, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        if name.lower() in SPLIT_NAMES:
            plain[SPLIT_NAMES[name.lower()]].append(name)
        elif (parsed := split_name(name)) is not None:
            groups[parsed.rest][parsed.split].append(name)
    for rest, group in groups.items():
        if len(group.keys() | (plain.keys() if not rest else set())) > 1:
            for split, found in group.items():
                plain[split] += found
    return dict(plain)


def _split_of(word: str) -> Split | None:
    if word in _SPLITS:
        return _SPLITS[word]
    match = _COMPOUND.fullmatch(word)
    return _SPLITS.get(match[1]) if match else None
