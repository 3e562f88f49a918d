"""Request bodies: limits on the size of each, on their total size, and on the time to send them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from thawline.serving.batcher import Overloaded
from thawline.serving.requests import BadRequest

__all__ = ["Bodies"]

_FREE = 256 * 1024
"""Bytes of each body that do not count, so that half-sent large bodies do not block small requests."""


class Bodies:
    """Reads the bodies of one process.

    Args:
        largest: maximum size of one body (bytes).
        together: maximum size of all bodies in memory (bytes), beyond the first 256 KiB of each.
        seconds: maximum time for a client to send a body.
    """

    def __init__(self, *, largest: int, together: int, seconds: float) -> None:
        self._largest, self._together, self._seconds = largest, together, seconds
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request, *, largest: int | None = None) -> AsyncIterator[bytearray]:
        """Read a body, which counts towards the limit until the block ends.

        It is rejected as soon as it is too large, whatever its headers declare.

        Args:
            request: whose body has not been read yet.
            largest: a smaller limit for this body (bytes).

        Raises:
            BadRequest: 413, or 408 for a client that is too slow.
            Overloaded: if other bodies leave no room.
        """
        limit = self._largest if largest is None else min(largest, self._largest)
        too_large = BadRequest(413, f"The body is larger than this server's limit of {limit:,} bytes.")
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            raise too_large
        body, held = bytearray(), 0
        try:
            try:
                async with asyncio.timeout(self._seconds):
                    async for chunk in request.stream():
                        if len(body) + len(chunk) > limit:
                            raise too_large
                        body += chunk
                        more = max(0, len(body) - _FREE) - held
                        if self._held + more > self._together:
                            raise Overloaded
                        self._held += more
                        held += more
            except TimeoutError:
                sentence = f"The body did not arrive within {self._seconds:g} seconds."
                raise BadRequest(408, sentence) from None
            yield body
        finally:
            self._held -= held
