"""Several processes behind one port, and the metrics of processes that died."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from socket import socket
from typing import NoReturn

from prometheus_client.multiprocess import mark_process_dead
from uvicorn.config import STARTUP_FAILURE, Config
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

__all__ = ["Start", "Workers", "when_it_answers"]

_log = logging.getLogger("thawline.serving")

_PATIENCE = 600
"""Maximum seconds for the first process to load the model."""


class Start:
    """Communication between the server's processes and their parent during start-up, by files in a folder.

    A server that has never responded exits with the reason. One that has responded keeps running, and restarts a
    process as often as needed: a model that it cannot load now may load in a minute.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._answered, self._refused = folder, folder / "answered", folder / "refused"

    def loaded(self) -> None:
        """In a process: report that it has loaded the model."""
        (self._folder / f"loaded-{os.getpid()}").touch()

    def has_loaded(self, pid: int | None) -> bool:
        """In the parent: whether a process has loaded the model."""
        return (self._folder / f"loaded-{pid}").exists()

    def answered(self) -> None:
        """In the parent: record that a process has responded."""
        self._answered.touch()

    def refuse(self, reason: str) -> NoReturn:
        """In a process: report that it cannot start, and exit."""
        if self._answered.exists():
            _log.error("%s", reason)
            sys.exit(1)
        self._refused.write_text(reason, encoding="utf-8")
        sys.exit(STARTUP_FAILURE)

    @property
    def reason(self) -> str | None:
        """The reason why the server did not start; ``None`` if it did."""
        return self._refused.read_text(encoding="utf-8") if self._refused.exists() else None


class Workers(Multiprocess):
    """uvicorn's supervisor, which starts processes and replaces dead ones.

    Counts of a dead process stay in the sums of ``/metrics``, except for the images that it was processing.
    """

    def __init__(self, config: Config, sockets: list[socket], start: Start) -> None:
        super().__init__(config, sockets)
        self._start = start
        self._running: set[int] = set()
        self._seen: dict[int | None, float] = {}

    def keep_subprocess_alive(self) -> None:
        """Called twice a second."""
        if any(process.exitcode == STARTUP_FAILURE for process in self.processes):
            self.should_exit.set()
            return
        if any(self._loads(process) for process in self.processes):
            return
        known = self._running | self._pids()  # including those started since
        super().keep_subprocess_alive()
        self._running = self._pids()
        for pid in known - self._running:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]

    def _loads(self, process: Process) -> bool:
        """Whether a new process is still loading the model. It gets no health check meanwhile: uvicorn would wait a
        minute for the response of one that has died."""
        since = time.monotonic() - self._seen.setdefault(process.pid, time.monotonic())
        loading = process.exitcode is None and not self._start.has_loaded(process.pid)
        return loading and since < self.config.timeout_worker_healthcheck

    def _pids(self) -> set[int]:
        return {process.pid for process in self.processes if process.pid is not None}


def when_it_answers(host: str, port: int, tell: Callable[[], None]) -> None:
    """Call ``tell`` from a thread once the first process responds; never if none does within ten minutes."""

    def ask() -> None:
        connection = HTTPConnection(host, port, timeout=_PATIENCE)  # accepted by the socket, answered by a process
        with suppress(OSError, HTTPException):
            connection.request("GET", "/health")
            connection.getresponse()
            tell()
        connection.close()

    threading.Thread(target=ask, name="when-it-answers", daemon=True).start()
