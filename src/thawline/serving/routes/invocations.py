"""``POST /invocations``: MLflow's scoring protocol."""

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from thawline.registry.names import COLUMNS
from thawline.serving.classifying import Classifying
from thawline.serving.requests import BadRequest, SentItem, read_body

__all__ = ["router"]


def router(classifying: Classifying) -> APIRouter:
    """The route of whoever classifies."""
    routes = APIRouter()

    @routes.post("/invocations")
    async def invocations(request: Request) -> Response:
        """MLflow's scoring protocol, as `mlflow models serve` speaks it."""
        body = await read_body(request, classifying.options.max_body)
        model = classifying.model
        kind = request.headers.get("content-type", "")
        try:
            items = await asyncio.to_thread(model.items_in, body, kind)
        except ValueError as error:
            raise BadRequest(400, f"The request cannot be read: {error}") from None
        if not items:
            raise BadRequest(400, f"There is no {COLUMNS[model.kind]} in the request.")
        answers = await classifying(model, [SentItem(f"Row {index}", item) for index, item in enumerate(items)])
        return JSONResponse({"predictions": [model.row(answer) for answer in answers]})

    return routes
