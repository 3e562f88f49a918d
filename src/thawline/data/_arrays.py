"""A memory-mapped array with a description, ``<digest>.npy`` and ``.json``: built once, and never used if damaged."""

import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thawline.data._files import write_atomically
from thawline.data.contract import Manifest
from thawline.data.splits import Split
from thawline.exceptions import DataError

__all__ = ["SPARE_BYTES", "allocate", "build", "digest", "locked", "open_array", "rows_digest", "split_slices"]

SPARE_BYTES = 200_000_000  # left free on the disk for everything else that a search writes


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock an array's file: one process builds it and the others wait."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        yield


def open_array(path: Path, expected: dict[str, Any] | None) -> tuple[npt.NDArray[Any], dict[str, Any]] | None:
    """The array and its description if the file is complete, unchanged and as expected, if that is given; else None.

    A checksum over gigabytes would cost as much as the file saves. Size and time reveal a truncated, replaced or
    modified file.
    """
    try:
        description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        status = path.stat()
        if (description["size"], description["modified"]) != (status.st_size, status.st_mtime_ns):
            return None
        if expected is not None and any(description[key] != value for key, value in expected.items()):
            return None
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if [array.dtype.name, *array.shape] != [description["dtype"], *description["shape"]]:
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, or in another format
        return None
    with suppress(OSError):  # a cache on a read-only disk
        os.utime(path.with_suffix(".json"))  # time of last use, for `thawline clean`
    return array, description


def build(path: Path, write: Callable[[Path], dict[str, Any]]) -> None:
    """Let ``write`` create the array in a temporary file, and rename it once it is complete and synced.

    Args:
        path: the array's file; its lock must be held.
        write: writes a ``.npy`` file to the given path, and returns its description without size and time: at least
            ``dtype`` and ``shape``.
    """
    partial_file = path.with_suffix(".partial")  # one builder at a time, thanks to the lock
    partial_file.unlink(missing_ok=True)
    try:
        described = write(partial_file)
        with partial_file.open("rb+") as file:
            os.fsync(file.fileno())
        partial_file.replace(path)
    except BaseException:
        partial_file.unlink(missing_ok=True)
        raise
    status = path.stat()
    description = {**described, "size": status.st_size, "modified": status.st_mtime_ns}
    write_atomically(path.with_suffix(".json"), json.dumps(description).encode())


def allocate(path: Path, dtype: type, shape: list[int], *, what: str, remedy: str) -> npt.NDArray[Any]:
    """Create an array's file with all blocks allocated: writing to the map on a full disk would kill the process.

    Raises:
        DataError: if there is not enough disk space.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    free = shutil.disk_usage(path.parent).free
    if size + SPARE_BYTES > free:
        raise DataError(
            f"{what} need {size / 1e9:.1f} GB (and {SPARE_BYTES / 1e9:.1f} GB to spare) in {path.parent}, "
            f"but {free / 1e9:.1f} GB are free. Free some, {remedy}, or set THAWLINE_HOME to a folder on a larger disk."
        )
    array: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=tuple(shape))
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def split_slices(manifest: Manifest) -> dict[Split, slice]:
    """The rows of each split, which are contiguous because the manifest is sorted by split first."""
    slices: dict[Split, slice] = {}
    start = 0
    for split, count in sorted(Counter(row.split for row in manifest.rows).items()):
        slices[split] = slice(start, start + count)
        start += count
    return slices


def rows_digest(manifest: Manifest) -> str:
    """32 hex digits of the training data in order."""
    return digest([[row.digest, row.label, row.split] for row in manifest.rows])


def digest(value: object) -> str:
    """32 hex digits of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
