"""``POST /invocations``: MLflow's scoring protocol."""

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from thawline.registry.names import COLUMNS
from thawline.serving.classifying import Classifying
from thawline.serving.requests import BadRequest, SentItem, check_values
from thawline.serving.served import ServedModel

__all__ = ["router"]


def router(classifying: Classifying) -> APIRouter:
    """The route for MLflow clients."""
    routes = APIRouter()

    @routes.post("/invocations")
    async def invocations(request: Request) -> Response:
        """MLflow's scoring protocol, as in `mlflow models serve`."""
        async with classifying.bodies.read(request) as body:
            model = classifying.model
            content_type = request.headers.get("content-type", "")
            items = await asyncio.to_thread(_items, model, bytes(body), content_type, classifying.options.max_items)
            sent = [SentItem(f"Row {index}", item) for index, item in enumerate(items)]
            answers = await classifying(request, model, sent)
        return JSONResponse({"predictions": [model.row(answer) for answer in answers]})

    return routes


def _items(model: ServedModel, body: bytes, content_type: str, max_items: int) -> list[bytes | str]:
    """Parse with MLflow, whose parsers may raise any exception on unexpected input: all count as client errors."""
    check_values(body, content_type.partition(";")[0].strip().lower(), max_items=max_items)
    try:
        items = model.items_in(body, content_type)
    except ValueError as error:
        raise BadRequest(400, f"The request cannot be read: {error}") from None
    except RecursionError:
        raise BadRequest(400, "The request cannot be read: its values are nested too deeply.") from None
    except Exception as error:
        raise BadRequest(400, f"The request cannot be read: {type(error).__name__}.") from None
    if not items:
        raise BadRequest(400, f"There is no {COLUMNS[model.kind]} in the request.")
    return items
