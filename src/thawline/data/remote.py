"""Mirror a folder on object storage to the local disk before it is read.

fsspec opens the URL (``s3://``, ``gs://``, ``az://``, ``sftp://``, …). The mirror keeps an index of downloaded files in
a hidden folder, which also marks it: nothing is ever written to or removed from a folder without it. Every file is
downloaded under a temporary name and renamed once it is complete, so that a killed process can resume.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PureWindowsPath
from typing import Any

from thawline.data._arrays import SPARE_BYTES
from thawline.data._files import printable, write_atomically
from thawline.data._naming import ARCHIVE_SUFFIXES
from thawline.data._table_files import TABLE_SUFFIXES
from thawline.data.contract import counted, listed
from thawline.exceptions import DataError

__all__ = ["MIRROR_STATE", "MirrorSummary", "check_url", "data_location", "mirror"]

MIRROR_STATE = ".thawline-mirror"
"""Name of the hidden folder at the top of a mirror."""

_TOGETHER = 256
"""Files per bundle; fsspec downloads many of them concurrently."""
_INDEX_SECONDS = 30.0
"""Interval for writing the index: limits what a killed process must download again."""
_PASSES = 3
"""Maximum number of listings if files change during the download."""
_LONGEST_NAME = 255

# Keys of an object's version in listings, most reliable first. The time is the last resort.
_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "content_md5", "checksum")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")


@dataclass(frozen=True)
class MirrorSummary:
    """The content of a mirror, and the changes of an update."""

    url: str
    folder: Path
    files: int
    bytes: int
    fetched: int
    """Number of new or changed files."""
    fetched_bytes: int
    removed: int
    """Number of files that no longer exist at the URL."""

    def __str__(self) -> str:
        done = []
        if self.fetched:
            done.append(f"{self.fetched} fetched ({self.fetched_bytes / 1e6:.1f} MB)")
        if self.removed:
            done.append(f"{self.removed} removed")
        return f"{self.url}: {self.files} files, {', '.join(done) or 'nothing changed'}"


def data_location(text: str, home: Path) -> dict[str, str]:
    """A folder or URL given as the data, as keys of :class:`~thawline.config.DataConfig`.

    A URL is mirrored to ``home/cache/mirrors/<digest of the URL>/<its last part>``: model and study are named after the
    folder.

    Raises:
        DataError: if the URL is a table or an archive: only folders are mirrored.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return {"path": text}
    url = f"{scheme}://{rest.rstrip('/')}"
    if url.lower().endswith((*TABLE_SUFFIXES, *ARCHIVE_SUFFIXES)):
        what = "a table" if url.lower().endswith(TABLE_SUFFIXES) else "an archive"
        raise DataError(f"{url} is {what}, but only folders of images are mirrored: download it, and give the file.")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", url.rsplit("/", 1)[-1]).strip("-._")[:60] or "images"
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    return {"path": str(home / "cache" / "mirrors" / digest / name), "url": url}


def check_url(url: str) -> None:
    """Refuse a URL that no installed package can open, without connecting.

    Raises:
        DataError: with the package to install.
    """
    import fsspec

    scheme = url.partition("://")[0]
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = "pip install 'thawline[s3]'" if scheme in {"s3", "s3a"} else str(error)
        raise DataError(f"{url} needs a package that is not installed: {package}") from None
    except ValueError:
        raise DataError(
            f"{url} cannot be opened: fsspec does not support {scheme!r}. Use s3, gs, az or another."
        ) from None


def mirror(
    url: str,
    folder: Path,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    together: int = _TOGETHER,
    index_seconds: float = _INDEX_SECONDS,
) -> MirrorSummary:
    """Synchronise a local folder with a URL: download new and changed files, remove deleted ones.

    A file counts as unchanged if its size and version (the storage's ETag, checksum or time) are the same, and the
    local copy was not modified. One process works while others wait. Files may change while they are read, as in any
    folder.

    Args:
        url: URL of a folder for fsspec, see :class:`~thawline.config.DataConfig`. Credentials come from the
            environment, as for the storage's own tools.
        folder: created if missing; otherwise it must be empty or a mirror of this URL.
        on_progress: called with (files downloaded, total).
        together: files per bundle, the most that an interruption can cost.
        index_seconds: interval for writing the index, the most that a killed process can cost.

    Raises:
        DataError: if the URL cannot be read or is empty, if a key is not a valid path below the folder, or if the
            folder is not a mirror of this URL or has no space.
    """
    from filelock import FileLock

    check_url(url)
    folder = folder.expanduser().resolve()
    with _failures_named(url, folder):
        _mark(folder)
        with FileLock(folder / MIRROR_STATE / "lock"):
            return _Mirror(url, folder, together, index_seconds).update(on_progress or (lambda done, total: None))


