"""Decode once: all images of a manifest in one memory-mapped array that every process of a search shares."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL

from thawline.data import images
from thawline.data._arrays import allocate, build, digest, locked, open_array, rows_digest, split_slices
from thawline.data._pool import map_files
from thawline.data.contract import Manifest, content_digest
from thawline.data.splits import Split
from thawline.exceptions import DataError

__all__ = ["DecodedImages", "decoded"]

_VERSION = 2  # raise it when images.py changes what it returns


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
            raise DataError(f"{path} is missing or damaged. Start the search again: it rebuilds the file.")
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
    crop_mode: str = "center",
    cache_dir: Path,
    max_pixels: int = 64_000_000,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DecodedImages:
    """Decode, resize and crop every image of the manifest once; later calls, in any process, open the same file.

    The file is named after the manifest's digest and all that the pixels depend on. It is built in a temporary file
    and renamed when it is whole, under a lock: of several processes one builds and the others wait for it. A file
    that is cut off, foreign or changed since is rebuilt, never trusted.

    Args:
        manifest: what :func:`thawline.data.scan` returned.
        resize_size: length in pixels to which the shorter side, or with ``squash`` either side, is resized.
        crop_size: side S in pixels of the square that is cut out of the centre.
        interpolation: see :func:`thawline.data.resize_and_crop`.
        crop_mode: see there.
        cache_dir: folder of all such files; made where missing.
        max_pixels: the limit that the manifest was scanned with.
        workers: processes that decode; by default one per core.
        on_progress: called with (images decoded, images in all); not called where the file exists.

    Raises:
        DataError: if an image is no longer what the scan saw, or the disk is too full.
    """
    view = _View(resize_size, crop_size, interpolation, crop_mode, max_pixels)
    described = [manifest.digest, resize_size, crop_size, interpolation, crop_mode, _VERSION, PIL.__version__]
    path = cache_dir.absolute() / f"{digest(described)}.npy"
    expected = {
        "rows": rows_digest(manifest),
        "dtype": "uint8",
        "shape": [len(manifest.rows), crop_size, crop_size, 3],
    }
    with locked(path):
        opened = _open(path, expected)
        if opened is None:
            build(path, partial(_write, manifest, view, expected, workers, on_progress))
            opened = DecodedImages.open(path)
    return opened


@dataclass(frozen=True)
class _View:
    """What is made of each image."""

    resize_size: int
    crop_size: int
    interpolation: str
    crop_mode: str
    max_pixels: int


@dataclass(frozen=True)
class _Task:
    """One file to decode."""

    path: Path
    digest: str
    places: tuple[int, ...]
    """Rows of the array: several where the data set holds copies."""


def _write(
    manifest: Manifest,
    view: _View,
    expected: dict[str, Any],
    workers: int | None,
    on_progress: Callable[[int, int], None] | None,
    target: Path,
) -> dict[str, Any]:
    """Decode all images into the file; returns its description."""
    allocate(target, np.uint8, expected["shape"], what="The decoded images", remedy="choose a smaller --image-size")
    reasons = map_files(
        partial(_decode_into, target=target, view=view),
        _tasks(manifest),
        workers=workers,
        crashed=lambda task: f"{task.path}: the decoder crashed on it",
        on_progress=on_progress,
    )
    changed = [reason for reason in reasons if reason]
    if changed:
        raise DataError(
            f"{len(changed)} images are not what they were when the folder was read, the first: {changed[0]}. "
            "Start again: the folder is then read again."
        )
    return {
        **expected,
        "labels": [row.label for row in manifest.rows],
        "splits": {split: [rows.start, rows.stop] for split, rows in split_slices(manifest).items()},
    }


def _open(path: Path, expected: dict[str, Any] | None) -> DecodedImages | None:
    """The file if it is whole, unchanged and, where that is known, of the expected rows; else None."""
    opened = open_array(path, expected)
    if opened is None:
        return None
    array, description = opened
    if "labels" not in description:  # tokenized texts
        return None
    splits: dict[Split, slice] = {split: slice(*rows) for split, rows in description["splits"].items()}
    return DecodedImages(path, array, np.array(description["labels"], dtype=np.int64), splits)


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
        pixels = images.seen(
            data,
            max_pixels=view.max_pixels,
            resize_size=view.resize_size,
            crop_size=view.crop_size,
            interpolation=view.interpolation,
            crop_mode=view.crop_mode,
        )
    except images.BadImage as error:
        return f"{task.path}: {error}"
    rows = np.load(target, mmap_mode="r+", allow_pickle=False)
    rows[list(task.places)] = pixels
    return ""
