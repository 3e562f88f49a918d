"""``GET /``: the page on which people try the model."""

from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

__all__ = ["router"]


def router() -> APIRouter:
    """The route of the page."""
    routes = APIRouter()

    @routes.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        return resources.files("thawline.serving").joinpath("page.html").read_text(encoding="utf-8")

    return routes
