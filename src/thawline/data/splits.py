"""Assign files to splits by a hash of their content, never by their position in a list.

A shuffled split changes for all files whenever one is added, so that former test images become training images. Here
each *key* has a fixed place in [0, 1). The idea is from the Speech Commands data set and TensorFlow's ``retrain.py``
(``which_set``), with the file's content instead of its name.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

__all__ = ["Split", "assign", "keys", "place"]

Split = Literal["train", "validation", "test"]

_SALT = "thawline split 1|"


def assign(key: str, *, validation_fraction: float, test_fraction: float) -> Split:
    """The split of all files with this key; in expectation, the same share of every class (stratified).

    Test is the lower end of [0, 1) and validation the upper end. So a key never changes its split when files are added,
    and changing one fraction moves keys only between training and that split.
    """
    at = place(key)
    if at < test_fraction:
        return "test"
    return "validation" if at >= 1 - validation_fraction else "train"


def place(key: str) -> float:
    """The place of a key in [0, 1)."""
    hashed = hashlib.sha256((_SALT + key).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(hashed[:6], "big") / 2**48


def keys(digests: Sequence[str], groups: Sequence[str | None], near: Sequence[tuple[str, str]] = ()) -> list[str]:
    """The key of each file: files with the same group or content, and near-duplicates, get the same key.

    If copies of an image are in several groups, the groups are joined, also transitively; their key is the smallest
    group name. (Only such a join can move files when the folder grows, if the two groups were in different splits.) The
    key of a file without a group is its content digest; for near-duplicates without groups, the smallest digest.

    Args:
        digests: content digest of each file.
        groups: name of each file's group, or None; as long as ``digests``.
        near: pairs of digests whose files are also kept in one split.
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

    # Group nodes start with "+", which sorts before digest nodes ("="), so a joined set is named after a group.
    for digest, group in zip(digests, groups, strict=True):
        join(f"={digest}", f"={digest}" if group is None else f"+{group}")
    for one, other in near:
        join(f"={one}", f"={other}")
    return [root(f"={digest}") for digest in digests]
