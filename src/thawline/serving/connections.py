"""HTTP connections with limits on their number and on the time that a client may take.

uvicorn waits indefinitely for the head of a request, for the rest of a rejected body, and for a client that does not
read its response.
"""

import asyncio
import json
import logging
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

__all__ = ["BoundedConnection"]

_log = logging.getLogger("thawline.serving")

_SENTENCE = json.dumps({"error": "The server has reached its connection limit: try again in a second."}).encode()
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_SENTENCE), _SENTENCE)
)


class BoundedConnection(H11Protocol):
    """One connection.

    The application limits the time while it handles a request; this class limits it before and after.

    Args:
        config: uvicorn's.
        server_state: uvicorn's, with all connections.
        app_state: uvicorn's.
        most: maximum number of connections per process; further ones are answered with 503 and closed.
        seconds: for a client to send a request's head or the rest of its body, and to read the response.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        most: int,
        seconds: float,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._most, self._seconds = most, seconds
        self._until_sent: asyncio.TimerHandle | None = None
        self._until_taken: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        if len(self.connections) > self._most:
            _log.warning("refused a connection: the limit is %d (--max-connections)", self._most)
            transport.write(_FULL)
            transport.close()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Some bytes have arrived."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """A response is written, but perhaps not read yet."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._watch_answer()
        self._watch()

    def pause_writing(self) -> None:
        """The client reads its response slowly."""
        super().pause_writing()
        self._watch_answer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        super().connection_lost(exc)
        for timer in (self._until_sent, self._until_taken):
            if timer is not None:
                timer.cancel()

    def _watch(self) -> None:
        """Limit the time of a client that must send something; uvicorn limits idle ones."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self.timeout_keep_alive_task is not None:
            if self._until_sent is not None:
                self._until_sent.cancel()
                self._until_sent = None
        elif self._until_sent is None:
            self._until_sent = self.loop.call_later(self._seconds, self.transport.abort)

    def _watch_answer(self) -> None:
        if self._until_taken is None:
            self._until_taken = self.loop.call_later(self._seconds, self._give_up_answer)

    def _give_up_answer(self) -> None:
        self._until_taken = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()
