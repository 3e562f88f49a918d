"""Shared parts of the surveys of removable items: the home, the studies, MLflow, and removal."""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from thawline.cleaning._store import Mlflow
from thawline.cleaning._tree import children, files_below, folders, is_locked, size
from thawline.exceptions import ConfigError

if TYPE_CHECKING:
    from thawline.search.records import TrialRecord

__all__ = ["Act", "Failure", "Item", "Kind", "Look", "Studies", "Used"]

Kind = Literal[
    "checkpoints",
    "studies",
    "tensorboard",
    "decoded",
    "tokens",
    "activations",
    "mirrors",
    "unpacked",
    "temporary",
    "runs",
    "models",
]

_STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Failure:
    """Something that could not be removed."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


Act = Callable[[], list[Failure]]
"""Removes something; returns what could not be removed."""


@dataclass(frozen=True)
class Item:
    """An item that can be removed as a whole."""

    kind: Kind
    name: str
    """Path relative to the home, or description in MLflow."""
    parts: tuple[str, ...]
    """Paths of all its files relative to the home, or all its ids in MLflow."""
    bytes: int | None
    """``None`` if only the storage knows."""
    why: str
    remove: Act = field(repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return {"kind": self.kind, "name": self.name, "bytes": self.bytes, "why": self.why, "parts": list(self.parts)}


class Used(Exception):
    """An item is in use, or was used since the survey."""


class Studies:
    """The studies according to their storage."""

    def __init__(self, home: Path, url: str | None) -> None:
        from thawline.search.records import study_names
        from thawline.search.storage import storage_url

        self._home, self._given = home, url
        self.url = storage_url(url)
        """The surveyed database; ``None`` for the journal in the home."""
        self.names = frozenset(study_names(home, url))
        self._records: dict[str, list[TrialRecord]] = {}
        self.busy = frozenset(self._busy())
        """Studies in use by a live process."""

    def records(self, name: str) -> "list[TrialRecord]":
        """Trials of a study that exists, best first."""
        from thawline.search.records import load_records

        if name not in self._records:
            self._records[name] = []
            with suppress(KeyError):  # just created, and still empty
                self._records[name] = load_records(self._home, name, self._given)[1]
        return self._records[name]

    @property
    def complete(self) -> bool:
        """Whether the names are complete, as far as is known: no other storage has studies of this home."""
        journal = (self._home / "optuna.journal").exists()
        return journal if self.url is None else not journal

    def _busy(self) -> Iterator[str]:
        from thawline.search.storage import open_storage

        for folder in folders(self._home / "studies"):
            if is_locked(folder / "study.lock"):
                yield folder.name
        storage = open_storage(self._home, self._given) if self.url is not None else None
        if storage is not None:  # in a database, searches on several machines hold a lease for each of their trials
            for name in self.names:
                claims = storage.claims(name)
                if any(claims.taken_by_others(f"trial-{r.number}") for r in self.records(name) if r.state == "running"):
                    yield name


class Look:
    """A survey of a home."""

    def __init__(self, home: Path, cutoff: float, storage: str | None, tracking_uri: str | None) -> None:
        self.home = home
        self.cutoff = cutoff
        """Seconds since 1970; items last used before can be removed."""
        self.studies = Studies(home, storage)
        self.notes = [
            f"The study {name} is running: it is kept, and so are the caches." for name in sorted(self.studies.busy)
        ]
        """Notes for the user."""
        self._tracking_uri = tracking_uri

    def note(self, sentence: str) -> None:
        """Add a note, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def is_gone(self, study: str) -> bool:
        """Whether a study no longer exists."""
        if study in self.studies.names or study in self.studies.busy or not _STUDY_NAME.fullmatch(study):
            return False
        if not self.studies.complete:
            where = "THAWLINE_STORAGE or --storage names a database, but the home also contains studies"
            if self.studies.url is None:
                where = "the home contains none, and neither THAWLINE_STORAGE nor --storage names a database"
            self.note(f"It is not clear where studies are stored ({where}): files of unknown studies are kept.")
            return False
        kept = self.mlflow.storages.get(study) if self.mlflow is not None else None
        if kept is not None:
            self.note(f"Files of the study {study} are kept: its storage is {kept}, which --storage does not name.")
        return kept is None

    @cached_property
    def mlflow(self) -> Mlflow | None:
        """MLflow's store; ``None`` if no search has made one."""
        return Mlflow.open(self.home, self._tracking_uri, self.studies.url)

    @cached_property
    def unsent(self) -> frozenset[str]:
        """Files that the next search sends to MLflow, relative to the home.

        Raises:
            ConfigError: if that cannot be determined.
        """
        root, found = self.home.resolve(), []
        for kept in sorted((self.home / "unsent").glob("*.jsonl")):
            try:
                records = [json.loads(line)["record"] for line in kept.read_text(encoding="utf-8").splitlines()]
                paths = [Path(record["path"]).resolve() for record in records if "path" in record]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"{kept} lists records for MLflow, but cannot be read ({error}), so nothing can be removed safely. "
                    "Repair it, or move it out of the home."
                ) from None
            found += [file for path in paths for file in (files_below(path) if path.is_dir() else [path])]
        return frozenset(file.relative_to(root).as_posix() for file in found if file.is_relative_to(root))

    def relative(self, path: Path) -> str:
        """The path relative to the home."""
        return path.relative_to(self.home).as_posix()

    def since(self, used: float) -> str:
        """``last used 45 days ago``."""
        days = (time.time() - used) / 86400
        return f"last used {days:.0f} days ago" if days >= 2 else f"last used {24 * days:.0f} h ago"

    def item(self, kind: Kind, path: Path, files: Sequence[Path], why: str, act: Act) -> Item:
        """An item of files in the home."""
        return Item(kind, self.relative(path), tuple(map(self.relative, files)), size(files), why, act)

    def unless_used(self, lock: Path, last_used: Callable[[], float], act: Act) -> Act:
        """Act under a lock, if nothing was used since the survey; :class:`Used` is raised otherwise."""
        return partial(self._unless_used, lock, last_used, act)

    def _unless_used(self, lock: Path, last_used: Callable[[], float], act: Act) -> list[Failure]:
        with ExitStack() as stack:
            if lock.parent.is_dir():
                try:
                    stack.enter_context(FileLock(lock, timeout=0))
                except Timeout:
                    raise Used("it is in use") from None
            if last_used() >= self.cutoff:
                raise Used("it was used a moment ago")
            return act()

    def remove_files(self, files: Iterable[Path]) -> list[Failure]:
        """Unlink files; for a link, the link and not its target."""
        failures = []
        for file in files:
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                failures.append(Failure(self.relative(file), error.strerror or str(error)))
        return failures

    def remove_tree(self, folder: Path, *, last: str | None = None) -> list[Failure]:
        """Remove a folder; the child ``last`` is removed after all others, and only if they could be removed."""
        failures: list[Failure] = []
        for child in sorted(children(folder), key=lambda child: child.name == last):
            if failures and child.name == last:
                return failures
            is_folder = child.is_dir() and not child.is_symlink()
            failures += self.remove_tree(child) if is_folder else self.remove_files([child])
        if not failures:
            try:
                folder.rmdir()
            except OSError as error:
                failures.append(Failure(self.relative(folder), error.strerror or str(error)))
        return failures
