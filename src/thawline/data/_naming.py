"""What the names of folders and files say: splits, structure, and what programs leave behind."""

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
"""Words that say nothing beside the name of a split: ``training_set``, ``train-images``."""
_STRUCTURE = _FILLERS | {
    *("annotation", "annotations", "label", "labels", "mask", "masks", "jpg", "jpeg", "jpegs", "png", "jpegimages"),
    *("raw", "all", "archive", "input", "output", "crop", "crops", "thumb", "thumbs", "thumbnail", "thumbnails"),
}
"""Words that name no class."""
_JUNK = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "#snapshot", "@recycle"),
    *("@recently-snapshot", "$recycle.bin", "recycler", "system volume information", "lost+found", "__pycache__"),
    *("@tmp", "@sharebin", "found.000"),
}
_COMPOUND = re.compile(r"([a-z]+?)(?:set|data|images|imgs|img)?\d*")
_SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$")


@dataclass(frozen=True)
class SplitName:
    """A name with the word of a split in it."""

    split: Split
    rest: tuple[str, ...]
    """The other words, those left out that say nothing."""


def is_junk(path: Path) -> bool:
    """Whether it is hidden, or what a system, a file server or a viewer of pictures keeps for itself."""
    return path.name.startswith(".") or path.name.lower() in _JUNK


def is_structure(name: str) -> bool:
    """Whether a folder's name says only that there are images, or which split they are, but no class."""
    named = [word for word in words(name) if not word.isdecimal()]
    return bool(named) and all(word in _STRUCTURE or _split_of(word) is not None for word in named)


def without_shard(stem: str) -> str:
    """``train`` of ``train-00000-of-00004``, as HuggingFace's hub names the parts of a table."""
    return _SHARD.sub("", stem)


def words(name: str) -> list[str]:
    """``trainingSet2`` and ``training_set-2`` are both ``training``, ``set``, ``2``; in lower case."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", without_shard(name))
    return re.findall(r"[^\W_]+", apart.casefold())


def split_name(name: str) -> SplitName | None:
    """The split that a folder or table may be by its name, whatever else the name says."""
    found = words(name)
    splits = [split for word in found if (split := _split_of(word)) is not None]
    if splits == ["train", "validation"]:  # "train_val" is what is left beside the test images
        splits = ["train"]
    if len(splits) != 1:
        return None
    rest = tuple(w for w in found if _split_of(w) is None and w not in _FILLERS and not w.isdecimal())
    return SplitName(splits[0], rest)


def split_names(names: Iterable[str]) -> dict[Split, list[str]]:
    """Which of these names, of folders or tables that lie together, are those of splits.

    A name that is nothing but a split's is one. Beside other words, as in ``seg_train`` or ``asl_alphabet_test``, it is
    one only if another has the same words and is another split: ``train_station`` is a class.
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
