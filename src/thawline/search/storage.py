"""Where studies are stored, and which search works on what.

By default, studies are stored in a journal file in Thawline's home, and a file lock marks a study as running: the
system releases it whenever the process dies. A database given by URL may be shared by searches on several machines.
There, every trial has a lease, which its search renews while it is alive, and which another search takes over after its
death.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage

from thawline.config import with_driver, without_password
from thawline.exceptions import StudyError
from thawline.search.journal import Journal, JournalLock, WholeStudy
from thawline.search.leases import LEASES, Leases
from thawline.search.patience import PASSING, patiently

__all__ = [
    "PASSING",
    "Claims",
    "LeaseLost",
    "Storage",
    "lease_of",
    "open_storage",
    "patiently",
    "storage_of",
    "storage_url",
]

_log = logging.getLogger(__name__)


_databases: dict[str, RDBStorage] = {}
_one_per_process: dict[tuple[str, str], Leases] = {}
_one_per_process_lock = threading.Lock()
"""All threads of a search share its leases: a thread that runs a trial must notice that the lease was lost."""


def lease_of(number: int) -> str:
    """Name of a trial's claim."""
    return f"trial-{number}"


class LeaseLost(StudyError):
    """Another search took over a trial, because this one did not renew its lease in time."""


class Claims(Protocol):
    """Claims of one study: which search works on what. Names are ``trial-7``, ``draw`` and so on.

    Thread safety: any thread may call any method.
    """

    def take(self, name: str) -> bool:
        """Claim a name that is free or whose owner is dead; False if a live search has it."""

    def release(self, name: str) -> None:
        """Release it."""

    def lost(self, name: str) -> bool:
        """Whether another search took over a name that this one had claimed, for example after hours of standby."""

    def taken_by_others(self, name: str) -> bool:
        """Whether another live search has claimed it."""

    def held(self, on_beat: Callable[[], None]) -> AbstractContextManager[None]:
        """Within the block, renew leases and call ``on_beat`` every quarter of a lease.

        Raises:
            StudyError: if another process has claimed the study.
        """

    def alone(self, name: str) -> AbstractContextManager[None]:
        """Wait until no other search is in a block of this name."""


class Storage:
    """An open storage of studies."""

    def __init__(self, optuna_storage: BaseStorage, home: Path) -> None:
        self.optuna = optuna_storage
        self._home = home

    def claims(self, study: str) -> Claims:
        """The claims of the study of that name."""
        if isinstance(self.optuna, JournalStorage):
            return WholeStudy(self._home / "studies" / study, study)
        key = (str(self._engine.url), study)
        with _one_per_process_lock:
            if key not in _one_per_process:
                _one_per_process[key] = Leases(self._engine, study)
            return _one_per_process[key]

    @property
    def _engine(self) -> sa.Engine:
        backend = getattr(self.optuna, "_backend", self.optuna)  # optuna.create_study wraps it in a cache
        assert isinstance(backend, RDBStorage)  # noqa: S101  narrows the type
        return backend.engine


def storage_url(configured: str | None) -> str | None:
    """The configured URL, or ``THAWLINE_STORAGE``, or ``None`` for the journal in Thawline's home.

    Raises:
        StudyError: if it is not the URL of a database.
    """
    url = configured or os.environ.get("THAWLINE_STORAGE") or None
    if url is None:
        return None
    try:
        parsed = sa.make_url(with_driver(url))
    except sa.exc.ArgumentError:
        raise StudyError(
            f"study.storage (or THAWLINE_STORAGE) must be the URL of a database such as "
            f"postgresql://user@host/optuna, but got {without_password(url)!r}."
        ) from None
    return parsed.render_as_string(hide_password=False)


def storage_of(home: Path, url: str | None) -> Storage:
    """The storage, created if necessary; see :func:`open_storage`."""
    storage = open_storage(home, url)
    assert storage is not None  # noqa: S101  it was made if there was none
    return storage


def open_storage(home: Path, url: str | None, *, create: bool = True) -> Storage | None:
    """Open the storage, creating it unless ``create`` is False; ``None`` if it then does not exist.

    Raises:
        StudyError: if the database cannot be opened, or its driver is not installed.
    """
    url = storage_url(url)
    if url is None:
        file = home / "optuna.journal"
        if not create and not file.exists():
            return None
        home.mkdir(parents=True, exist_ok=True)
        return Storage(JournalStorage(Journal(str(file), JournalLock(file))), home)
    failure: Exception | None = None
    for _ in range(2):  # two searches that start at once create the same tables: the second finds them on retry
        try:
            return Storage(_database_of_process(url), home)
        except ImportError:
            raise StudyError(
                f"The driver of {_named(url)} is not installed. For PostgreSQL: pip install 'thawline[postgres]'."
            ) from None
        except (sa.exc.SQLAlchemyError, StorageInternalError) as error:
            failure = error
            time.sleep(0.5)
    reason = str((failure and failure.__cause__) or failure).strip().splitlines()[0]
    raise StudyError(
        f"The study's database {_named(url)} cannot be opened: {reason}. Start it, or correct study.storage or "
        "THAWLINE_STORAGE; without them the study is stored in Thawline's home."
    ) from failure


def _database_of_process(url: str) -> RDBStorage:
    """One storage for all threads of this process: each has its own connection pool, and servers limit connections."""
    with _one_per_process_lock:
        if url not in _databases:
            _databases[url] = _database(url)
        return _databases[url]


def _database(url: str) -> RDBStorage:
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": 60}
    storage = RDBStorage(url, engine_kwargs=options)
    LEASES.create(storage.engine, checkfirst=True)
    return storage


def _named(url: str) -> str:
    return sa.make_url(url).render_as_string(hide_password=True)
