"""``POST /webhook``: the registry reports that an alias has moved."""

from fastapi import APIRouter, Request

from thawline.serving.bodies import Bodies
from thawline.serving.follower import Follower
from thawline.serving.requests import BadRequest
from thawline.serving.webhook import is_genuine, is_signed

__all__ = ["router"]

_LARGEST = 64 * 1024
"""Bytes; MLflow's deliveries have a few hundred."""


def router(follower: Follower, secret: str, bodies: Bodies) -> APIRouter:
    """The route of a server that has the secret of the webhooks."""
    routes = APIRouter()

    @routes.post("/webhook", status_code=202)
    async def webhook(request: Request) -> dict[str, str]:
        """MLflow reports that an alias has moved; register it for `model_version_alias.created`."""
        refused = BadRequest(403, "The webhook's signature does not match this server's secret, or it is too old.")
        if not is_signed(request.headers):  # do not read bodies of requests that cannot come from MLflow
            raise refused
        async with bodies.read(request, largest=_LARGEST) as body:
            if not is_genuine(secret, request.headers, body):
                raise refused
        follower.look()
        return {"status": "looking"}

    return routes
