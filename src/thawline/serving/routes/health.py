"""Health probes, readiness and versions."""

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
"""The distribution of each engine, by its name on package indexes."""


def router(follower: Follower) -> APIRouter:
    """The routes for health probes and versions."""
    routes = APIRouter()

    @routes.get("/health")
    @routes.get("/ping", include_in_schema=False)
    async def health() -> dict[str, str]:
        """Liveness: whether the process responds."""
        return {"status": "ok"}

    @routes.get("/ready")
    async def ready() -> dict[str, Any]:
        """Readiness: the served version, and any newer version that was refused."""
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
        """Versions of the model and of the libraries that serve it."""
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
