"""``POST /webhook``: the registry says that an alias has moved."""

from fastapi import APIRouter, Request

from thawline.serving.bodies import Bodies
from thawline.serving.follower import Follower
from thawline.serving.requests import BadRequest
from thawline.serving.webhook import is_genuine, is_signed

__all__ = ["router"]

_LARGEST = 64 * 1024
"""Bytes; MLflow's deliveries have some hundreds."""


def router(follower: Follower, secret: str, bodies: Bodies) -> APIRouter:
    """The route of a server that knows the secret its webhooks are signed with."""
    routes = APIRouter()

    @routes.post("/webhook", status_code=202)
    async def webhook(request: Request) -> dict[str, str]:
        """A word from MLflow that an alias has moved; register it for `model_version_alias.created`."""
        refused = BadRequest(403, "The webhook's signature is not that of this server's secret, or it is too old.")
        if not is_signed(request.headers):  # nothing is read of whoever cannot be MLflow
            raise refused
        async with bodies.read(request, largest=_LARGEST) as body:
            if not is_genuine(secret, request.headers, body):
                raise refused
        follower.look()
        return {"status": "looking"}

    return routes