@dataclass(frozen=True)
class _Object:
    """A file on the storage, from its listing."""

    name: str
    """Name on the storage."""
    size: int
    version: str


@dataclass(frozen=True)
class _Copy:
    """A downloaded file."""

    size: int
    version: str
    modified: int
    """Modification time of the local file in nanoseconds, to detect changes."""


class _Changed(Exception):
    """A file differs from the listing."""


class _Mirror:
    """A mirror locked by this process."""

    def __init__(self, url: str, folder: Path, together: int, index_seconds: float) -> None:
        import fsspec

        self._url, self._folder = url, folder
        self._together, self._index_seconds = together, index_seconds
        self._state = folder / MIRROR_STATE
        # A new connection: a cached one would keep old credentials and addresses.
        self._files, self._root = fsspec.url_to_fs(url, skip_instance_cache=True)
        self._copies = _read_index(self._state / "index.json", url)
        self._fetched = self._fetched_bytes = self._removed = 0

    def update(self, on_progress: Callable[[int, int], None]) -> MirrorSummary:
        """See :func:`mirror`."""
        self._write_index()
        changed: _Changed | None = None
        for _ in range(_PASSES):
            objects = self._list()
            self._remove_others(objects)
            wanted = {path: found for path, found in objects.items() if not self._has(path, found)}
            try:
                self._fetch(wanted, on_progress)
            except (_Changed, FileNotFoundError) as error:
                changed = _Changed(str(error))
                continue
            return MirrorSummary(
                url=self._url,
                folder=self._folder,
                files=len(objects),
                bytes=sum(found.size for found in objects.values()),
                fetched=self._fetched,
                fetched_bytes=self._fetched_bytes,
                removed=self._removed,
            )
        raise DataError(f"{self._url} changes while it is read ({changed}). Try again when it is no longer written to.")

    def _list(self) -> dict[str, _Object]:
        """All files below the URL by their paths in the folder."""
        self._files.invalidate_cache()
        listed: Mapping[str, dict[str, Any]] = self._files.find(self._root, detail=True)
        if self._root in listed:
            raise DataError(f"{self._url} is a file: give the folder with one subfolder of images per class.")
        start = f"{self._root}/"
        objects = {
            name.removeprefix(start): _Object(name, int(info["size"]), _version(info))
            for name, info in listed.items()
            # Web consoles represent an empty folder by an object whose name ends in "/".
            if name.startswith(start) and info["type"] == "file" and not name.endswith("/")
        }
        if not objects:
            raise DataError(f"{self._url} contains no files. Correct the URL; the existing mirror is unchanged.")
        _check_paths(self._url, objects)
        return objects

    def _remove_others(self, objects: Mapping[str, _Object]) -> None:
        """Remove files that no longer exist at the URL, and links, which a mirror never creates."""
        for top, folders, files in os.walk(self._folder, topdown=False):
            here = Path(top)
            if here == self._state or self._state in here.parents:
                continue
            links = [name for name in folders if (here / name).is_symlink()]
            for name in (*files, *links):
                path = here / name
                relative = path.relative_to(self._folder).as_posix()
                if relative not in objects or path.is_symlink() or not path.is_file():
                    path.unlink()
                    self._copies.pop(relative, None)
                    self._removed += 1
            if here != self._folder and not any(here.iterdir()):
                here.rmdir()
        for path_of_copy in self._copies.keys() - objects.keys():
            del self._copies[path_of_copy]

    def _has(self, path: str, found: _Object) -> bool:
        copy = self._copies.get(path)
        if copy is None or (copy.size, copy.version) != (found.size, found.version):
            return False
        try:
            status = (self._folder / path).stat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (copy.size, copy.modified)

    def _fetch(self, wanted: Mapping[str, _Object], on_progress: Callable[[int, int], None]) -> None:
        """Download files in bundles; completed ones are kept after an error or interruption."""
        if not wanted:
            return
        self._check_room(sum(found.size for found in wanted.values()))
        partials = self._state / "partial"
        left = iter(wanted.items())
        written, done = time.monotonic(), 0
        on_progress(0, len(wanted))
        try:
            while bundle := dict(islice(left, self._together)):
                shutil.rmtree(partials, ignore_errors=True)
                partials.mkdir()
                self._fetch_together(bundle, partials)
                done += len(bundle)
                on_progress(done, len(wanted))
                if time.monotonic() - written > self._index_seconds:
                    self._write_index()
                    written = time.monotonic()
        finally:
            shutil.rmtree(partials, ignore_errors=True)
            self._write_index()

    def _fetch_together(self, bundle: Mapping[str, _Object], partials: Path) -> None:
        files = [partials / str(number) for number in range(len(bundle))]
        self._files.get([found.name for found in bundle.values()], [str(file) for file in files])
        for file, (path, found) in zip(files, bundle.items(), strict=True):
            status = file.stat()
            if status.st_size != found.size:
                raise _Changed(f"{printable(path)} has {status.st_size} bytes, not {found.size}")
            target = self._folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
            self._copies[path] = _Copy(found.size, found.version, status.st_mtime_ns)
            self._fetched += 1
            self._fetched_bytes += found.size

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if needed + SPARE_BYTES > free:
            raise DataError(
                _no_room(self._url, self._folder, f"{needed / 1e9:.1f} GB", f"{free / 1e9:.1f} GB are free")
            )

    def _write_index(self) -> None:
        if self._fetched and hasattr(os, "sync"):
            os.sync()  # after a power cut, a renamed file may be empty, and must not be in the index
        copies = {path: [copy.size, copy.version, copy.modified] for path, copy in self._copies.items()}
        write_atomically(self._state / "index.json", json.dumps({"url": self._url, "files": copies}).encode())


