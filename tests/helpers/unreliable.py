"""An HTTP proxy that misbehaves on request."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

__all__ = ["Unreliable", "unreliable"]

Mood = Literal["well", "slow", "500", "down"]


class Unreliable(ThreadingHTTPServer):
    """Forwards requests to a local port. ``mood`` may change at any time."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = port
        self.mood: Mood = "well"
        self.refused = 0
        self._asked = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self) -> None:
        with self._asked:
            self.refused += self.mood in {"500", "down"}
            self._asked.notify_all()

    def wait_until_refused(self, more: int, seconds: float = 120) -> None:
        """Wait until this many more requests were refused, so that the client has noticed."""
        with self._asked:
            wanted = self.refused + more
            assert self._asked.wait_for(lambda: self.refused >= wanted, seconds)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors, because clients are expected to disconnect."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Unreliable

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        mood = self.server.mood
        self.server.count()
        if mood == "down":
            self.close_connection = True
            return
        if mood == "500":
            self._answer(500, {"Content-Type": "application/json"}, b'{"error_code": "INTERNAL_ERROR"}')
            return
        if mood == "slow":
            threading.Event().wait(1.0)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        kept = {name: value for name, value in response.getheaders() if name.lower() == "content-type"}
        self._answer(response.status, kept, response.read())
        connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _pass_on  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def unreliable(port: int) -> Iterator[Unreliable]:
    with Unreliable(port) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
