"""The state of all files that a scan reads, by which it is known whether anything may have changed."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from thawline.data._listing import is_image
from thawline.data._unpacking import names_beside, unpacked
from thawline.data.source import data_kind
from thawline.exceptions import DataError

if TYPE_CHECKING:  # the processes that decode import this package and need no pydantic
    from thawline.config import DataConfig

__all__ = ["data_state"]

_Files = Iterator[tuple[str, os.stat_result]]
"""Paths and what is known of them."""


def data_state(config: "DataConfig") -> tuple[str, float]:
    """A digest of path, size and times of every file that a scan reads, and the latest of these times.

    These are the table, the archive, or all files below the folder; the images that a table names, wherever they lie;
    ``data.exclude`` and ``data.relabel``; and the names of classes beside shards. Of a table the first rows are read,
    and an archive is unpacked if it was not before; nothing else is opened. Times are in seconds since 1970. As for a
    scan, linked folders count and hidden files do not.

    Raises:
        DataError: if there is nothing, a folder cannot be read, or an archive cannot be unpacked.
    """
    digest, newest = hashlib.sha256(), 0.0
    root = config.path.expanduser().absolute()
    try:
        for path, status in _files_read(root, config):
            digest.update(json.dumps([path, status.st_size, status.st_mtime_ns, status.st_ctime_ns]).encode() + b"\n")
            newest = max(newest, status.st_mtime, status.st_ctime)
    except OSError as error:
        raise DataError(f"Cannot read {error.filename or root}: {error.strerror}.") from None
    return digest.hexdigest()[:32], newest


def _files_read(root: Path, config: "DataConfig") -> _Files:
    if root.is_file():
        yield str(root), root.stat()
    else:
        yield from _files_below(root, set())
    if (images := _images_elsewhere(root, config)) is not None:
        yield from ((path, status) for path, status in _files_below(images, set()) if is_image(Path(path)))
    for file in (config.exclude, config.relabel, names_beside(root)):
        if (
            file is not None and file.expanduser().is_file()
        ):  # the scan says of a file of corrections that it is missing
            yield str(file), file.expanduser().stat()


def _images_elsewhere(root: Path, config: "DataConfig") -> Path | None:
    """The folder of the images that a table names, where it is not the data."""
    if config.image_folder is not None:
        return config.image_folder.expanduser().absolute()
    if root.is_dir() or unpacked(config)[0] is not config or data_kind(config) == "texts":
        return None
    return root.parent


def _files_below(folder: Path, above: set[tuple[int, int]]) -> _Files:
    """Every file below, in order; a link to a folder that is being listed ends there."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        children = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for child in children:
        if child.is_dir():
            yield from _files_below(Path(child.path), above | {here})
        else:
            yield child.path, child.stat(follow_symlinks=child.is_file())
