"""Frozen activations in files, shared by all trials and processes of a machine.

A file contains the activations of one split in one view at one boundary of one backbone, row by row. Its name is a
digest of everything that they depend on. It is built under a lock, as a partial file with a checksum per block, so that
a killed builder resumes where it stopped. A truncated, foreign or changed file is never used.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from thawline.backbones import Preprocessing
from thawline.exceptions import ActivationError
from thawline.training.resident import identity_of

__all__ = ["ActivationKey", "ActivationStore", "Activations", "StoredType"]

StoredType = Literal["float32", "float16", "bfloat16"]

_VERSION = 1
_NUMPY_TYPES: dict[str, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.int16,  # not supported by numpy: stored as bits
}
_SPARE_BYTES = 1_000_000_000  # left free on the disk for checkpoints and records
_READ_AT_ONCE = 64 * 2**20


@dataclass(frozen=True)
class ActivationKey:
    """Everything that activations depend on: equal keys mean equal values."""

    data: str
    """Name of the file of decoded images or tokenized texts: digest of manifest (and so the order of rows), sizes and
    decoder, or tokenizer and longest length."""
    split: str
    view: str
    """The augmentation of the images."""
    backbone: str
    weights: str
    """Digest of the pretrained weights."""
    boundary: int
    """Number of layer groups applied."""
    preprocessing: Preprocessing | None
    """Preprocessing of images."""
    computed_in: str
    """Device, precision and memory format of the computation."""
    stored_as: StoredType
    libraries: str
    """Versions of torch and torchvision, whose kernels may change."""

    @cached_property
    def digest(self) -> str:
        """Thirty-two hex digits."""
        return hashlib.sha256(json.dumps([asdict(self), _VERSION], sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class _Layout:
    """The layout of rows in the file."""

    rows: int
    shape: tuple[int, ...]
    """Shape of one row of the network's input."""
    order: tuple[int, ...]
    """Dimensions of a batch from slowest to fastest in memory, so that reading needs no reordering."""
    stored_as: StoredType

    @property
    def physical_shape(self) -> tuple[int, ...]:
        """Shape of the whole file."""
        batch = (self.rows, *self.shape)
        return tuple(batch[dimension] for dimension in self.order)

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(_NUMPY_TYPES[self.stored_as]).itemsize

    @property
    def bytes(self) -> int:
        return self.rows * self.row_bytes

    @classmethod
    def of(cls, batch: Tensor, rows: int, stored_as: StoredType) -> "_Layout":
        """The layout of a file of such activations, ``[n, …]``."""
        strides = batch.stride()
        inner = sorted(range(1, batch.ndim), key=lambda d: (-strides[d], d))
        return cls(rows, tuple(batch.shape[1:]), (0, *inner), stored_as)

    def as_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]  # tuples to lists, as read back

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "_Layout":
        return cls(int(plain["rows"]), tuple(plain["shape"]), tuple(plain["order"]), plain["stored_as"])


class Activations:
    """A complete file, memory-mapped for reading."""

    def __init__(self, path: Path, layout: _Layout) -> None:
        self.path, self._layout = path, layout
        self.identity = identity_of(path)
        """Distinguishes the file from others, including later ones of the same name."""
        kind = _NUMPY_TYPES[layout.stored_as]
        self._array = np.memmap(path, dtype=kind, mode="r", shape=layout.physical_shape)
        self._back = np.argsort(layout.order).tolist()
        if hasattr(os, "posix_fadvise") and layout.bytes < psutil.virtual_memory().available / 2:
            # The kernel reads it sequentially while the first batch is prepared, much faster than row by row.
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def __len__(self) -> int:
        return self._layout.rows

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self._layout.bytes

    def rows(self, indices: np.ndarray | slice) -> Tensor:
        """A copy of some rows, ``[n, …]``, in the original type and memory format."""
        return self.arrange(self.physical(indices))

    def physical(self, indices: np.ndarray | slice) -> Tensor:
        """The same with dimensions in the file's order; :meth:`arrange` reorders them without a copy."""
        tensor = torch.from_numpy(np.array(self._array[indices]))
        return tensor.view(torch.bfloat16) if self._layout.stored_as == "bfloat16" else tensor

    def arrange(self, physical: Tensor) -> Tensor:
        """A view with dimensions in the network's order."""
        return physical.permute(self._back)


