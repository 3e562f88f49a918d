"""Clients that disconnect: work for their requests is cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from starlette.requests import Request

__all__ = ["ClientLeft", "unless_left"]

_T = TypeVar("_T")


class ClientLeft(Exception):
    """The client closed its connection before the response."""


async def unless_left(request: Request, work: Coroutine[None, None, _T]) -> _T:
    """Return the result of ``work``, or cancel it when the client leaves.

    Args:
        request: whose body has been read.
        work: computation for the request.

    Raises:
        ClientLeft: if the client left first.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
