"""Leases in a database: which search works on which trial."""

import logging
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from thawline.search.patience import PASSING, patiently

__all__ = ["LEASES", "LEASE_SECONDS", "Leases", "beating"]

_log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
"""A search that did not renew its leases for this long, by the database's clock, is considered dead."""


LEASES = sa.Table(
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


class Leases:
    """One lease per name, in the study's own database."""

    def __init__(self, engine: sa.Engine, study: str) -> None:
        self._engine, self._study = engine, study
        self._owner = _own_name()
        self._mine: set[str] = set()
        self._lost: set[str] = set()
        self._lock = threading.Lock()

    def take(self, name: str) -> bool:
        """See :class:`~thawline.search.storage.Claims`."""
        with self._engine.begin() as connection:
            row = self._row(connection, name)
            taken = self._insert(connection, name) if row is None else self._take_over(connection, name, row)
        if taken:
            with self._lock:
                self._mine.add(name)
                self._lost.discard(name)
        return taken

    def release(self, name: str) -> None:
        """See :class:`~thawline.search.storage.Claims`."""
        with self._lock:
            self._mine.discard(name)
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.delete(LEASES).where(*self._of(name), LEASES.c.owner == self._owner))
        except PASSING:  # it expires soon, as it is not renewed; and this search may take it again at once
            _log.debug("the lease %s was not released", name, exc_info=True)

    def lost(self, name: str) -> bool:
        """See :class:`~thawline.search.storage.Claims`."""
        with self._lock:
            return name in self._lost

    def taken_by_others(self, name: str) -> bool:
        """See :class:`~thawline.search.storage.Claims`."""
        with self._engine.connect() as connection:
            row = self._row(connection, name)
        return row is not None and row.owner != self._owner and not _is_dead(row)

    @contextmanager
    def held(self, on_beat: Callable[[], None]) -> Iterator[None]:
        """See :class:`~thawline.search.storage.Claims`."""

        def beat() -> None:
            self.renew()
            on_beat()

        try:
            with beating(beat):
                yield
        finally:
            # Others may resume unfinished trials at once; a search that is killed cannot release them.
            for name in tuple(self._mine):
                self.release(name)

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """See :class:`~thawline.search.storage.Claims`."""
        while not patiently(self.take, name):  # a holder that dies is noticed by its expired lease
            time.sleep(0.2)
        try:
            yield
        finally:
            self.release(name)

    def renew(self) -> None:
        """Renew the leases, and note which were taken over meanwhile."""
        with self._lock:
            mine = sorted(self._mine)
        for name in mine:
            with self._engine.begin() as connection:
                changed = connection.execute(
                    sa.update(LEASES)
                    .where(*self._of(name), LEASES.c.owner == self._owner)
                    .values(beats=LEASES.c.beats + 1, renewed=sa.func.now())
                ).rowcount
            with self._lock:
                if changed == 0 and name in self._mine:
                    self._mine.discard(name)
                    self._lost.add(name)

    def _of(self, name: str) -> Iterable[sa.ColumnElement[bool]]:
        return (LEASES.c.study == self._study, LEASES.c.name == name)

    def _row(self, connection: sa.Connection, name: str) -> Any:
        return connection.execute(sa.select(LEASES, sa.func.now().label("now")).where(*self._of(name))).one_or_none()

    def _insert(self, connection: sa.Connection, name: str) -> bool:
        try:
            with connection.begin_nested():
                connection.execute(
                    sa.insert(LEASES).values(
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
                sa.update(LEASES)
                .where(*self._of(name), LEASES.c.owner == row.owner, LEASES.c.beats == row.beats)
                .values(owner=self._owner, beats=row.beats + 1, renewed=sa.func.now())
            ).rowcount
        )


def _is_dead(row: Any) -> bool:
    """Whether the owner of a lease is known to be gone, or has let it expire."""
    age = (row.now.replace(tzinfo=None) - row.renewed.replace(tzinfo=None)).total_seconds()
    return age > LEASE_SECONDS or _is_gone(row.owner)


def _own_name() -> str:
    """Host, process and a random part: enough to detect a dead process on the same host without waiting."""
    process = psutil.Process()
    return "|".join([_host(), str(process.pid), _started(process), uuid.uuid4().hex[:8]])


def _is_gone(owner: str) -> bool:
    host, pid, created, _ = owner.rsplit("|", 3)
    if host != _host():
        return False
    try:
        return _started(psutil.Process(int(pid))) != created
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def _started(process: psutil.Process) -> str:
    """When a process was started, to distinguish it from a later one with the same id.

    On Linux psutil adds the boot time, which moves when the clock is set: a live search would look dead from then on.
    """
    since = psutil.boot_time() if sys.platform == "linux" else 0.0
    return f"{process.create_time() - since:.2f}"


def _host() -> str:
    """This machine, and its process namespace, which differs in a container."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")  # noqa: PTH115  not a path but pid:[4026531836]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        numbering = boot = ""
    return f"{platform.node()}|{boot}|{numbering}"


@contextmanager
def beating(beat: Callable[[], None]) -> Iterator[None]:
    """Within the block, call ``beat`` every quarter of a lease from a thread."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(LEASE_SECONDS / 4):
            try:
                beat()
            except PASSING:
                _log.debug("leases were not renewed", exc_info=True)  # nor can others take over
            except Exception:  # without this thread, others would soon take over trials that are running
                _log.warning("leases were not renewed", exc_info=True)

    thread = threading.Thread(target=run, name="thawline-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
