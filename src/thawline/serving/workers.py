"""Several processes behind one port, and what becomes of the numbers of one that died."""

import logging
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from socket import socket
from typing import NoReturn

from prometheus_client.multiprocess import mark_process_dead
from uvicorn.config import STARTUP_FAILURE, Config
from uvicorn.supervisors import Multiprocess

__all__ = ["Start", "Workers", "when_it_answers"]

_log = logging.getLogger("thawline.serving")

_PATIENCE = 600
"""Seconds that the first process may take to load the model."""


class Start:
    """What the processes of a server and their parent tell each other while they start: files in a folder.

    A server that has never answered ends with the reason. One that has answered stays, and replaces a process for as
    long as it takes: what it cannot load now, it may load again in a minute.
    """

    def __init__(self, folder: Path) -> None:
        self._answered, self._refused = folder / "answered", folder / "refused"

    def answered(self) -> None:
        """In the parent: a process has answered."""
        self._answered.touch()

    def refuse(self, reason: str) -> NoReturn:
        """In a process: it cannot start."""
        if self._answered.exists():
            _log.error("%s", reason)
            sys.exit(1)
        self._refused.write_text(reason, encoding="utf-8")
        sys.exit(STARTUP_FAILURE)

    @property
    def reason(self) -> str | None:
        """Why the server did not start; ``None`` if it did."""
        return self._refused.read_text(encoding="utf-8") if self._refused.exists() else None


class Workers(Multiprocess):
    """uvicorn's supervisor, which starts processes and replaces dead ones.

    What a process counted stays in the sums of ``/metrics``; how many images it held when it died does not.
    """

    def __init__(self, config: Config, sockets: list[socket]) -> None:
        super().__init__(config, sockets)
        self._running: set[int] = set()

    def keep_subprocess_alive(self) -> None:
        """Called twice a second."""
        known = self._running | self._pids()  # those too that were started since
        super().keep_subprocess_alive()
        self._running = self._pids()
        for pid in known - self._running:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]

    def _pids(self) -> set[int]:
        return {process.pid for process in self.processes if process.pid is not None}


def when_it_answers(host: str, port: int, tell: Callable[[], None]) -> None:
    """Call ``tell`` from a thread once the first process has answered; not at all if none does for ten minutes."""

    def ask() -> None:
        connection = HTTPConnection(host, port, timeout=_PATIENCE)  # accepted by the socket, answered by a process
        with suppress(OSError, HTTPException):
            connection.request("GET", "/health")
            connection.getresponse()
            tell()
        connection.close()

    threading.Thread(target=ask, name="when-it-answers", daemon=True).start()
