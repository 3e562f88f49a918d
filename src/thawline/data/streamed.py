"""Images that are decoded on every read, without storing decoded ones on disk or in memory."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from thawline.data._arrays import split_slices
from thawline.data._files import write_atomically
from thawline.data._pool import cores
from thawline.data._views import ChangedImageError, View, refused
from thawline.data.contract import Manifest
from thawline.data.splits import Split

__all__ = ["StreamedImages"]

_FORMAT = "thawline-streamed-1"
_DIGEST_BYTES = 16


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """Images that are indexed like an array ``[N, S, S, 3]``, and decoded on access.

    Each file is compared with its digest at every read. Memory use is 24 bytes plus the name per file.
    """

    view: View
    root: Path
    labels: npt.NDArray[np.int64]
    """int64 ``[N]``, for all images of the data."""
    splits: dict[Split, slice]
    """The rows of each split."""
    threads: int
    """Number of threads for decoding one request."""
    rows: range
    """The rows of these images among all."""
    _digests: npt.NDArray[np.uint8]
    """``[N, 16]``."""
    _names: npt.NDArray[np.uint8]
    """Concatenated paths relative to the root."""
    _ends: npt.NDArray[np.int64]
    """The end of each path, ``[N]``."""

    @staticmethod
    def list_files(manifest: Manifest, view: View, path: Path) -> None:
        """Write the list of a manifest's files with digests and labels, at some 50 bytes per image."""
        from safetensors.numpy import save

        names = [os.fsencode(row.path) for row in manifest.rows]
        digests = np.frombuffer(bytes.fromhex("".join(row.digest for row in manifest.rows)), np.uint8)
        arrays: dict[str, npt.NDArray[Any]] = {
            "labels": np.array([row.label for row in manifest.rows], np.int64),
            "digests": digests.reshape(-1, _DIGEST_BYTES),
            "names": np.frombuffer(b"".join(names), np.uint8),
            "ends": np.cumsum([len(name) for name in names], dtype=np.int64),
            "root": np.frombuffer(os.fsencode(manifest.root.absolute()), np.uint8),  # need not be UTF-8
        }
        splits = {split: [rows.start, rows.stop] for split, rows in split_slices(manifest).items()}
        described = json.dumps({"format": _FORMAT, "view": asdict(view), "splits": splits})
        metadata = {"described": described, "checksum": _checksum(described, arrays)}
        write_atomically(path, save(arrays, metadata))

    @classmethod
    def open(cls, path: Path, *, threads: int | None = None) -> "StreamedImages | None":
        """Open a list written by :func:`list_files`; ``None`` if it is missing, damaged or something else.

        Args:
            path: path of the list.
            threads: see :attr:`threads`; by default one per core.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        except (SafetensorError, OSError):
            return None
        described = metadata.get("described", "{}")
        if metadata.get("checksum") != _checksum(described, arrays):
            return None
        content = json.loads(described)
        if content["format"] != _FORMAT:
            return None
        with suppress(OSError):  # a cache on a read-only disk
            os.utime(path)  # time of last use, for `thawline clean`
        return cls(
            view=View(**content["view"]),
            root=Path(os.fsdecode(arrays["root"].tobytes())),
            labels=arrays["labels"],
            splits={split: slice(*rows) for split, rows in content["splits"].items()},
            threads=threads or cores(),
            rows=range(len(arrays["labels"])),
            _digests=arrays["digests"],
            _names=arrays["names"],
            _ends=arrays["ends"],
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the equivalent array."""
        return len(self), self.view.crop_size, self.view.crop_size, 3

    @property
    def nbytes(self) -> int:
        """The size of the decoded images."""
        return math.prod(self.shape)

    @overload
    def __getitem__(self, wanted: slice) -> "StreamedImages": ...

    @overload
    def __getitem__(self, wanted: int | Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]: ...

    def __getitem__(
        self, wanted: slice | int | Sequence[int] | npt.NDArray[np.integer]
    ) -> "StreamedImages | npt.NDArray[np.uint8]":
        """A slice does not decode yet; one row gives ``[S, S, 3]``, several give ``[n, S, S, 3]``.

        Raises:
            DataError: if a file has changed since the data were read.
        """
        if isinstance(wanted, slice):
            return replace(self, rows=self.rows[wanted])
        if isinstance(wanted, int | np.integer):
            one: npt.NDArray[np.uint8] = self._decoded([self.rows[wanted]])[0]
            return one
        return self._decoded([self.rows[row] for row in wanted])

    def file_of(self, number: int) -> Path:
        """The file of one of these images."""
        return self._file(self.rows[number])

    def _file(self, row: int) -> Path:
        begin = self._ends[row - 1] if row else 0
        return self.root / os.fsdecode(self._names[begin : self._ends[row]].tobytes())

    def _decoded(self, rows: Sequence[int]) -> npt.NDArray[np.uint8]:
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)

        def decode(places: range) -> list[str]:
            return [reason for place in places if (reason := self._decode_into(pixels[place], rows[place]))]

        parts = [range(first, len(rows), self.threads) for first in range(min(self.threads, len(rows)))]
        if len(parts) < 2:
            changed = decode(range(len(rows)))
        else:  # a task per thread: one per image would cost a fifth of decoding a small one
            with ThreadPoolExecutor(len(parts), thread_name_prefix="thawline-decode") as pool:
                changed = [reason for reasons in pool.map(decode, parts) for reason in reasons]
        if changed:
            raise refused(changed)
        return pixels

    def _decode_into(self, pixels: npt.NDArray[np.uint8], row: int) -> str:
        """Decode one file; returns an error message, or an empty string."""
        try:
            pixels[:] = self.view.of(self._file(row), self._digests[row].tobytes().hex())
        except ChangedImageError as error:
            return str(error)
        return ""


def _checksum(described: str, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 of the list's content: 20 ms for 200,000 files."""
    hashed = hashlib.sha256(described.encode())
    for name in sorted(arrays):
        hashed.update(arrays[name].tobytes())
    return hashed.hexdigest()
