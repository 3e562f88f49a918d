"""Decode once: all images of a manifest in one memory-mapped array, shared by all processes of a search.

Without space for it, or if it is disabled, images are decoded on every read instead.
"""

import math
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import PIL

from thawline.data._arrays import SPARE_BYTES, allocate, build, digest, locked, open_array, rows_digest, split_slices
from thawline.data._pool import map_files
from thawline.data._views import ChangedImageError, View, refused
from thawline.data.contract import Manifest
from thawline.data.splits import Split
from thawline.data.streamed import StreamedImages
from thawline.exceptions import DataError

__all__ = ["DecodedImages", "decoded"]

_VERSION = 2  # increment when the results of images.py change
_DECODED, _LISTED = ".npy", ".safetensors"
_MOST_OF_FREE = 0.5
"""Maximum share of the free space for decoded images: the rest is for stored activations, which save more time."""


@dataclass(frozen=True, eq=False)
class DecodedImages:
    """The images of a manifest, in the order of its rows, read from disk on access.

    Pickling only stores the path, so passing it to another process is cheap.
    """

    path: Path
    """File of the decoded images, or of the list of image files."""
    images: npt.NDArray[np.uint8] | StreamedImages
    """uint8 ``[N, S, S, 3]``, read-only: backed by the file, or decoded on access."""
    labels: npt.NDArray[np.int64]
    """int64 ``[N]``."""
    splits: dict[Split, slice]
    """The rows of each split, which are contiguous because the manifest is sorted by split first."""

    @classmethod
    def open(cls, path: Path, *, threads: int | None = None) -> "DecodedImages":
        """Open a result of :func:`decoded`; takes milliseconds for any size.

        Args:
            path: path of the result.
            threads: number of decoding threads, if images are decoded on access; by default one per core.

        Raises:
            DataError: if the file is missing, truncated, or was changed after it was built.
        """
        opened = _open(path, None) if path.suffix == _DECODED else _open_streamed(path, threads)
        if opened is None:
            raise DataError(f"{path} is missing or damaged. Start the search again to rebuild it.")
        return opened

    @property
    def are_kept(self) -> bool:
        """Whether decoded images are stored on disk."""
        return not isinstance(self.images, StreamedImages)

    def split(self, split: Split) -> tuple[npt.NDArray[np.uint8] | StreamedImages, npt.NDArray[np.int64]]:
        """Images ``[n, S, S, 3]`` and labels ``[n]`` of one split: views, nothing is copied or decoded."""
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
    cache: Literal["auto", "off"] = "auto",
    max_pixels: int = 64_000_000,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DecodedImages:
    """Decode, resize and crop every image of the manifest once; later calls, in any process, open the same file.

    The file is named after the manifest's digest and everything that the pixels depend on. It is built in a temporary
    file and renamed once it is complete, under a lock: one process builds it and others wait. A truncated, foreign or
    changed file is rebuilt, never used.

    If decoded images are not stored, only a list of files is, under the same name with another suffix; the pixels are
    the same.

    Args:
        manifest: result of :func:`thawline.data.scan`.
        resize_size: length in pixels to which the shorter side, or with ``squash`` either side, is resized.
        crop_size: side S in pixels of the square that is cropped from the centre.
        interpolation: see :func:`thawline.data.resize_and_crop`.
        crop_mode: see there.
        cache_dir: folder of all such files; created if missing.
        cache: ``off`` stores no decoded images; ``auto`` stores none if they are missing and would take more than half
            of the free disk space.
        max_pixels: the limit of the manifest's scan.
        workers: number of decoding processes; by default one per core.
        on_progress: called with (images decoded, total); not called if the file exists.

    Raises:
        DataError: if an image has changed since the scan, or there is not enough disk space.
    """
    view = View(resize_size, crop_size, interpolation, crop_mode, max_pixels)
    described = [manifest.digest, resize_size, crop_size, interpolation, crop_mode, _VERSION, PIL.__version__]
    path = cache_dir.absolute() / f"{digest(described)}{_DECODED}"
    if cache == "off":
        return _streamed(manifest, view, path)
    shape = [len(manifest.rows), crop_size, crop_size, 3]
    expected = {"rows": rows_digest(manifest), "dtype": "uint8", "shape": shape}
    with locked(path):
        opened = _open(path, expected)
        if opened is None:
            if math.prod(shape) > (shutil.disk_usage(path.parent).free - SPARE_BYTES) * _MOST_OF_FREE:
                return _streamed(manifest, view, path)
            build(path, partial(_write, manifest, view, expected, workers, on_progress))
            opened = DecodedImages.open(path)
    return opened


@dataclass(frozen=True)
class _Task:
    """One file to decode."""

    path: Path
    digest: str
    places: tuple[int, ...]
    """Rows of the array: several if the data set contains copies."""


def _write(
    manifest: Manifest,
    view: View,
    expected: dict[str, Any],
    workers: int | None,
    on_progress: Callable[[int, int], None] | None,
    target: Path,
) -> dict[str, Any]:
    """Decode all images into the file; returns its description."""
    allocate(target, np.uint8, expected["shape"], what="The decoded images", remedy="choose data.cache=off")
    reasons = map_files(
        partial(_decode_into, target=target, view=view),
        _tasks(manifest),
        workers=workers,
        crashed=lambda task: f"{task.path}: the decoder crashed on it",
        on_progress=on_progress,
    )
    changed = [reason for reason in reasons if reason]
    if changed:
        raise refused(changed)
    return {
        **expected,
        "labels": [row.label for row in manifest.rows],
        "splits": {split: [rows.start, rows.stop] for split, rows in split_slices(manifest).items()},
    }


def _open(path: Path, expected: dict[str, Any] | None) -> DecodedImages | None:
    """The file if it is complete, unchanged and has the expected rows, if given; else None."""
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


def _decode_into(task: _Task, *, target: Path, view: View) -> str:
    """Decode one file into its rows of the array; returns an error message, or an empty string."""
    try:
        pixels = view.of(task.path, task.digest)
    except ChangedImageError as error:
        return str(error)
    rows = np.load(target, mmap_mode="r+", allow_pickle=False)
    rows[list(task.places)] = pixels
    return ""


# ------------------------------------------------------------------------------------------ where nothing is kept


def _streamed(manifest: Manifest, view: View, path: Path) -> DecodedImages:
    """List the files instead of decoding them: their location may have changed since the last time."""
    listed = path.with_suffix(_LISTED)
    StreamedImages.list_files(manifest, view, listed)
    return DecodedImages.open(listed)


def _open_streamed(path: Path, threads: int | None) -> DecodedImages | None:
    opened = StreamedImages.open(path, threads=threads)
    return None if opened is None else DecodedImages(path, opened, opened.labels, opened.splits)
