"""Decode once: all images of a manifest in one memory-mapped array that every process of a search shares."""

import hashlib
import json
import math
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL

from thawline.data import images
from thawline.data._files import write_atomically
from thawline.data._pool import map_files
from thawline.data.folder import Manifest, Split, content_digest
from thawline.exceptions import DataError

__all__ = ["DecodedImages", "decoded"]

_VERSION = 1  # raise it when images.py changes what it returns
_SPARE_BYTES = 200_000_000  # left free on the disk for everything else that a search writes


@dataclass(frozen=True, eq=False)
class DecodedImages:
    """The images of a manifest, in the order of its rows, read from disk only where they are touched.

    Pickling one sends its path alone, so it may be handed to another process at no cost.
    """

    path: Path
    images: npt.NDArray[np.uint8]
    """uint8 ``[N, S, S, 3]``, read-only, backed by the file."""
    labels: npt.NDArray[np.int64]
    """int64 ``[N]``."""
    splits: dict[Split, slice]
    """The rows of each split, which lie together because the manifest is sorted by split first."""

    @classmethod
    def open(cls, path: Path) -> "DecodedImages":
        """Open what :func:`decoded` built; takes milliseconds, whatever the size.

        Raises:
            DataError: if the file is missing, cut off, or was changed after it was built.
        """
        opened = _open(path, None)
        if opened is None:
            raise DataError(f"{path} is missing or damaged. Start the search again: it builds the file anew.")
        return opened

    def split(self, split: Split) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Images ``[n, S, S, 3]`` and labels ``[n]`` of one split: views, nothing is copied."""
        rows = self.splits[split]
        return self.images[rows], self.labels[rows]

    def __reduce__(self) -> tuple[Any, ...]:
        return DecodedImages.open, (self.path,)


def decoded(
    manifest: Manifest,
    *,
    resize_size: int,
    crop_size: int,
    interpolation: str,
    cache_dir: Path,
    max_pixels: int = 64_000_000,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DecodedImages:
    """Decode, resize and crop every image of the manifest once; later calls, in any process, open the same file.

    The file is named after the manifest's digest, the sizes and the interpolation. It is built in a temporary file
    and renamed when it is whole, under a lock: of several processes one builds and the others wait for it. A file
    that is cut off, foreign or changed since is built anew, never trusted.

    Args:
        manifest: what :func:`thawline.data.scan` returned.
        resize_size: length in pixels to which the shorter side is resized.
        crop_size: side S in pixels of the square that is cut out of the centre.
        interpolation: see :func:`thawline.data.resize_and_crop`.
        cache_dir: folder of all such files; made where missing.
        max_pixels: the limit that the manifest was scanned with.
        workers: processes that decode; by default one per core.
        on_progress: called with (images decoded, images in all); not called where the file exists.

    Raises:
        DataError: if an image is no longer what the scan saw, or the disk is too full.
    """
    from filelock import FileLock

    view = _View(resize_size, crop_size, interpolation, max_pixels)
    described = [manifest.digest, resize_size, crop_size, interpolation, _VERSION, PIL.__version__]
    path = cache_dir.absolute() / f"{_digest(described)}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    expected = {
        "rows": _digest([[row.digest, row.label, row.split] for row in manifest.rows]),
        "shape": [len(manifest.rows), crop_size, crop_size, 3],
    }
    with FileLock(path.with_suffix(".lock")):
        opened = _open(path, expected)
        if opened is None:
            _build(path, manifest, view, expected, workers, on_progress)
            opened = DecodedImages.open(path)
    return opened


@dataclass(frozen=True)
class _View:
    """What is made of each image."""

    resize_size: int
    crop_size: int
    interpolation: str
    max_pixels: int


@dataclass(frozen=True)
class _Task:
    """One file to decode."""

    path: Path
    digest: str
    places: tuple[int, ...]
    """Rows of the array: several where the data set holds copies."""


def _build(
    path: Path,
    manifest: Manifest,
    view: _View,
    expected: dict[str, Any],
    workers: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    partial_file = path.with_suffix(".partial")  # one builder at a time, thanks to the lock
    partial_file.unlink(missing_ok=True)
    try:
        _allocate(partial_file, expected["shape"])
        reasons = map_files(
            partial(_decode_into, target=partial_file, view=view),
            _tasks(manifest),
            workers=workers,
            crashed=lambda task: f"{task.path}: the decoder crashed on it",
            on_progress=on_progress,
        )
        changed = [reason for reason in reasons if reason]
        if changed:
            raise DataError(
                f"{len(changed)} images are not what they were when the folder was read, the first: {changed[0]}. "
                "Start again: the folder is then read anew."
            )
        with partial_file.open("rb+") as file:
            os.fsync(file.fileno())
        partial_file.replace(path)
    except BaseException:
        partial_file.unlink(missing_ok=True)
        raise
    status = path.stat()
    description = {
        **expected,
        # Reading a cache of gigabytes for a checksum would cost what the cache saves. Size and time tell a file that
        # was cut off, copied over or written to; the fsync above has made sure that its pages are there.
        "size": status.st_size,
        "modified": status.st_mtime_ns,
        "labels": [row.label for row in manifest.rows],
        "splits": {split: [rows.start, rows.stop] for split, rows in _split_slices(manifest).items()},
    }
    write_atomically(path.with_suffix(".json"), json.dumps(description).encode())


def _open(path: Path, expected: dict[str, Any] | None) -> DecodedImages | None:
    """The file if it is whole, unchanged and, where that is known, of the expected rows; else None."""
    try:
        description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        status = path.stat()
        if (description["size"], description["modified"]) != (status.st_size, status.st_mtime_ns):
            return None
        if expected is not None and any(description[key] != value for key, value in expected.items()):
            return None
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype != np.uint8 or list(array.shape) != description["shape"]:
            return None
        labels = np.array(description["labels"], dtype=np.int64)
        splits: dict[Split, slice] = {split: slice(*rows) for split, rows in description["splits"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, or not what we write
        return None
    with suppress(OSError):  # a cache on a read-only disk
        os.utime(path.with_suffix(".json"))  # when it was last used, for `thawline clean`
    return DecodedImages(path, array, labels, splits)


def _allocate(path: Path, shape: list[int]) -> None:
    """Make the array's file with all its blocks: a disk that fills up later would kill whoever writes to the map."""
    size = math.prod(shape)
    free = shutil.disk_usage(path.parent).free
    if size + _SPARE_BYTES > free:
        raise DataError(
            f"The decoded images need {size / 1e9:.1f} GB (and {_SPARE_BYTES / 1e9:.1f} GB to spare) in {path.parent}, "
            f"but {free / 1e9:.1f} GB are free. Free some, choose a smaller --image-size, or set THAWLINE_HOME to a "
            "folder on a larger disk."
        )
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=tuple(shape))
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _tasks(manifest: Manifest) -> list[_Task]:
    places: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(manifest.rows):
        places[row.digest].append(index)
    return [
        _Task(manifest.root / manifest.rows[indices[0]].path, digest, tuple(indices))
        for digest, indices in places.items()
    ]


def _decode_into(task: _Task, *, target: Path, view: _View) -> str:
    """Decode one file into its rows of the array; returns what is wrong with it, or nothing."""
    try:
        data = task.path.read_bytes()
    except OSError as error:
        return f"{task.path}: {error.strerror}"
    if content_digest(data) != task.digest:
        return f"{task.path}: its content has changed"
    try:
        image = images.decode(data, max_pixels=view.max_pixels)
    except images.BadImage as error:
        return f"{task.path}: {error}"
    rows = np.load(target, mmap_mode="r+", allow_pickle=False)
    rows[list(task.places)] = images.resize_and_crop(
        image, resize_size=view.resize_size, crop_size=view.crop_size, interpolation=view.interpolation
    )
    return ""


def _split_slices(manifest: Manifest) -> dict[Split, slice]:
    slices: dict[Split, slice] = {}
    start = 0
    for split, count in sorted(Counter(row.split for row in manifest.rows).items()):
        slices[split] = slice(start, start + count)
        start += count
    return slices


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
