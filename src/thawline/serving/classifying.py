"""What the routes that classify have in common: the model of the moment, the batcher, and the limits."""

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
    """What one process of the server needs to know."""

    max_batch: int = 32
    max_delay: float = 0.002
    """Seconds."""
    max_waiting: int = 1024
    """Images or texts in the server at once."""
    max_items: int = 256
    """Images or texts of one request."""
    max_pixels: int = 200_000_000
    """Width times height of all images of one request."""
    max_body: int = 32_000_000
    """Bytes."""
    max_bodies: int = 128_000_000
    """Bytes of all bodies that are held at once; see :class:`~thawline.serving.bodies.Bodies`."""
    client_seconds: float = 30.0
    """That a client may take to send a request."""
    allowed_hosts: tuple[str, ...] = ()
    """See :class:`~thawline.serving.guard.Guard`."""
    token: str | None = None
    """What ``Authorization: Bearer`` must say; ``None`` asks for nothing."""
    webhook_secret: str | None = None
    """What MLflow signs its webhooks with; ``None`` takes none."""


@dataclass(frozen=True)
class Classifying:
    """Classifies what was sent, together with what others send at the same time."""

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
        """What is known of images or texts, by the model that they were read for.

        What one request may ask for is checked first, so that one of too much is told so however busy the server is.

        Raises:
            BadRequest: 413 for too many items or pixels; 400, naming the first item that cannot be read.
            Overloaded: if too many wait already.
            ClientLeft: if nobody waits for the answer any more.
        """
        if len(items) > self.options.max_items:
            raise too_many(len(items), model.kind, self.options.max_items)
        if model.kind == "images":
            pixels = await asyncio.to_thread(_pixels, items)
            if pixels > self.options.max_pixels:
                raise BadRequest(
                    413,
                    f"The images of the request have {pixels:,} pixels together; this server takes "
                    f"{self.options.max_pixels:,} at once.",
                )
        answers = await unless_left(request, self._classify(model, items))
        if self.shadow is not None:
            labels = [model.row(each)["class"] for each in answers]
            self.shadow.offer([item.content for item in items], labels)
        return answers

    async def _classify(self, model: ServedModel, items: list[SentItem]) -> list[Answer]:
        try:
            with self.metrics.inside(len(items)):
                return await self.batcher.classify(model, [item.content for item in items])
        except UnreadableItem as error:
            raise BadRequest(400, f"{items[error.index].name} cannot be read: {error}.") from None


def _pixels(items: list[SentItem]) -> int:
    return sum(declared_pixels(item.content) for item in items if isinstance(item.content, bytes))
