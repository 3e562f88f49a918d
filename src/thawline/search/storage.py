"""Where studies are kept, and who works on what.

By default that is a journal file in Thawline's home, and a lock on a file says that a study is being run: the system
lets go of it when the process dies, however it dies. A database by URL may be shared by searches on several machines;
there every trial has a lease, which its search renews while it lives, and which another takes over when it is dead.
"""

import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import psutil
import sqlalchemy as sa
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from thawline.config import with_driver, without_password
from thawline.exceptions import StudyError

__all__ = ["PASSING", "Claims", "LeaseLost", "Storage", "open_storage", "patiently", "storage_of", "storage_url"]

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")

LEASE_SECONDS = 60.0
"""A search that did not renew its leases for so long, by the database's clock, is taken for dead."""
_PATIENCE_SECONDS = 600.0
_LONGEST_DELAY = 10.0


class LeaseLost(StudyError):
    """Another search took a trial over, since this one was out of the world for longer than a lease."""


class Claims(Protocol):
    """Who works on what in one study. Names are ``trial-7``, ``draw`` and the like.

    Thread safety: any thread may call any method.
    """

    def take(self, name: str) -> bool:
        """Take a name that nobody has, or whose owner is dead; False if a live one has it."""

    def release(self, name: str) -> None:
        """Let others have it."""

    def lost(self, name: str) -> bool:
        """Whether another took a name that this one had, as it may after hours of standby."""

    def taken_by_others(self, name: str) -> bool:
        """Whether a live one other than this has it."""

    def held(self, on_beat: Callable[[], None]) -> AbstractContextManager[None]:
        """Live for the time of the block: leases are renewed and ``on_beat`` is called every quarter of a lease.

        Raises:
            StudyError: if the study is another's.
        """

    def alone(self, name: str) -> AbstractContextManager[None]:
        """Wait until nobody else is in a block of this name."""


class Storage:
    """An opened storage of studies."""

    def __init__(self, optuna_storage: BaseStorage, home: Path) -> None:
        self.optuna = optuna_storage
        self._home = home

    def claims(self, study: str) -> Claims:
        """Who works on what in the study of that name."""
        if isinstance(self.optuna, JournalStorage):
            return _WholeStudy(self._home / "studies" / study, study)
        key = (str(self._engine.url), study)
        with _one_per_process_lock:
            if key not in _one_per_process:
                _one_per_process[key] = _Leases(self._engine, study)
            return _one_per_process[key]

    @property
    def _engine(self) -> sa.Engine:
        backend = getattr(self.optuna, "_backend", self.optuna)  # optuna.create_study wraps it in a cache
        assert isinstance(backend, RDBStorage)  # noqa: S101  narrows the type
        return backend.engine


def storage_url(configured: str | None) -> str | None:
    """The configured URL, else ``THAWLINE_STORAGE``, else ``None`` for the journal in Thawline's home.

    Raises:
        StudyError: if it is no URL of a database.
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
    """The storage, made if there is none; see :func:`open_storage`."""
    storage = open_storage(home, url)
    assert storage is not None  # noqa: S101  it was made if there was none
    return storage


def open_storage(home: Path, url: str | None, *, create: bool = True) -> Storage | None:
    """Open the storage, and make it unless ``create`` is False; ``None`` if there is none then.

    Raises:
        StudyError: if the database cannot be opened, or its driver is not installed.
    """
    url = storage_url(url)
    if url is None:
        file = home / "optuna.journal"
        if not create and not file.exists():
            return None
        home.mkdir(parents=True, exist_ok=True)
        return Storage(JournalStorage(_Journal(str(file), _JournalLock(file))), home)
    failure: Exception | None = None
    for _ in range(2):  # two searches that begin at the same moment make the same tables: the second finds them then
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
        "THAWLINE_STORAGE; without them the study is kept in Thawline's home."
    ) from failure


def _database_of_process(url: str) -> RDBStorage:
    """One for all threads of this process: each has a pool of connections of its own, of which a server has few."""
    with _one_per_process_lock:
        if url not in _databases:
            _databases[url] = _database(url)
        return _databases[url]


def _database(url: str) -> RDBStorage:
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": 60}
    storage = RDBStorage(url, engine_kwargs=options)
    _leases.create(storage.engine, checkfirst=True)
    return storage


def _named(url: str) -> str:
    return sa.make_url(url).render_as_string(hide_password=True)


def patiently(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call, and try again while the storage is locked, out of reach or its disk is full, for ten minutes.

    What is called must give the same whether it was done once or twice: an answer may have been lost on its way.

    Raises:
        StudyError: if it still fails then.
    """
    deadline, delay = time.monotonic() + _PATIENCE_SECONDS, 0.2
    while True:
        try:
            return call(*args, **kwargs)
        except PASSING as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            if time.monotonic() >= deadline:
                raise StudyError(
                    f"The study cannot be written: {reason}. Nothing that was trained is lost: the same command goes "
                    "on when that is mended."
                ) from error
            _log.warning("the study cannot be written: %s; trying again", reason)
        time.sleep(delay)
        delay = min(2 * delay, _LONGEST_DELAY)


