"""What the routes that classify have in common: the model of the moment, the batcher, and the limits."""

from dataclasses import dataclass

from thawline.serving.batcher import Batcher, UnreadableItem
from thawline.serving.follower import Follower
from thawline.serving.metrics import Metrics
from thawline.serving.requests import BadRequest, SentItem
from thawline.serving.served import ServedModel

__all__ = ["AppOptions", "Classifying"]


@dataclass(frozen=True)
class AppOptions:
    """What one process of the server needs to know."""

    max_batch: int = 32
    max_delay: float = 0.002
    """Seconds."""
    max_waiting: int = 512
    """Images or texts in the server at once."""
    max_body: int = 32_000_000
    """Bytes."""
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
    options: AppOptions

    @property
    def model(self) -> ServedModel:
        """The version that is served now."""
        return self.follower.model

    async def __call__(self, model: ServedModel, items: list[SentItem]) -> list[list[float]]:
        """Probabilities ``[N][num_classes]`` of images or texts, by the model that they were read for.

        Raises:
            BadRequest: 400, naming the first that cannot be read.
            Overloaded: if too many wait already.
        """
        try:
            with self.metrics.inside(len(items)):
                return await self.batcher.classify(model, [item.content for item in items])
        except UnreadableItem as error:
            raise BadRequest(400, f"{items[error.index].name} cannot be read: {error}.") from None
