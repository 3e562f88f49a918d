"""Use of the server within a block, with restarts if it dies; and `up` and `down`."""

import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from thawline import environment
from thawline.exceptions import PrefectServerError
from thawline.prefect_profile import named_server
from thawline.prefect_server._files import Address, Files, try_lock
from thawline.prefect_server._starting import find_or_start

__all__ = ["ManagedServer", "keep_up", "shut_down", "used"]

_START_SECONDS = 180
"""A new database is migrated before the first answer, which takes long on a busy laptop."""
_LOOK_SECONDS = 0.05
_WATCH_SECONDS = 1.0
_END_SECONDS = 15
_REVIVALS = 3
"""How often a server that died with its supervisor is started again by one of its users."""
_log = logging.getLogger("thawline.prefect_server")


class ManagedServer:
    """The home's server, which lives at least as long as the block of :func:`used`."""

    def __init__(self, files: Files, address: Address) -> None:
        self._files = files
        self.address = address
        self._over = threading.Event()
        self._watch: threading.Thread | None = None

    def wait(self) -> None:
        """Until it answers.

        Raises:
            PrefectServerError: as soon as its process is dead; also if it does not answer in three minutes.
        """
        deadline = time.monotonic() + _START_SECONDS
        while not self._files.ready.exists():
            if not self._lives():
                raise PrefectServerError(
                    f"Prefect's API server did not start: {_reason(self._files.log)} Its log: {self._files.log}"
                )
            if time.monotonic() > deadline:
                raise PrefectServerError(
                    f"Prefect's API server did not answer in {_START_SECONDS} s. Its log: {self._files.log}"
                )
            time.sleep(_LOOK_SECONDS)
        if self._watch is None:
            self._watch = threading.Thread(target=self._keep_alive, name="keep-prefect-server", daemon=True)
            self._watch.start()

    def release(self) -> None:
        """This process no longer needs it."""
        self._over.set()
        if self._watch is not None:
            self._watch.join()

    def _lives(self) -> bool:
        with self._files.changing():
            return self._files.alive()

    def _keep_alive(self) -> None:
        """Its supervisor starts it again when it dies; here, when the supervisor died too."""
        revivals = 0
        with suppress(OSError, PrefectServerError):  # without a home, or at the process limit, there is no server
            while not self._over.wait(_WATCH_SECONDS):
                if self._lives():
                    continue
                if revivals == _REVIVALS:
                    _log.warning("Prefect's API server keeps stopping; its log: %s", self._files.log)
                    return
                revivals += 1
                _log.warning("Prefect's API server was ended from outside; it is started again")
                self.address = find_or_start(self._files)


@contextmanager
def used(home: Path) -> Iterator[ManagedServer | None]:
    """Prefect's server of a home, for the time of the block; started unless it is running.

    Args:
        home: Thawline's.

    Returns:
        The server, which need not answer yet: see :meth:`ManagedServer.wait`; ``None`` where the user has named one.

    Raises:
        PrefectServerError: if it cannot be started.
    """
    if named_server() is not None:
        yield None
        return
    files = Files(home)
    environment.prepare_flows()  # the folder of its database, and that database
    files.make()
    with _among_the_users(files):
        server = ManagedServer(files, find_or_start(files))
        try:
            yield server
        finally:
            server.release()


def keep_up(home: Path, pool: str | None) -> Address:
    """Start the server to stay until :func:`shut_down`, optionally with a worker.

    Args:
        home: Thawline's.
        pool: of the worker; ``None`` for no worker.

    Raises:
        PrefectServerError: if it does not start, or the user has named another.
    """
    with used(home) as server:
        if server is None:
            raise PrefectServerError(
                f"{named_server()} is used, because PREFECT_API_URL or a profile of Prefect names it: Thawline starts "
                "no server beside it."
            )
        stay = Files(home).stay
        stayed = stay.exists()
        stay.write_text(pool or "")
        try:
            server.wait()
        except BaseException:  # Ctrl-C too: nobody was told then that it stays
            if not stayed:
                stay.unlink(missing_ok=True)
            raise
        return server.address


def shut_down(home: Path) -> bool:
    """End the server and its worker; returns whether one was running.

    Raises:
        PrefectServerError: if it is in use.
    """
    files = Files(home)
    if not files.folder.is_dir():
        return False
    with files.changing():
        if not files.alive():
            files.stay.unlink(missing_ok=True)
            return False
        users = files.open("users.lock")
        try:
            if not _take(users):
                raise PrefectServerError(
                    "Prefect's API server is in use by another command of this home, such as a search or "
                    "`thawline ui`. Stop that first, and then try `thawline down` again."
                )
            address = files.read()
            assert address is not None  # noqa: S101  written by the process that started it
            files.stay.unlink(missing_ok=True)
            _end(files, address.pid)
        finally:
            os.close(users)
    return True


def _end(files: Files, supervisor: int) -> None:
    deadline = time.monotonic() + _END_SECONDS
    with suppress(ProcessLookupError):
        os.kill(supervisor, signal.SIGTERM)
        while files.alive():
            if time.monotonic() > deadline:
                os.killpg(supervisor, signal.SIGKILL)
                return
            time.sleep(_LOOK_SECONDS)


def _take(lock: int) -> bool:
    """Take a lock exclusively; its supervisor holds it briefly now and then."""
    deadline = time.monotonic() + 1
    while not try_lock(lock):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


@contextmanager
def _among_the_users(files: Files) -> Iterator[None]:
    """Wait for a server that is just ending because it was idle."""
    users = files.open("users.lock")
    try:
        fcntl.flock(users, fcntl.LOCK_SH)
        yield
    finally:
        os.close(users)


def _reason(log: Path) -> str:
    """The last line of its log that names an error, as a sentence."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.strip() for line in lines if "Error" in line.split(" ", 1)[0]]
    return f"{named[-1].rstrip('.')}." if named else "its process ended."
