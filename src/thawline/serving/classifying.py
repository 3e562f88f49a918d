"""Shared parts of the routes that classify: the current model, the batcher, and the limits."""

import asyncio
from dataclasses import dataclass

from starlette.requests import Request

from thawline.data import declared_pixels
from thawline.registry import Answer
from thawline.serving.batcher import Batcher, UnreadableItem
from thawline.serving.bodies import Bodies
from thawline.serving.follower import Follower
from thawline.serving.leaving import unless_left
from thawline.serving.metrics import Metrics
from thawline.serving.requests import BadRequest, SentItem, too_many
from thawline.serving.served import ServedModel
from thawline.serving.shadow import Shadow

__all__ = ["AppOptions", "Classifying"]


@dataclass(frozen=True)
class AppOptions:
    """Options of one server process."""

    max_batch: int = 32
    max_delay: float = 0.002
    """Seconds."""
    max_waiting: int = 1024
    """Images or texts in the server."""
    max_items: int = 256
    """Images or texts per request."""
    max_pixels: int = 200_000_000
    """Width times height, summed over the images of a request."""
    max_body: int = 32_000_000
    """Bytes."""
    max_bodies: int = 128_000_000
    """Bytes of all bodies in memory; see :class:`~thawline.serving.bodies.Bodies`."""
    client_seconds: float = 30.0
    """Time for a client to send a request."""
    allowed_hosts: tuple[str, ...] = ()
    """See :class:`~thawline.serving.guard.Guard`."""
    token: str | None = None
    """Token for ``Authorization: Bearer``; ``None`` requires none."""
    webhook_secret: str | None = None
    """Secret with which MLflow signs its webhooks; ``None`` disables webhooks."""


@dataclass(frozen=True)
class Classifying:
    """Classifies the items of a request, batched with those of concurrent requests."""

    follower: Follower
    batcher: Batcher
    metrics: Metrics
    bodies: Bodies
    options: AppOptions
    shadow: Shadow | None = None

    @property
    def model(self) -> ServedModel:
        """The version that is served now."""
        return self.follower.model

    async def __call__(self, request: Request, model: ServedModel, items: list[SentItem]) -> list[Answer]:
        """Classify images or texts with the model for which they were read.

        Limits per request are checked first, so that even a busy server reports them.

        Raises:
            BadRequest: 413 for too many items or pixels; 400, naming the first unreadable item.
            Overloaded: if the queue is full.
            ClientLeft: if the client closed its connection.
        """
        if len(items) > self.options.max_items:
            raise too_many(len(items), model.kind, self.options.max_items)
        if model.kind == "images":
            pixels = await asyncio.to_thread(_pixels, items)
            if pixels > self.options.max_pixels:
                raise BadRequest(
                    413,
                    f"The request's images have {pixels:,} pixels in total; this server accepts at most "
                    f"{self.options.max_pixels:,} per request.",
                )
        answers = await unless_left(request, self._classify(model, items))
        if self.shadow is not None:
            labels = [model.row(each)["class"] for each in answers]
            self.shadow.offer([item.content for item in items], labels, served=model.version)
        return answers

    async def _classify(self, model: ServedModel, items: list[SentItem]) -> list[Answer]:
        try:
            with self.metrics.inside(len(items)):
                return await self.batcher.classify(model, [item.content for item in items])
        except UnreadableItem as error:
            raise BadRequest(400, f"{items[error.index].name} cannot be read: {error}.") from None


def _pixels(items: list[SentItem]) -> int:
    return sum(declared_pixels(item.content) for item in items if isinstance(item.content, bytes))
