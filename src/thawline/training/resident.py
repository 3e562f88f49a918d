"""A GPU cache of rows of files, shared by all trials that one process trains.

Rows uploaded for one trial are reused by the next that reads the same file. They are evicted when another file needs
the memory, and permanently when memory runs out.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from thawline.training.runtime import on_device

__all__ = ["BLOCK", "Resident", "copied", "forget_unused", "identity_of", "keep_nothing", "keep_rows", "room_on"]

BLOCK = 64_000_000
"""Bytes per copy: a GPU may have more free memory than its machine."""


class Resident:
    """The first rows of a file on a device, possibly all or none. They stay there during this object's lifetime."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def take(self, rows: np.ndarray, from_host: Callable[[np.ndarray], Tensor]) -> Tensor:
        """Rows ``[n, …]`` in this order, on the device if any of them is cached there.

        Args:
            rows: indices of the rows.
            from_host: reads rows that are not on the device.
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
    """The cached rows of this process by key, least recently used first."""

    def __init__(self) -> None:
        self.kept: OrderedDict[Hashable, tuple[Tensor, WeakSet[Resident]]] = OrderedDict()
        self.gave_up = False

    def bytes_on(self, device: torch.device, *, used: bool = False) -> int:
        """Bytes cached on a device, by default all, or only those in use."""
        entries = [(rows, users) for rows, users in self.kept.values() if _index(rows.device) == _index(device)]
        return sum(rows.nbytes for rows, users in entries if users or not used)

    def evict_unused(self, is_surplus: Callable[[torch.device], bool] = lambda device: True) -> None:
        """Evict unused entries, the least recently used first, as long as their device has a surplus."""
        for key in [key for key, (_, users) in self.kept.items() if not users]:
            if is_surplus(self.kept[key][0].device):
                del self.kept[key]
                torch.cuda.empty_cache()


_cache = _Cache()


def keep_rows(key: Hashable, count: int, read: Callable[[slice], Tensor], device: torch.device) -> Resident:
    """Cache as many of the first rows as there is room for, see :func:`room_on`, unless they are already cached.

    Unused rows are evicted from other GPUs, where this process trains no longer, and if necessary from this one.

    Args:
        key: identifies the file and its version, see :func:`identity_of`.
        count: number of rows of the file.
        read: reads a block of rows to the host.
        device: a GPU.
    """
    _cache.evict_unused(lambda other: _index(other) != _index(device))
    known = (key, _index(device))
    if known in _cache.kept:
        _cache.kept.move_to_end(known)
        rows, users = _cache.kept[known]
        kept = Resident(rows)
        users.add(kept)
        return kept
    first = read(slice(0, 1))
    fit = min(count, room_on(device) // max(1, first.nbytes))
    _cache.evict_unused(lambda _: _free(device) < 2 * fit * first.nbytes)
    rows = copied(fit, first, read, device)
    kept = Resident(rows)
    if fit:
        _cache.kept[known] = (rows, WeakSet([kept]))
    return kept


def copied(
    count: int, first: Tensor, read: Callable[[slice], Tensor], device: torch.device, *, block: int = BLOCK
) -> Tensor:
    """Upload the first rows of a file to a device, ``[count, …]``.

    Args:
        count: number of rows.
        first: one row, ``[1, …]``, with the shape and type of all.
        read: reads a block of rows to the host.
        device: the target device.
        block: bytes per copy.
    """
    rows = torch.empty((count, *first.shape[1:]), dtype=first.dtype, device=device)
    step = max(1, block // max(1, first.nbytes))
    for start in range(0, count, step):
        rows[start : start + step] = read(slice(start, min(start + step, count)))
    return rows


def keep_nothing() -> None:
    """Clear the cache, and disable it from now on, because memory is short."""
    _cache.kept.clear()
    _cache.gave_up = True


def forget_unused() -> None:
    """Evict all rows that no trial uses now."""
    _cache.evict_unused()


def identity_of(path: Path) -> tuple[Hashable, ...]:
    """A key that distinguishes a file from others of the same name."""
    status = path.stat()
    return (str(path), status.st_ino, status.st_size, status.st_mtime_ns)


def room_on(device: torch.device) -> int:
    """Bytes that this process could cache on a device now; 0 for devices without a cache.

    The cache may have half of the memory that is free or its own: all files of a trial together, not each of them.
    """
    if device.type != "cuda" or _cache.gave_up:
        return 0
    return max(0, (_free(device) + _cache.bytes_on(device)) // 2 - _cache.bytes_on(device, used=True))


def _index(device: torch.device) -> int:
    """The number of a GPU; ``cuda`` is the first one."""
    return device.index or 0


def _free(device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)
