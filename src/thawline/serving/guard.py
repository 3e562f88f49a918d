"""Middleware around every request: access control, timing, and the last error handler."""

import hmac
import ipaddress
import logging
import socket
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thawline.serving.leaving import ClientLeft
from thawline.serving.metrics import Metrics

__all__ = ["Guard"]

_log = logging.getLogger("thawline.serving")

_OPEN = {"/health", "/ping", "/ready", "/v2/health/live", "/v2/health/ready", "/", "/webhook"}
"""Paths without token: health probes, the page (which asks for the token), and webhooks (which are signed)."""


_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every response: no other page may embed it, and no browser may guess its type."""


class Guard:
    """Middleware around the application.

    A page in a browser can send requests to any address that its user can reach. It can read the responses if it makes
    its own name resolve to that address (DNS rebinding), which the header ``Host`` reveals. It can also cause work
    without reading responses, which ``Origin`` reveals.

    Args:
        app: the application to guard.
        token: required in ``Authorization: Bearer``; ``None`` requires none.
        allowed_hosts: accepted host names, besides this machine's own and IP addresses; a leading ``*.`` stands for any
            subdomain, ``*`` for any name.
        metrics: count every request.
    """

    def __init__(self, app: ASGIApp, token: str | None, allowed_hosts: tuple[str, ...], metrics: Metrics) -> None:
        self._app, self._token, self._metrics = app, token, metrics
        self._hosts = tuple(host.lower() for host in allowed_hosts)
        self._own = {"localhost", socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._metrics.request(scope["path"]) as finished:
            answering = False

            async def watched(message: Message) -> None:
                nonlocal answering
                if message["type"] == "http.response.start":
                    answering = True
                    MutableHeaders(scope=message).update(_HEADERS)
                    finished(message["status"])
                await send(message)

            refused = self._refused(Headers(scope=scope), scope["path"])
            if refused is not None:
                await refused(scope, receive, watched)
                return
            try:
                await self._app(scope, receive, watched)
            except (ClientLeft, ClientDisconnect):
                self._metrics.leave()
                _log.info("%s %s: the client left before the response", scope["method"], scope["path"])
            except Exception:  # the traceback stays in the log
                _log.exception("%s %s failed", scope["method"], scope["path"])
                if not answering:
                    failed = JSONResponse({"error": "Internal server error; see the server's log."}, 500)
                    await failed(scope, receive, watched)

    def _refused(self, headers: Headers, path: str) -> JSONResponse | None:
        """The response to a request without access; ``None`` if it is allowed."""
        host = headers.get("host", "")
        if host and not self._is_ours(_name(host)):
            sentence = f"This server does not accept requests to the host {_name(host)!r}; --allow-host allows it."
            return JSONResponse({"error": sentence}, 421)
        origin = headers.get("origin")
        if origin is not None and not self._may_come_from(origin, host):
            return JSONResponse({"error": f"Pages of {origin} may not use this server; --allow-host allows it."}, 403)
        if not self._has_token(headers, path):
            sentence = "This server requires a token: send the header Authorization: Bearer TOKEN."
            return JSONResponse({"error": sentence}, 401, {"WWW-Authenticate": "Bearer"})
        return None

    def _is_ours(self, name: str) -> bool:
        return name in self._own or _is_address(name) or self._is_allowed(name)

    def _is_allowed(self, name: str) -> bool:
        return any(
            host in ("*", name) or (host.startswith("*.") and name.endswith(host.removeprefix("*")))
            for host in self._hosts
        )

    def _may_come_from(self, origin: str, host: str) -> bool:
        try:
            authority = urlsplit(origin).netloc.lower()
        except ValueError:
            return False
        return bool(authority) and (authority == host.lower() or self._is_allowed(_name(authority)))

    def _has_token(self, headers: Headers, path: str) -> bool:
        if self._token is None or path in _OPEN:
            return True
        kind, _, sent = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(sent.encode(), self._token.encode())


def _name(authority: str) -> str:
    """``name:8000`` and ``[::1]:8000`` without the port."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].lower().removesuffix(".")


def _is_address(name: str) -> bool:
    """Whether a host is an IP address: other pages have names, unless they are served by that machine."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
