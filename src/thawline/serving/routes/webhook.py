"""``POST /webhook``: the registry says that an alias has moved."""

from fastapi import APIRouter, Request

from thawline.serving.follower import Follower
from thawline.serving.requests import BadRequest, read_body
from thawline.serving.webhook import is_genuine

__all__ = ["router"]


def router(follower: Follower, secret: str, max_body: int) -> APIRouter:
    """The route of a server that knows the secret its webhooks are signed with."""
    routes = APIRouter()

    @routes.post("/webhook", status_code=202)
    async def webhook(request: Request) -> dict[str, str]:
        """A word from MLflow that an alias has moved; register it for `model_version_alias.created`."""
        body = await read_body(request, max_body)
        if not is_genuine(secret, request.headers, body):
            raise BadRequest(403, "The webhook's signature is not that of this server's secret, or it is too old.")
        follower.look()
        return {"status": "looking"}

    return routes