class ActivationStore:
    """A folder of activation files.

    Any number of threads and processes may share a folder. Files are only removed to free space, least recently used
    first; open files stay readable.
    """

    def __init__(self, folder: Path, *, budget: int | None = None) -> None:
        """Use ``folder``, created if missing, for at most ``budget`` bytes: by default half of the sum of its size and
        the free disk space."""
        self.folder = folder.absolute()
        self._budget = budget
        self.folder.mkdir(parents=True, exist_ok=True)

    def open(self, key: ActivationKey) -> Activations | None:
        """The activations, or ``None`` if the file is incomplete or has another key; takes milliseconds.

        Does not check the content: :meth:`verify` does, once per search.
        """
        found = self._described(key)
        if found is None:
            return None
        try:
            os.utime(self._path(key, "json"))  # the time of the last use
            return Activations(self._path(key, "bin"), found[0])
        except OSError:  # just removed by another process
            return None

    def verify(self, key: ActivationKey) -> bool:
        """Whether every block matches its checksum; removes a damaged file. Reads the whole file, at about 1 GB/s."""
        found = self._described(key)
        if found is None:
            return False
        layout, blocks = found
        try:
            with self._path(key, "bin").open("rb") as file:
                whole = all(_checksum(file, size) == checksum for size, checksum in blocks)
        except OSError:
            return False
        if not whole or sum(size for size, _ in blocks) != layout.bytes:
            self._remove(key.digest)
            return False
        return True

    def bytes_used(self) -> int:
        """Size of all files."""
        return sum(entry.bytes for entry in self._entries())

    def bytes_allowed(self) -> int:
        """The budget."""
        if self._budget is not None:
            return self._budget
        return (self.bytes_used() + shutil.disk_usage(self.folder).free) // 2

    @contextmanager
    def building(self, keys: Sequence[ActivationKey]) -> Iterator[None]:
        """Hold the locks of these keys: one process builds and others wait."""
        with ExitStack() as stack:
            for digest in sorted(key.digest for key in keys):  # in the same order everywhere, to avoid deadlocks
                stack.enter_context(FileLock(self.folder / f"{digest}.lock"))
            yield

    def writer(self, key: ActivationKey, sample: Tensor, rows: int) -> "ActivationWriter":
        """Start a file, or resume one whose builder was killed. Call it inside :meth:`building`.

        Args:
            key: key of the activations.
            sample: activations ``[n, …]`` as computed by the network.
            rows: total number of rows.

        Raises:
            ActivationError: if there is no space for it.
        """
        layout = _Layout.of(sample, rows, key.stored_as)
        writer = ActivationWriter(self._path(key, "partial"), self._path(key, "progress"), key, layout)
        missing = layout.bytes - writer.bytes_on_disk
        try:
            self._make_room(missing, keep=key.digest)
            writer.allocate()
        except OSError as error:
            writer.abandon()
            raise ActivationError(f"the disk of {self.folder} is full ({error.strerror})") from None
        except ActivationError:
            writer.abandon()
            raise
        return writer

    def publish(self, writer: "ActivationWriter") -> None:
        """Publish a completely written file under its key.

        The file is not synced, which would take as long as writing it: checksums detect damage after a power cut.
        """
        blocks = writer.finish()
        path = self._path(writer.key, "bin")
        self._path(writer.key, "partial").replace(path)
        status = path.stat()
        description = {
            "key": asdict(writer.key),
            "layout": writer.layout.as_dict(),
            "blocks": blocks,
            "size": status.st_size,
            "modified": status.st_mtime_ns,
        }
        temporary = self._path(writer.key, "json.tmp")
        temporary.write_text(json.dumps(description))
        temporary.replace(self._path(writer.key, "json"))
        self._path(writer.key, "progress").unlink(missing_ok=True)

    def _described(self, key: ActivationKey) -> tuple[_Layout, list[tuple[int, int]]] | None:
        """Layout and blocks of a file that looks complete."""
        try:
            description = json.loads(self._path(key, "json").read_text(encoding="utf-8"))
            status = self._path(key, "bin").stat()
            layout = _Layout.from_dict(description["layout"])
            blocks = [(int(size), int(checksum)) for size, checksum in description["blocks"]]
            unchanged = (description["size"], description["modified"]) == (status.st_size, status.st_mtime_ns)
            ours = description["key"] == json.loads(json.dumps(asdict(key))) and layout.stored_as == key.stored_as
            whole = status.st_size == layout.bytes
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, or in another format
            return None
        return (layout, blocks) if unchanged and ours and whole else None

    def _make_room(self, needed: int, *, keep: str) -> None:
        """Remove the least recently used files until ``needed`` bytes fit into the budget and onto the disk.

        Raises:
            ActivationError: if they cannot fit.
        """
        entries = sorted((entry for entry in self._entries() if entry.digest != keep), key=lambda entry: entry.used)
        allowed = self.bytes_allowed()
        used = sum(entry.bytes for entry in entries)
        free = shutil.disk_usage(self.folder).free - _SPARE_BYTES
        for entry in entries:
            if used + needed <= allowed and needed <= free:
                break
            if self._remove_unless_busy(entry.digest):
                used, free = used - entry.bytes, free + entry.bytes
        if used + needed > allowed:
            raise ActivationError(f"{needed / 1e9:.1f} GB do not fit into the budget of {allowed / 1e9:.1f} GB")
        if needed > free:
            raise ActivationError(f"the disk of {self.folder} is too full for {needed / 1e9:.1f} GB")

    def _remove_unless_busy(self, digest: str) -> bool:
        lock = FileLock(self.folder / f"{digest}.lock", timeout=0)
        try:
            with lock:
                self._remove(digest)
        except Timeout:
            return False
        return True

    def _remove(self, digest: str) -> None:
        for suffix in ("json", "bin", "partial", "progress"):  # the description first: then none opens the rest
            (self.folder / f"{digest}.{suffix}").unlink(missing_ok=True)

    def _entries(self) -> list["_Entry"]:
        found: dict[str, _Entry] = {}
        for path in self.folder.iterdir():
            if path.suffix not in {".bin", ".partial", ".json"}:
                continue
            try:
                status = path.stat()
            except OSError:  # removed by another process
                continue
            entry = found.setdefault(path.stem, _Entry(path.stem, 0, 0.0))
            size = status.st_size if path.suffix != ".json" else 0
            found[path.stem] = _Entry(path.stem, entry.bytes + size, max(entry.used, status.st_mtime))
        return list(found.values())

    def _path(self, key: ActivationKey, suffix: str) -> Path:
        return self.folder / f"{key.digest}.{suffix}"


