"""Whether the process answers, what it serves, and with what."""

import importlib.metadata
from typing import Any

from fastapi import APIRouter

from thawline.serving.follower import Follower

__all__ = ["router"]


def router(follower: Follower) -> APIRouter:
    """The routes of probes, and of people who ask what runs."""
    routes = APIRouter()

    @routes.get("/health")
    @routes.get("/ping", include_in_schema=False)
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @routes.get("/ready")
    async def ready() -> dict[str, Any]:
        """What is served, and whether the registry says something else that cannot be served."""
        return {
            "ready": True,
            "model": follower.model.name,
            "version": follower.model.version,
            "kind": follower.model.kind,
            "refused": follower.refused,
            "registry_error": follower.registry_error,
        }

    @routes.get("/version")
    async def version() -> dict[str, str]:
        """Versions of the model and of what serves it."""
        libraries = {name: importlib.metadata.version(name) for name in ("thawline", "torch", "mlflow")}
        return {
            "model": follower.model.name,
            "version": follower.model.version,
            "kind": follower.model.kind,
            "device": follower.model.device,
            **libraries,
        }

    return routes
