"""``GET /metrics``, for Prometheus."""

from fastapi import APIRouter, Response

from thawline.serving.follower import Follower
from thawline.serving.metrics import Metrics

__all__ = ["router"]


def router(follower: Follower, metrics: Metrics) -> APIRouter:
    """The route for metrics."""
    routes = APIRouter()

    @routes.get("/metrics")
    async def prometheus() -> Response:
        """Counts and times in Prometheus' text format."""
        return Response(*metrics.exposition(follower.model.version))

    return routes
