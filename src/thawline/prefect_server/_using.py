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
from thawline.prefect_server._starting import environment_for, find_or_start

__all__ = ["ManagedServer", "keep_up", "shut_down", "used"]

_START_SECONDS = 180
"""A new database is migrated before the first response, which takes long on a busy laptop."""
_LOOK_SECONDS = 0.05
_WATCH_SECONDS = 1.0
_END_SECONDS = 15
_REVIVALS = 3
"""Maximum number of restarts by a user after the server died with its supervisor."""
_log = logging.getLogger("thawline.prefect_server")


class ManagedServer:
    """The home's server, which runs at least as long as the block of :func:`used`."""

    def __init__(self, files: Files, address: Address) -> None:
        self._files = files
        self.address = address
        self._over = threading.Event()
        self._watch: threading.Thread | None = None

    def wait(self) -> None:
        """Wait until it responds.

        Raises:
            PrefectServerError: as soon as its process has died, or if it does not respond within three minutes.
        """
        deadline = time.monotonic() + _START_SECONDS
        while not self._files.ready.exists():
            if not self._lives():
                raise PrefectServerError(
                    f"Prefect's API server did not start: {_reason(self._files.log)} Its log: {self._files.log}"
                )
            if time.monotonic() > deadline:
                raise PrefectServerError(
                    f"Prefect's API server did not respond within {_START_SECONDS} s. Its log: {self._files.log}"
                )
            time.sleep(_LOOK_SECONDS)
        if self._watch is None:
            self._watch = threading.Thread(target=self._keep_alive, name="keep-prefect-server", daemon=True)
            self._watch.start()

    def release(self) -> None:
        """Stop watching the server when this process no longer needs it."""
        self._over.set()
        if self._watch is not None:
            self._watch.join()

    def _lives(self) -> bool:
        with self._files.changing():
            return self._files.alive()

    def _keep_alive(self) -> None:
        """Restart the server if its supervisor died too; otherwise, the supervisor restarts it."""
        revivals = 0
        with suppress(OSError, PrefectServerError):  # the home may be gone, or the process limit reached
            while not self._over.wait(_WATCH_SECONDS):
                if self._lives():
                    continue
                if revivals == _REVIVALS:
                    _log.warning("Prefect's API server keeps dying; its log: %s", self._files.log)
                    return
                revivals += 1
                _log.warning("Prefect's API server was killed; restarting it")
                self.address = find_or_start(self._files)


@contextmanager
def used(home: Path) -> Iterator[ManagedServer | None]:
    """Use the Prefect server of a home within the block; it is started unless it is running.

    Args:
        home: Thawline's home.

    Returns:
        The server, which may not respond yet: see :meth:`ManagedServer.wait`; ``None`` if the user has configured one.

    Raises:
        PrefectServerError: if it cannot be started.
    """
    if named_server() is not None:
        yield None
        return
    files = Files(home)
    environment.prepare_flows()  # creates its folder and its database
    files.make()
    with _among_the_users(files):
        server = ManagedServer(files, find_or_start(files))
        try:
            yield server
        finally:
            server.release()


def keep_up(home: Path, pool: str | None) -> tuple[Address, bool]:
    """Start the server, to run until :func:`shut_down`, optionally with a worker.

    The worker gets the environment variables of this process. A worker that already runs keeps its own: replacing it
    would end its flow runs.

    Args:
        home: Thawline's home.
        pool: work pool of the worker; ``None`` starts none, and leaves one that runs alone.

    Returns:
        The server's address, and whether the worker was already requested by an earlier call.

    Raises:
        PrefectServerError: if it does not start, or the user has configured another server.
    """
    with used(home) as server:
        if server is None:
            raise PrefectServerError(
                f"PREFECT_API_URL or a Prefect profile names the server {named_server()}, so Thawline does not start "
                "its own."
            )
        files = Files(home)
        stay = files.stay
        stayed = stay.exists()
        former = stay.read_text().strip() if stayed else ""
        if pool is not None and former not in ("", pool):
            raise PrefectServerError(
                f"A worker of the pool {former!r} runs already. Stop it with `thawline down`, then run this again."
            )
        if pool is not None and not former:
            files.save_environment(environment_for(files, server.address))
        stay.write_text(pool or former)
        try:
            server.wait()
        except BaseException:  # including Ctrl-C: the user does not know yet that it would keep running
            if not stayed:
                files.forget()
            raise
        return server.address, pool is not None and pool == former


def shut_down(home: Path) -> bool:
    """Stop the server and its worker; returns whether one was running.

    Raises:
        PrefectServerError: if it is in use.
    """
    files = Files(home)
    if not files.folder.is_dir():
        return False
    with files.changing():
        if not files.alive():
            files.forget()
            return False
        users = files.open("users.lock")
        try:
            if not _take(users):
                raise PrefectServerError(
                    "Prefect's API server is in use by another command in this home, such as a search or "
                    "`thawline ui`. Stop that first, then run `thawline down` again."
                )
            address = files.read()
            assert address is not None  # noqa: S101  written by the process that started it
            files.forget()
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
    """Acquire a lock exclusively; the supervisor holds it briefly from time to time."""
    deadline = time.monotonic() + 1
    while not try_lock(lock):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


@contextmanager
def _among_the_users(files: Files) -> Iterator[None]:
    """Register as a user within the block; waits for a server that is stopping because it was idle."""
    users = files.open("users.lock")
    try:
        fcntl.flock(users, fcntl.LOCK_SH)
        yield
    finally:
        os.close(users)


def _reason(log: Path) -> str:
    """The last error in its log, as a sentence."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.strip() for line in lines if "Error" in line.split(" ", 1)[0]]
    return f"{named[-1].rstrip('.')}." if named else "its process ended."
