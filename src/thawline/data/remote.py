"""A folder on object storage, mirrored to the local disk before it is read.

fsspec opens what the URL names (``s3://``, ``gs://``, ``az://``, ``sftp://``, …). The mirror keeps an index of what it
has fetched in a hidden folder, which is also its mark: in a folder without it nothing is ever written or removed. Every
file is fetched under another name and renamed when it is whole, so that a mirror whose process was killed is resumed
with.
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
"""Files that are fetched at a time; fsspec has many of them under way at once."""
_INDEX_SECONDS = 30.0
"""How often the index is written: what a killed process has to fetch again at most."""
_PASSES = 3
"""How often the listing is read again because a file changed while it was fetched."""
_LONGEST_NAME = 255

# What storages call the version of an object in a listing, the most telling first. The time is the last resort.
_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "content_md5", "checksum")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")


@dataclass(frozen=True)
class MirrorSummary:
    """What a mirror holds, and what it took to get there."""

    url: str
    folder: Path
    files: int
    bytes: int
    fetched: int
    """Files that were new or changed."""
    fetched_bytes: int
    removed: int
    """Files that the URL no longer holds."""

    def __str__(self) -> str:
        done = []
        if self.fetched:
            done.append(f"{self.fetched} fetched ({self.fetched_bytes / 1e6:.1f} MB)")
        if self.removed:
            done.append(f"{self.removed} removed")
        return f"{self.url}: {self.files} files, {', '.join(done) or 'nothing changed'}"


def data_location(text: str, home: Path) -> dict[str, str]:
    """What a person gave as the data, a folder or a URL, as the keys of :class:`~thawline.config.DataConfig`.

    A URL is mirrored to ``home/cache/mirrors/<digest of the URL>/<its last part>``: the folder's own name is what model
    and study are named after.

    Raises:
        DataError: if the URL is that of a table: only folders are mirrored.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return {"path": text}
    url = f"{scheme}://{rest.rstrip('/')}"
    if url.lower().endswith((*TABLE_SUFFIXES, *ARCHIVE_SUFFIXES)):
        what = "a table" if url.lower().endswith(TABLE_SUFFIXES) else "an archive"
        raise DataError(f"{url} is {what}, and only folders of images are fetched: download it, and give the file.")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", url.rsplit("/", 1)[-1]).strip("-._")[:60] or "images"
    digest = hashlib.sha256(url.encode()).hexdigest()[:16]
    return {"path": str(home / "cache" / "mirrors" / digest / name), "url": url}


def check_url(url: str) -> None:
    """Refuse a URL that nothing installed can open; nothing is connected to.

    Raises:
        DataError: naming the package to install.
    """
    import fsspec

    scheme = url.partition("://")[0]
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        package = "pip install 'thawline[s3]'" if scheme in {"s3", "s3a"} else str(error)
        raise DataError(f"{url} needs a package that is not installed: {package}") from None
    except ValueError:
        raise DataError(f"{url} cannot be opened: fsspec knows no storage {scheme!r}, such as s3, gs or az.") from None