PASSING = (StorageInternalError, sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError, OSError)
"""What may pass by itself."""


# ------------------------------------------------------------------------------------------------- the journal in home


class _JournalLock(JournalFileOpenLock):
    """A lock that the system lets go of when its process dies. Optuna's own stays for 30 s, and then is stolen."""

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._lock = FileLock(file.with_suffix(".journal.lock"), thread_local=False)
        self._threads = threading.Lock()

    def acquire(self) -> bool:
        self._threads.acquire()
        try:
            self._lock.acquire()
        except BaseException:
            self._threads.release()
            raise
        return True

    def release(self) -> None:
        self._lock.release()
        self._threads.release()


class _Journal(JournalFileBackend):
    """Optuna's journal, which also survives a line that was written half, as on a full disk or in a power cut.

    Optuna's appends behind such a line, after which nobody can read the file any more.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append whole lines or nothing."""
        self._cut_torn_line()
        try:
            super().append_logs(logs)
        except OSError:
            with suppress(OSError):
                self._cut_torn_line()
            raise

    def _cut_torn_line(self) -> None:
        self._lock.acquire()
        try:
            with Path(self._file_path).open("rb+") as file:
                end = file.seek(0, os.SEEK_END)
                whole = end
                while whole > 0:
                    file.seek(max(0, whole - 4096))
                    block = file.read(whole - file.tell())
                    newline = block.rfind(b"\n")
                    if newline >= 0:
                        whole = whole - len(block) + newline + 1
                        break
                    whole -= len(block)
                if whole < end:
                    file.truncate(whole)
        finally:
            self._lock.release()


