"""Dynamic batching: images or texts of requests in flight share a forward pass.

While one forward pass runs, whatever arrives waits and makes the next batch; nothing waits for company that is not
already on its way. Decoding and tokenizing happen in threads beside it.
"""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from thawline.serving.served import ServedModel

__all__ = ["Batcher", "Overloaded", "UnreadableItem"]


class Overloaded(Exception):
    """More items are waiting than the queue holds."""


class UnreadableItem(ValueError):
    """An image or text of a request cannot be read; ``index`` is its place in the request."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


@dataclass
class _Waiting:
    """What is to be classified."""

    model: ServedModel
    prepared: Any
    answer: "asyncio.Future[list[float]]" = field(repr=False)


class Batcher:
    """Takes images or texts from any number of requests, and gives each its probabilities.

    Args:
        max_batch: items per forward pass, at most.
        max_delay: seconds that a batch waits for items which are being prepared.
        max_waiting: items that may be in the server at once.
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
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._preparing = 0
        self._inside = 0
        self._preparers = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="prepare")
        self._forward = ThreadPoolExecutor(1, thread_name_prefix="forward")

    async def classify(self, model: ServedModel, items: Sequence[bytes | str]) -> list[list[float]]:
        """Probabilities ``[N][num_classes]`` of encoded images or of texts, whatever the model takes.

        Raises:
            Overloaded: if the queue is full; nothing was done.
            UnreadableItem: for the first one that cannot be read; the others are not computed either.
        """
        if self._inside + len(items) > self._max_waiting and self._inside:
            raise Overloaded
        self._inside += len(items)
        try:
            prepared = await self._prepare(model, items)
            loop = asyncio.get_running_loop()
            waiting = [_Waiting(model, each, loop.create_future()) for each in prepared]
            for each in waiting:
                self._queue.put_nowait(each)
            return list(await asyncio.gather(*(each.answer for each in waiting)))
        finally:
            self._inside -= len(items)

    async def run(self) -> None:
        """Compute batches until cancelled."""
        carried: _Waiting | None = None
        while True:
            first = carried or await self._queue.get()
            batch, carried = await self._gather(first)
            await self._compute(batch)

    def close(self) -> None:
        """End the threads once they are idle."""
        self._preparers.shutdown(wait=False)
        self._forward.shutdown(wait=False)

    async def _prepare(self, model: ServedModel, items: Sequence[bytes | str]) -> list[Any]:
        loop = asyncio.get_running_loop()
        self._preparing += len(items)
        try:
            prepared = await asyncio.gather(
                *(loop.run_in_executor(self._preparers, model.prepare, item) for item in items), return_exceptions=True
            )
        finally:
            self._preparing -= len(items)
        for index, each in enumerate(prepared):
            if isinstance(each, ValueError):
                raise UnreadableItem(index, str(each))
            if isinstance(each, BaseException):
                raise each
        return prepared

    async def _gather(self, first: _Waiting) -> tuple[list[_Waiting], _Waiting | None]:
        """A batch for one version, and the first item for another one, which begins the next batch."""
        batch, deadline = [first], time.monotonic() + self._max_delay
        while len(batch) < self._max_batch:
            if self._queue.empty():
                left = deadline - time.monotonic()
                if not self._preparing or left <= 0:
                    break
                try:
                    following = await asyncio.wait_for(self._queue.get(), left)
                except TimeoutError:
                    break
            else:
                following = self._queue.get_nowait()
            if following.model is not first.model:
                return batch, following
            batch.append(following)
        return batch, None

    async def _compute(self, batch: Sequence[_Waiting]) -> None:
        wanted = [each for each in batch if not each.answer.done()]  # a client that left has cancelled its own
        if not wanted:
            return
        began = time.perf_counter()
        prepared = [each.prepared for each in wanted]
        try:
            answers = await asyncio.get_running_loop().run_in_executor(
                self._forward, wanted[0].model.probabilities, prepared
            )
        except Exception as error:
            for each in wanted:
                if not each.answer.done():
                    each.answer.set_exception(error)
            return
        self._on_batch(len(wanted), time.perf_counter() - began)
        for each, answer in zip(wanted, answers, strict=True):
            if not each.answer.done():
                each.answer.set_result(answer)
