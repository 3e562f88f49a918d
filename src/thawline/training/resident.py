"""Rows of files that a GPU keeps, for all trials that one process trains after another.

What was uploaded for one trial serves the next that reads the same file. It is given up when another file needs the
room, and for good when memory runs out.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from thawline.training.runtime import on_device

__all__ = ["BLOCK", "Resident", "copied", "identity_of", "keep_nothing", "keep_rows", "room_on"]

BLOCK = 64_000_000
"""Bytes that are copied at a time: a GPU may have room for more than the memory of its machine."""


class Resident:
    """The first rows of a file on a device; maybe all, maybe none. As long as this object lives, they stay there."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def take(self, rows: np.ndarray, from_host: Callable[[np.ndarray], Tensor]) -> Tensor:
        """Rows ``[n, …]`` in this order, on the device if any of them is there.

        Args:
            rows: their indices.
            from_host: reads those that are not on the device.
        """
        near = rows < len(self.rows)
        if not near.any():
            return from_host(rows)
        device = self.rows.device
        kept = self.rows[on_device(rows[near], device)]
        if near.all():
            return kept
        both = torch.cat([kept, on_device(from_host(rows[~near]), device)])
        order = np.argsort(np.concatenate([np.flatnonzero(near), np.flatnonzero(~near)]))
        return both[on_device(order, device)]


class _Cache:
    """What this process keeps, by what it is; used longest ago comes first."""

    def __init__(self) -> None:
        self.kept: OrderedDict[Hashable, tuple[Tensor, WeakSet[Resident]]] = OrderedDict()
        self.gave_up = False

    def unused_bytes(self) -> int:
        return sum(rows.nbytes for rows, users in self.kept.values() if not users)

    def make_room(self, wanted: int, free: Callable[[], int]) -> None:
        """Forget what nobody uses until so many bytes are free, or nothing is left to forget."""
        for key in [key for key, (_, users) in self.kept.items() if not users]:
            if free() >= wanted:
                return
            del self.kept[key]
            torch.cuda.empty_cache()


_cache = _Cache()


def keep_rows(key: Hashable, count: int, read: Callable[[slice], Tensor], device: torch.device) -> Resident:
    """As many rows as fit into half of a GPU's free memory, the first ones; uploaded unless they are there already.

    Args:
        key: what tells the file from all others, and from what it was before: see :func:`identity_of`.
        count: rows of the file.
        read: a block of rows, on the host.
        device: a GPU.
    """
    known = (key, str(device))
    if known in _cache.kept:
        _cache.kept.move_to_end(known)
        rows, users = _cache.kept[known]
        kept = Resident(rows)
        users.add(kept)
        return kept
    first = read(slice(0, 1))
    fit = min(count, room_on(device) // max(1, first.nbytes))
    _cache.make_room(2 * fit * first.nbytes, lambda: _free(device))
    rows = copied(fit, first, read, device)
    kept = Resident(rows)
    if fit:
        _cache.kept[known] = (rows, WeakSet([kept]))
    return kept


def copied(
    count: int, first: Tensor, read: Callable[[slice], Tensor], device: torch.device, *, block: int = BLOCK
) -> Tensor:
    """The first rows of a file on a device, ``[count, …]``.

    Args:
        count: of rows.
        first: one row, ``[1, …]``, of which the others have shape and type.
        read: a block of rows, on the host.
        device: where they go.
        block: bytes at a time.
    """
    rows = torch.empty((count, *first.shape[1:]), dtype=first.dtype, device=device)
    step = max(1, block // max(1, first.nbytes))
    for start in range(0, count, step):
        rows[start : start + step] = read(slice(start, min(start + step, count)))
    return rows


def keep_nothing() -> None:
    """Forget everything, and keep nothing from now on: memory is short."""
    _cache.kept.clear()
    _cache.gave_up = True


def identity_of(path: Path) -> tuple[Hashable, ...]:
    """What tells a file from others of the same name."""
    status = path.stat()
    return (str(path), status.st_ino, status.st_size, status.st_mtime_ns)


def room_on(device: torch.device) -> int:
    """Bytes that could be kept on a device now, by this process; 0 where nothing is kept there."""
    return (_free(device) + _cache.unused_bytes()) // 2 if device.type == "cuda" and not _cache.gave_up else 0


def _free(device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)
