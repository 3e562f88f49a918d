"""``/v2``: the Open Inference Protocol."""

import asyncio
import importlib.metadata
from typing import Any

from fastapi import APIRouter, Request, Response

from thawline.serving.classifying import Classifying
from thawline.serving.inference import HEADER_LENGTH, answer, model_metadata, read_inference
from thawline.serving.requests import BadRequest
from thawline.serving.served import ServedModel

__all__ = ["router"]


def router(classifying: Classifying) -> APIRouter:
    """The routes for KServe and Triton clients; the model has the same name as in the registry."""
    routes = APIRouter(prefix="/v2")

    @routes.get("")
    async def server() -> dict[str, Any]:
        """The server, and the protocol extensions that it supports."""
        return {
            "name": "thawline",
            "version": importlib.metadata.version("thawline"),
            "extensions": ["binary_tensor_data"],
        }

    @routes.get("/health/live")
    async def live() -> dict[str, bool]:
        """Whether the process responds."""
        return {"live": True}

    @routes.get("/health/ready")
    async def ready() -> dict[str, bool]:
        """Whether a model is served; the server listens only after it is loaded."""
        return {"ready": True}

    @routes.get("/models/{name}")
    @routes.get("/models/{name}/versions/{version}")
    async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
        """Names, types and shapes of inputs and outputs."""
        return model_metadata(_served(name, version))

    @routes.get("/models/{name}/ready")
    @routes.get("/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str | None = None) -> dict[str, Any]:
        """Whether this model is served."""
        return {"name": _served(name, version).name, "ready": True}

    @routes.post("/models/{name}/infer")
    @routes.post("/models/{name}/versions/{version}/infer")
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Classify images or texts: the input is one BYTES tensor; outputs are label, probability and probabilities."""
        async with classifying.bodies.read(request) as body:
            model = _served(name, version)
            length, most = request.headers.get(HEADER_LENGTH), classifying.options.max_items
            asked = await asyncio.to_thread(read_inference, body, length, model.kind, max_items=most)
            answers = await classifying(request, model, asked.items)
        return answer(asked, model, [each.probabilities for each in answers])

    def _served(name: str, version: str | None) -> ServedModel:
        model = classifying.model
        if name != model.name or version not in (None, model.version):
            wanted = name if version is None else f"{name} version {version}"
            raise BadRequest(404, f"This server has no model {wanted}; it serves {model.name} version {model.version}.")
        return model

    return routes
