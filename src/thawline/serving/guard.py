"""What surrounds every request: the token, the clock, and the last place where a failure can be caught."""

import hmac
import logging

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thawline.serving.metrics import Metrics

__all__ = ["Guard"]

_log = logging.getLogger("thawline.serving")

_OPEN = {"/health", "/ping", "/ready", "/", "/webhook"}
"""Paths that need no token: probes, the page, which asks for one, and webhooks, which are signed."""


class Guard:
    """Middleware around the application.

    Args:
        app: what is guarded.
        token: what ``Authorization: Bearer`` must say; ``None`` asks for nothing.
        metrics: told of every request.
    """

    def __init__(self, app: ASGIApp, token: str | None, metrics: Metrics) -> None:
        self._app, self._token, self._metrics = app, token, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._metrics.request(scope["path"]) as finished:
            answering = False

            async def watched(message: Message) -> None:
                nonlocal answering
                if message["type"] == "http.response.start":
                    answering = True
                    finished(message["status"])
                await send(message)

            if not self._allowed(scope):
                sentence = "This server asks for a token: send the header Authorization: Bearer TOKEN."
                refused = JSONResponse({"error": sentence}, 401, {"WWW-Authenticate": "Bearer"})
                await refused(scope, receive, watched)
                return
            try:
                await self._app(scope, receive, watched)
            except Exception:  # its trace stays in the log
                _log.exception("%s %s failed", scope["method"], scope["path"])
                if not answering:
                    failed = JSONResponse({"error": "The server failed; its log says why."}, 500)
                    await failed(scope, receive, watched)

    def _allowed(self, scope: Scope) -> bool:
        if self._token is None or scope["path"] in _OPEN:
            return True
        kind, _, sent = Headers(scope=scope).get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(sent.encode(), self._token.encode())