class _WholeStudy:
    """One process has the whole study: whatever is RUNNING in it is left over from one that died."""

    def __init__(self, folder: Path, study: str) -> None:
        self._folder, self._study = folder, study

    def take(self, name: str) -> bool:
        return True

    def release(self, name: str) -> None:
        pass

    def lost(self, name: str) -> bool:
        return False

    def taken_by_others(self, name: str) -> bool:
        return False

    @contextmanager
    def held(self, on_beat: Callable[[], None]) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / "study.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise StudyError(
                f"The study {self._study!r} is being run by another process. "
                "Wait for it, stop it, or give this one another --study name."
            ) from None
        try:
            with _beating(on_beat):
                yield
        finally:
            lock.release()

    def alone(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()


# ----------------------------------------------------------------------------------------------- leases in a database

_leases = sa.Table(
    "thawline_leases",
    sa.MetaData(),
    sa.Column("study", sa.String(100), primary_key=True),
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("owner", sa.String(200), nullable=False),
    sa.Column("beats", sa.BigInteger, nullable=False),
    sa.Column("renewed", sa.DateTime(timezone=True), nullable=False),
)
"""``beats`` counts renewals, for a compare-and-set that is exact on every database; ``renewed`` is the database's time,
so that the clocks of the machines do not matter."""


_databases: dict[str, RDBStorage] = {}
_one_per_process: dict[tuple[str, str], "_Leases"] = {}
_one_per_process_lock = threading.Lock()
"""All threads of a search have the same leases: one that conducts a trial must hear that it was lost."""


class _Leases:
    """A lease of each name, in the study's own database."""

    def __init__(self, engine: sa.Engine, study: str) -> None:
        self._engine, self._study = engine, study
        self._owner = _own_name()
        self._mine: set[str] = set()
        self._lost: set[str] = set()
        self._lock = threading.Lock()

    def take(self, name: str) -> bool:
        with self._engine.begin() as connection:
            row = self._row(connection, name)
            taken = self._insert(connection, name) if row is None else self._take_over(connection, name, row)
        if taken:
            with self._lock:
                self._mine.add(name)
                self._lost.discard(name)
        return taken

    def release(self, name: str) -> None:
        with self._lock:
            self._mine.discard(name)
        with self._engine.begin() as connection:
            connection.execute(sa.delete(_leases).where(*self._of(name), _leases.c.owner == self._owner))

    def lost(self, name: str) -> bool:
        with self._lock:
            return name in self._lost

    def taken_by_others(self, name: str) -> bool:
        with self._engine.connect() as connection:
            row = self._row(connection, name)
        return row is not None and row.owner != self._owner and not _is_dead(row)

    @contextmanager
    def held(self, on_beat: Callable[[], None]) -> Iterator[None]:
        def beat() -> None:
            self.renew()
            on_beat()

        try:
            with _beating(beat):
                yield
        finally:
            # What this one has not finished, others may go on with at once. One that is killed cannot say so.
            with suppress(*PASSING):
                for name in tuple(self._mine):
                    self.release(name)

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        while not patiently(self.take, name):  # one that dies in there is noticed by its lease
            time.sleep(0.2)
        try:
            yield
        finally:
            self.release(name)

    def renew(self) -> None:
        """Say that this one lives; notice what was taken over meanwhile."""
        with self._lock:
            mine = sorted(self._mine)
        for name in mine:
            with self._engine.begin() as connection:
                changed = connection.execute(
                    sa.update(_leases)
                    .where(*self._of(name), _leases.c.owner == self._owner)
                    .values(beats=_leases.c.beats + 1, renewed=sa.func.now())
                ).rowcount
            with self._lock:
                if changed == 0 and name in self._mine:
                    self._mine.discard(name)
                    self._lost.add(name)

    def _of(self, name: str) -> Iterable[sa.ColumnElement[bool]]:
        return (_leases.c.study == self._study, _leases.c.name == name)

    def _row(self, connection: sa.Connection, name: str) -> Any:
        return connection.execute(sa.select(_leases, sa.func.now().label("now")).where(*self._of(name))).one_or_none()

    def _insert(self, connection: sa.Connection, name: str) -> bool:
        try:
            with connection.begin_nested():
                connection.execute(
                    sa.insert(_leases).values(
                        study=self._study, name=name, owner=self._owner, beats=0, renewed=sa.func.now()
                    )
                )
        except sa.exc.IntegrityError:
            return False
        return True

    def _take_over(self, connection: sa.Connection, name: str, row: Any) -> bool:
        if row.owner != self._owner and not _is_dead(row):
            return False
        return bool(
            connection.execute(
                sa.update(_leases)
                .where(*self._of(name), _leases.c.owner == row.owner, _leases.c.beats == row.beats)
                .values(owner=self._owner, beats=row.beats + 1, renewed=sa.func.now())
            ).rowcount
        )


def _is_dead(row: Any) -> bool:
    """Whether the owner of a lease is known to be gone, or has not renewed it for too long."""
    age = (row.now.replace(tzinfo=None) - row.renewed.replace(tzinfo=None)).total_seconds()
    return age > LEASE_SECONDS or _is_gone(row.owner)


def _own_name() -> str:
    """Host, process and a random part: enough to see on the same host that a process is gone, without waiting."""
    process = psutil.Process()
    return "|".join([_host(), str(process.pid), repr(process.create_time()), uuid.uuid4().hex[:8]])


def _is_gone(owner: str) -> bool:
    host, pid, created, _ = owner.rsplit("|", 3)
    if host != _host():
        return False
    try:
        return bool(repr(psutil.Process(int(pid)).create_time()) != created)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def _host() -> str:
    """This machine, and where processes are numbered apart, as in a container, this part of it."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")  # noqa: PTH115  not a path but pid:[4026531836]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        numbering = boot = ""
    return f"{platform.node()}|{boot}|{numbering}"


@contextmanager
def _beating(beat: Callable[[], None]) -> Iterator[None]:
    """Call ``beat`` every quarter of a lease from a thread, for the time of the block."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(LEASE_SECONDS / 4):
            try:
                beat()
            except PASSING:
                _log.debug("no beat", exc_info=True)  # as long as nobody can write, nobody can take over either

    thread = threading.Thread(target=run, name="thawline-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
