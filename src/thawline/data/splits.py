"""Which side of the split a file falls on: decided by a hash of what it is, never by its place in a list.

A split that is drawn by shuffling changes for every file whenever one is added, so that yesterday's test images are
today's training images. Here each *key* has a fixed place in [0, 1); the idea is that of the Speech Commands data set
and of TensorFlow's ``retrain.py`` (``which_set``), with the file's content in place of its name.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

__all__ = ["Split", "assign", "keys", "place"]

Split = Literal["train", "validation", "test"]

_SALT = "thawline split 1|"


def assign(key: str, *, validation_fraction: float, test_fraction: float) -> Split:
    """The split of all files with this key; in expectation the same share of every class (stratified).

    Test takes the lower end of [0, 1) and validation the upper end. So a key never changes side when files are added,
    and changing one fraction moves keys only between training and that split.
    """
    at = place(key)
    if at < test_fraction:
        return "test"
    return "validation" if at >= 1 - validation_fraction else "train"


def place(key: str) -> float:
    """Where a key lies in [0, 1)."""
    hashed = hashlib.sha256((_SALT + key).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(hashed[:6], "big") / 2**48


def keys(digests: Sequence[str], groups: Sequence[str | None], near: Sequence[tuple[str, str]] = ()) -> list[str]:
    """The key of each file: files of one group, of the same content, and near-duplicates, get the same key.

    Where copies of one image lie in several groups, the groups are joined, also along a chain; their key is the
    smallest name of a group among them. (Only such a joining can move files when the folder grows: two groups that
    had fallen on different sides must then meet on one.) A file without a group has its content digest for a key; of
    near-duplicates without groups the smallest digest.

    Args:
        digests: content digest of each file.
        groups: name of each file's group, or None; as long as ``digests``.
        near: pairs of digests whose files are kept on one side, too.
    """
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    def join(one: str, other: str) -> None:
        first, second = sorted((root(one), root(other)))
        parent[second] = first

    # Group nodes start with "+" and so sort before digest nodes ("="): a joined set is named after a group.
    for digest, group in zip(digests, groups, strict=True):
        join(f"={digest}", f"={digest}" if group is None else f"+{group}")
    for one, other in near:
        join(f"={one}", f"={other}")
    return [root(f"={digest}") for digest in digests]