def mirror(
    url: str,
    folder: Path,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    together: int = _TOGETHER,
    index_seconds: float = _INDEX_SECONDS,
) -> MirrorSummary:
    """Make a local folder hold what a URL holds: fetch what is new or changed, remove what is gone there.

    A file counts as unchanged if its size and version (the storage's ETag, checksum or time) are those that were
    fetched, and nobody has touched the local copy. Of several processes one works and the others wait for it. Files may
    change under a reader, as those of any folder.

    Args:
        url: a folder as fsspec names it, see :class:`~thawline.config.DataConfig`. Credentials come from the
            environment, as the storage's own tools take them.
        folder: made where missing; otherwise it must be empty or a mirror of this URL.
        on_progress: called with (files fetched, files to fetch).
        together: files that are fetched at a time; an interruption costs no more.
        index_seconds: after which what was fetched is noted, so that a killed process costs no more.

    Raises:
        DataError: if the URL cannot be read or holds nothing, if a key cannot be the path of a file below the folder,
            or if the folder is no mirror of this URL or has no room.
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
    """A file on the storage, as its listing tells."""

    name: str
    """As the storage calls it."""
    size: int
    version: str


@dataclass(frozen=True)
class _Copy:
    """A file that was fetched."""

    size: int
    version: str
    modified: int
    """Of the local file, in nanoseconds: tells whether somebody has written to it."""


class _Changed(Exception):
    """A file is not what the listing said."""


class _Mirror:
    """A mirror that this process holds the lock of."""

    def __init__(self, url: str, folder: Path, together: int, index_seconds: float) -> None:
        import fsspec

        self._url, self._folder = url, folder
        self._together, self._index_seconds = together, index_seconds
        self._state = folder / MIRROR_STATE
        # A connection of its own: a kept one would keep the credentials and the address it was made with.
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
        raise DataError(f"{self._url} changes while it is read ({changed}). Try again when nobody writes to it.")

    def _list(self) -> dict[str, _Object]:
        """All files below the URL by their paths in the folder."""
        self._files.invalidate_cache()
        listed: Mapping[str, dict[str, Any]] = self._files.find(self._root, detail=True)
        if self._root in listed:
            raise DataError(f"{self._url} is a file: give the folder that holds one subfolder of images per class.")
        start = f"{self._root}/"
        objects = {
            name.removeprefix(start): _Object(name, int(info["size"]), _version(info))
            for name, info in listed.items()
            # Consoles mark an empty folder by an object whose name ends in "/".
            if name.startswith(start) and info["type"] == "file" and not name.endswith("/")
        }
        if not objects:
            raise DataError(f"{self._url} holds no files. Correct the URL; what was mirrored before is left as it is.")
        _check_paths(self._url, objects)
        return objects

    def _remove_others(self, objects: Mapping[str, _Object]) -> None:
        """Remove what the URL does not hold: files that are gone there, and links, which are never ours."""
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
        """Fetch files, a bundle at a time; what was fetched when it fails or is interrupted is kept."""
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
            os.sync()  # after a power cut, a renamed file may be empty: the index must not say that it is there
        copies = {path: [copy.size, copy.version, copy.modified] for path, copy in self._copies.items()}
        write_atomically(self._state / "index.json", json.dumps({"url": self._url, "files": copies}).encode())


def _mark(folder: Path) -> None:
    """Make the folder a mirror, if it is new or empty.

    Raises:
        DataError: if it holds something and is no mirror: that would be removed.
    """
    state = folder / MIRROR_STATE
    # One look at what is there: asked twice, the mark of another process could come between the answers.
    try:
        names = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        names = set()
    except NotADirectoryError:
        names = {folder.name}
    if (names and MIRROR_STATE not in names) or state.is_symlink() or state.is_file():
        raise DataError(f"{folder} is no mirror, and what it holds would be lost. Give data.path an empty folder.")
    state.mkdir(parents=True, exist_ok=True)


def _read_index(path: Path, url: str) -> dict[str, _Copy]:
    """What was fetched; nothing if the index is missing or damaged, and all is fetched again then."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = content["url"]
        copies = {
            name: _Copy(int(size), str(version), int(at)) for name, (size, version, at) in content["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    if known != url:
        raise DataError(f"{path.parents[1]} is the mirror of {known}, not of {url}. Give data.path another folder.")
    return copies


def _version(info: Mapping[str, Any]) -> str:
    """What changes whenever the file does."""
    for key in (*_VERSIONS, *_TIMES):
        if info.get(key) is not None:
            return f"{key}={info[key]}"
    return hashlib.sha256(json.dumps(dict(info), sort_keys=True, default=str).encode()).hexdigest()


def _check_paths(url: str, objects: Mapping[str, _Object]) -> None:
    """Refuse keys that are no paths of files below a folder; left out silently, nobody would miss them."""
    bad = [path for path in objects if not _is_path(path)]
    if bad:
        raise DataError(
            f"{url} holds {counted(len(bad), 'key')} that cannot be a file below a folder:\n{listed(bad)}\nA key must "
            "be a relative path with '/', without '..', '\\' or empty parts. Rename or remove them."
        )
    both = sorted({parent for path in objects for parent in _parents(path) if parent in objects})
    if both:
        raise DataError(f"{url} holds files that are folders as well:\n{listed(both)}\nRename or remove them.")


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
    """Whatever a storage's library raises as a :class:`DataError` of one sentence."""
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
            "Set credentials that may list and read it, for s3:// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
            "AWS_PROFILE."
        )
    return "Check the URL and the network, for s3:// other than Amazon's AWS_ENDPOINT_URL too, and try again."


def _no_room(url: str, folder: Path, needed: str, why: str) -> str:
    return f"{url} needs {needed} in {folder}, but {why}. Free some, or set THAWLINE_HOME to a folder on a larger disk."
