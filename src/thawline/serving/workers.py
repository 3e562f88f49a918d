"""Several processes behind one port, and what becomes of the numbers of one that died."""

from socket import socket

from prometheus_client.multiprocess import mark_process_dead
from uvicorn.config import Config
from uvicorn.supervisors import Multiprocess

__all__ = ["Workers"]


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
