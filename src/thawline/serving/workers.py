"""Several processes behind one port, and what becomes of the numbers of one that died."""

import threading
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from socket import socket

from prometheus_client.multiprocess import mark_process_dead
from uvicorn.config import Config
from uvicorn.supervisors import Multiprocess

__all__ = ["Workers", "when_it_answers"]

_PATIENCE = 600
"""Seconds that the first process may take to load the model."""


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