@dataclass(frozen=True)
class _Entry:
    """One file, complete or partial."""

    digest: str
    bytes: int
    used: float
    """Seconds since 1970."""


class ActivationWriter:
    """Writes a file sequentially in blocks, and records each block's checksum."""

    def __init__(self, path: Path, progress: Path, key: ActivationKey, layout: _Layout) -> None:
        self.key, self.layout = key, layout
        self._path, self._progress = path, progress
        self._blocks = self._finished_blocks()
        self._pending_size = self._pending_checksum = 0
        self._file: Any = None

    @property
    def rows_done(self) -> int:
        """Rows in finished blocks: resume from here."""
        return sum(size for size, _ in self._blocks) // self.layout.row_bytes

    @property
    def bytes_on_disk(self) -> int:
        """Bytes already allocated."""
        return self._path.stat().st_size if self._path.exists() else 0

    def allocate(self) -> None:
        """Allocate all the space now, so that a full disk is detected before anything is computed.

        Raises:
            OSError: if the disk is full.
        """
        self._path.touch()
        self._file = self._path.open("rb+")
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), 0, max(1, self.layout.bytes))
        self._file.truncate(self.layout.bytes)
        self.rewind(self.rows_done)

    def rewind(self, rows: int) -> None:
        """Resume at row ``rows``, the end of a finished block, or 0."""
        while self.rows_done > rows:
            self._blocks.pop()
        self._file.seek(self.rows_done * self.layout.row_bytes)
        lines = [json.dumps(self.layout.as_dict()), *(json.dumps(block) for block in self._blocks)]
        self._progress.write_text("".join(f"{line}\n" for line in lines))

    def write(self, batch: Tensor) -> None:
        """Append rows ``[n, …]``, on the CPU.

        Raises:
            ActivationError: if a value is out of range for the stored type.
            OSError: if the disk is full.
        """
        # The order of dimensions may only vary between batches for those of size 1, where it is irrelevant.
        physical = batch.detach().permute(self.layout.order).contiguous()
        stored = physical.to(getattr(torch, self.layout.stored_as))
        if self.layout.stored_as == "float16" and not torch.isfinite(stored).all():
            raise ActivationError(
                f"activations of up to {float(physical.abs().max()):.3g} do not fit into half precision"
            )
        data = stored.reshape(-1).view(torch.uint8).numpy().data
        self._file.write(data)
        self._pending_checksum = zlib.crc32(data, self._pending_checksum)
        self._pending_size += len(data)

    def end_block(self) -> None:
        """Record that everything so far is written."""
        if self._pending_size:
            self._file.flush()
            self._blocks.append((self._pending_size, self._pending_checksum))
            with self._progress.open("a") as progress:
                progress.write(json.dumps(self._blocks[-1]) + "\n")
            self._pending_size = self._pending_checksum = 0

    def finish(self) -> list[tuple[int, int]]:
        """Close the file; returns size and checksum of each block."""
        self.end_block()
        assert self.rows_done == self.layout.rows, "not all rows were written"  # noqa: S101  a mistake of ours
        self._file.close()
        return self._blocks

    def close(self) -> None:
        """Close the file; the progress is kept for the next builder."""
        if self._file is not None:
            self._file.close()

    def abandon(self) -> None:
        """Abort and free the space."""
        self.close()
        self._path.unlink(missing_ok=True)
        self._progress.unlink(missing_ok=True)

    def _finished_blocks(self) -> list[tuple[int, int]]:
        """Intact blocks of a killed builder, up to the first one that does not match its record."""
        blocks: list[tuple[int, int]] = []
        try:
            lines = self._progress.read_text().splitlines()
            if not lines or json.loads(lines[0]) != self.layout.as_dict():
                return []
            with self._path.open("rb") as file:
                for line in lines[1:]:
                    size, checksum = json.loads(line)
                    if size % self.layout.row_bytes or _checksum(file, size) != checksum:
                        break
                    blocks.append((size, checksum))
        except (OSError, ValueError, TypeError):
            pass
        return blocks


def _checksum(file: Any, size: int) -> int | None:
    """CRC-32 of the next ``size`` bytes; ``None`` if the file is shorter."""
    checksum = 0
    while size > 0:
        data = file.read(min(size, _READ_AT_ONCE))
        if not data:
            return None
        checksum, size = zlib.crc32(data, checksum), size - len(data)
    return checksum
