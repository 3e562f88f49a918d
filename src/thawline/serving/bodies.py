"""Bodies of requests: bounded each, bounded together, and in time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from thawline.serving.batcher import Overloaded
from thawline.serving.requests import BadRequest

__all__ = ["Bodies"]

_FREE = 256 * 1024
"""Bytes of each body that are not counted, so that half-sent large bodies keep no small request out."""


class Bodies:
    """Reads the bodies of one process.

    Args:
        largest: bytes of one body.
        together: bytes of all bodies that are held at once, beyond the first 256 KiB of each.
        seconds: that a client may take to send one.
    """

    def __init__(self, *, largest: int, together: int, seconds: float) -> None:
        self._largest, self._together, self._seconds = largest, together, seconds
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request, *, largest: int | None = None) -> AsyncIterator[bytearray]:
        """The body, whose bytes count as held until the block is left.

        It is refused as soon as it is too large, whatever its headers say.

        Args:
            request: whose body has not been read yet.
            largest: bytes, where it must be smaller than others.

        Raises:
            BadRequest: 413, or 408 for a client that is too slow.
            Overloaded: if the bodies of others leave no room.
        """
        limit = self._largest if largest is None else min(largest, self._largest)
        too_large = BadRequest(413, f"The body is larger than the {limit:,} bytes that this server takes.")
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
                sentence = f"The body did not come within the {self._seconds:g} seconds that this server waits for it."
                raise BadRequest(408, sentence) from None
            yield body
        finally:
            self._held -= held
