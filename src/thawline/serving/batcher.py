"""Dynamic batching: images or texts of concurrent requests share a forward pass.

Items that arrive during a forward pass form the next batch; a batch waits only for items that are already being
prepared. Decoding and tokenizing happen in parallel threads.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

from thawline.registry import Answer
from thawline.serving.served import ServedModel

__all__ = ["Batcher", "Overloaded", "UnreadableItem"]


class Overloaded(Exception):
    """The queue is full."""


class UnreadableItem(ValueError):
    """An image or text of a request cannot be read; ``index`` is its position in the request."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


_Waiting: TypeAlias = tuple[Any, asyncio.Future[Answer]]
"""A prepared item, and the future for its answer."""


@dataclass
class _Turn:
    """Remaining items of one request; requests take turns."""

    model: ServedModel
    waiting: deque[_Waiting]


class Batcher:
    """Computes probabilities for the images or texts of any number of requests.

    Requests take turns, item by item: beside a request with hundreds of images, a request with one image waits only
    for the running batch, and for as many images to be decoded as there are cores.

    Args:
        max_batch: maximum number of items per forward pass.
        max_delay: maximum seconds that a batch waits for items that are being prepared.
        max_waiting: maximum number of items in the server.
        on_batch: called after every forward pass with its size and seconds.
    """

    def __init__(
        self, *, max_batch: int, max_delay: float, max_waiting: int, on_batch: Callable[[int, float], None]
    ) -> None:
        self._max_batch, self._max_delay, self._max_waiting, self._on_batch = (
            max_batch,
            max_delay,
            max_waiting,
            on_batch,
        )
        self._turns: deque[_Turn] = deque()
        self._arrived = asyncio.Event()
        self._preparing = 0
        self._inside = 0
        self._threads = os.cpu_count() or 1
        self._preparers = ThreadPoolExecutor(self._threads, thread_name_prefix="prepare")
        self._forward = ThreadPoolExecutor(1, thread_name_prefix="forward")

    async def classify(self, model: ServedModel, items: Sequence[bytes | str]) -> list[Answer]:
        """Classify encoded images, or texts, depending on the model.

        After cancellation, nothing more is prepared or computed for the request.

        Raises:
            Overloaded: if the queue is full; nothing was done.
            UnreadableItem: for the first unreadable item; the others are not computed either.
        """
        if self._inside + len(items) > self._max_waiting and self._inside:
            raise Overloaded
        self._inside += len(items)
        turn = _Turn(model, deque())
        try:
            prepared = await self._prepare(model, items)
            loop = asyncio.get_running_loop()
            answers = [loop.create_future() for _ in prepared]
            turn.waiting.extend(zip(prepared, answers, strict=True))
            self._turns.append(turn)
            self._arrived.set()
            return list(await asyncio.gather(*answers))
        finally:
            turn.waiting.clear()
            self._inside -= len(items)

    async def run(self) -> None:
        """Compute batches until cancelled."""
        while True:
            await self._compute(*await self._gather())

    def close(self) -> None:
        """Stop the threads when they are idle."""
        self._preparers.shutdown(wait=False)
        self._forward.shutdown(wait=False)

    async def _prepare(self, model: ServedModel, items: Sequence[bytes | str]) -> list[Any]:
        """Prepare items; a request queues at most as many items as there are threads, so that others get a turn."""
        loop = asyncio.get_running_loop()
        prepared: list[Any] = [None] * len(items)
        failed: dict[int, Exception] = {}
        left = iter(enumerate(items))

        async def one_by_one() -> None:
            for index, item in left:
                try:
                    prepared[index] = await loop.run_in_executor(self._preparers, model.prepare, item)
                except Exception as error:
                    failed[index] = error
                if failed:  # the other coroutines have taken all items before it
                    return

        self._preparing += len(items)
        try:
            await asyncio.gather(*(one_by_one() for _ in range(min(self._threads, len(items)))))
        finally:
            self._preparing -= len(items)
        if failed:
            first = min(failed)
            if isinstance(failed[first], ValueError):
                raise UnreadableItem(first, str(failed[first]))
            raise failed[first]
        return prepared

    async def _gather(self) -> tuple[ServedModel, list[_Waiting]]:
        """A batch for one version: one item of each request in turn, until it is full or none remain."""
        while not self._turns:
            self._arrived.clear()
            await self._arrived.wait()
        model, deadline = self._turns[0].model, time.monotonic() + self._max_delay
        batch: list[_Waiting] = []
        while True:
            self._take(model, batch)
            left = deadline - time.monotonic()
            # The remaining turns are for another version.
            if len(batch) == self._max_batch or self._turns or not self._preparing or left <= 0:
                return model, batch
            self._arrived.clear()
            try:
                async with asyncio.timeout(left):
                    await self._arrived.wait()
            except TimeoutError:
                return model, batch

    def _take(self, model: ServedModel, batch: list[_Waiting]) -> None:
        others: deque[_Turn] = deque()
        while self._turns and len(batch) < self._max_batch:
            turn = self._turns.popleft()
            if turn.model is not model:
                others.append(turn)
            elif turn.waiting:  # otherwise its client has left
                batch.append(turn.waiting.popleft())
                if turn.waiting:
                    self._turns.append(turn)
        self._turns.extendleft(reversed(others))  # in their order: their version is next

    async def _compute(self, model: ServedModel, batch: Sequence[_Waiting]) -> None:
        wanted = [(prepared, answer) for prepared, answer in batch if not answer.done()]  # done: its client has left
        if not wanted:
            return
        began = time.perf_counter()
        try:
            answers = await asyncio.get_running_loop().run_in_executor(
                self._forward, model.answers, [prepared for prepared, _ in wanted]
            )
        except Exception as error:
            for _, answer in wanted:
                if not answer.done():
                    answer.set_exception(error)
            return
        self._on_batch(len(wanted), time.perf_counter() - began)
        for (_, answer), found in zip(wanted, answers, strict=True):
            if not answer.done():
                answer.set_result(found)
