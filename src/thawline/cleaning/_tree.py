"""Listing files and folders without following links."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["children", "files_below", "folders", "is_file", "is_locked", "last_used", "newest", "size"]


def children(folder: Path) -> list[Path]:
    """Contents of a folder; empty if it does not exist or is a link."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(folder.iterdir())


def folders(folder: Path) -> list[Path]:
    """Subfolders, without links."""
    return [child for child in children(folder) if child.is_dir() and not child.is_symlink()]


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder; links count as files."""
    for child in children(folder):
        if child.is_dir() and not child.is_symlink():
            yield from files_below(child)
        else:
            yield child


def is_file(path: Path) -> bool:
    """Whether it is a regular file, not a link."""
    return path.is_file() and not path.is_symlink()


def size(paths: Sequence[Path]) -> int:
    """Total size of files (bytes), without links."""
    found = (_status(path) for path in paths)
    return sum(status.st_size for status in found if status is not None and stat.S_ISREG(status.st_mode))


def newest(paths: Sequence[Path]) -> float:
    """Time of the last write to any of the files, in seconds since 1970; 0 if there are none."""
    found = (_status(path) for path in paths)
    return max((status.st_mtime for status in found if status is not None), default=0.0)


def last_used(folder: Path) -> float:
    """Time of the last write to any file in a folder, or of the creation of an empty one.

    Locks do not count: checking one may touch it.
    """
    files = [path for path in files_below(folder) if path.suffix != ".lock"]
    return newest(files or [folder])


def is_locked(lock: Path) -> bool:
    """Whether a live process holds a lock."""
    if not is_file(lock):
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:  # removed by another process
        return None
