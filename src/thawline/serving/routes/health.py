"""Whether the process answers, what it serves, and with what."""

import importlib.metadata
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from thawline.serving.follower import Follower

__all__ = ["router"]

_DISTRIBUTIONS = {
    "pytorch": "torch",
    "pytorch-compiled": "torch",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "openvino-bf16": "openvino",
}
"""Of each engine, as package indexes name it."""


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
            "engine": follower.model.engine,
            "engines": [asdict(tried) for tried in follower.model.engines],
            "refused": follower.refused,
            "registry_error": follower.registry_error,
        }

    @routes.get("/version")
    async def version() -> dict[str, Any]:
        """Versions of the model and of what serves it."""
        used = dict.fromkeys(("thawline", "torch", "mlflow", _DISTRIBUTIONS[follower.model.engine]))
        libraries = {name: importlib.metadata.version(name) for name in used}
        return {
            "model": follower.model.name,
            "version": follower.model.version,
            "kind": follower.model.kind,
            "classes": follower.model.classes,
            "tested": follower.model.tested,
            "device": follower.model.device,
            "engine": follower.model.engine,
            "engines": [asdict(tried) for tried in follower.model.engines],
            **libraries,
        }

    return routes
