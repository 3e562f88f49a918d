"""The server's own process: Prefect's application on an inherited socket.

``python -m thawline.prefect_server.process PORT READY``: the descriptor of the listening socket, and the file to create
when the server responds. Standard input is a pipe from the supervisor; its end stops the process.
"""

import os
import socket
import sys
import threading
from pathlib import Path

import uvicorn

__all__: list[str] = []

_APPLICATION = "prefect.server.api.server:create_app"
_LEAVE_SECONDS = 2
_FAILED = 3
"""Exit code after a failed start, as in uvicorn's own command."""


class _Server(uvicorn.Server):
    """Creates the file when it responds."""

    def __init__(self, config: uvicorn.Config, ready: Path) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready.touch(mode=0o600)


def _end_with_supervisor() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written: it returns when the other end is closed
    os._exit(1)


def main() -> None:
    """Serve until stopped."""
    threading.Thread(target=_end_with_supervisor, name="end-with-supervisor", daemon=True).start()
    config = uvicorn.Config(
        _APPLICATION, factory=True, lifespan="on", log_level="warning", timeout_graceful_shutdown=_LEAVE_SECONDS
    )
    server = _Server(config, Path(sys.argv[2]))
    server.run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
    sys.exit(0 if server.started else _FAILED)


if __name__ == "__main__":
    main()