def _mark(folder: Path) -> None:
    """Mark the folder as a mirror, if it is new or empty.

    Raises:
        DataError: if it is neither empty nor a mirror: its content would be removed.
    """
    state = folder / MIRROR_STATE
    # List only once: another process could create its mark between two listings.
    try:
        names = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        names = set()
    except NotADirectoryError:
        names = {folder.name}
    if (names and MIRROR_STATE not in names) or state.is_symlink() or state.is_file():
        raise DataError(f"{folder} is not a mirror, and its content would be lost. Set data.path to an empty folder.")
    state.mkdir(parents=True, exist_ok=True)


def _read_index(path: Path, url: str) -> dict[str, _Copy]:
    """The downloaded files; empty if the index is missing or damaged, so that all are downloaded again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = content["url"]
        copies = {
            name: _Copy(int(size), str(version), int(at)) for name, (size, version, at) in content["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    if known != url:
        raise DataError(f"{path.parents[1]} is the mirror of {known}, not of {url}. Set data.path to another folder.")
    return copies


def _version(info: Mapping[str, Any]) -> str:
    """A value that changes whenever the file changes."""
    for key in (*_VERSIONS, *_TIMES):
        if info.get(key) is not None:
            return f"{key}={info[key]}"
    return hashlib.sha256(json.dumps(dict(info), sort_keys=True, default=str).encode()).hexdigest()


def _check_paths(url: str, objects: Mapping[str, _Object]) -> None:
    """Refuse keys that are not valid paths below a folder, instead of skipping them silently."""
    bad = [path for path in objects if not _is_path(path)]
    if bad:
        raise DataError(
            f"{url} has {counted(len(bad), 'key')} that cannot be a file below a folder:\n{listed(bad)}\nA key must "
            "be a relative path with '/', without '..', '\\' or empty parts. Rename or remove them."
        )
    both = sorted({parent for path in objects for parent in _parents(path) if parent in objects})
    if both:
        raise DataError(f"{url} has files that are also folders:\n{listed(both)}\nRename or remove them.")


def _is_path(path: str) -> bool:
    parts = path.split("/")
    return (
        all(part not in {"", ".", ".."} and len(os.fsencode(part)) <= _LONGEST_NAME for part in parts)
        and "\\" not in path
        and "\0" not in path
        and not PureWindowsPath(path).drive
        and parts[0] != MIRROR_STATE
    )


def _parents(path: str) -> Iterator[str]:
    for index, character in enumerate(path):
        if character == "/":
            yield path[:index]


@contextmanager
def _failures_named(url: str, folder: Path) -> Iterator[None]:
    """Turn any exception of a storage's library into a :class:`DataError` of one sentence."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DataError(_no_room(url, folder, "more", "the disk is full")) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        advice = _advice(error)
        raise DataError(f"{url} cannot be mirrored to {folder}: {reason.rstrip('.')}. {advice}") from error


def _advice(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "Correct the URL."
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return (
            "Set credentials with list and read access, for s3:// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
            "AWS_PROFILE."
        )
    return "Check the URL and the network, and AWS_ENDPOINT_URL for s3:// outside Amazon, and try again."


def _no_room(url: str, folder: Path, needed: str, why: str) -> str:
    return f"{url} needs {needed} in {folder}, but {why}. Free some, or set THAWLINE_HOME to a folder on a larger disk."
