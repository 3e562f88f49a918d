"""The state of all files that a scan reads, to detect possible changes."""

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

if TYPE_CHECKING:  # decoding processes import this package and do not need pydantic
    from thawline.config import DataConfig

__all__ = ["data_state"]

_Files = Iterator[tuple[str, os.stat_result]]
"""Paths and their file status."""


def data_state(config: "DataConfig") -> tuple[str, float]:
    """A digest of path, size and times of every file that a scan reads, and the latest time.

    The files are the table, the archive, or all files below the folder; the images of a table, wherever they are;
    ``data.exclude`` and ``data.relabel``; and the class names beside shards. Only the first rows of a table are read,
    and an archive is unpacked if necessary; nothing else is opened. Times are in seconds since 1970. As in a scan,
    linked folders are included and hidden files are not.

    Raises:
        DataError: if the path does not exist, a folder cannot be read, or an archive cannot be unpacked.
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
        if file is not None and file.expanduser().is_file():  # the scan reports a missing file of corrections
            yield str(file), file.expanduser().stat()


def _images_elsewhere(root: Path, config: "DataConfig") -> Path | None:
    """The folder of a table's images, if it is not the data."""
    if config.image_folder is not None:
        return config.image_folder.expanduser().absolute()
    if root.is_dir() or unpacked(config)[0] is not config or data_kind(config) == "texts":
        return None
    return root.parent


def _files_below(folder: Path, above: set[tuple[int, int]]) -> _Files:
    """Every file below, in order; does not follow links to a parent folder."""
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
