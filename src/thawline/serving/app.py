"""The HTTP application: routes, answers, and what goes wrong said in one sentence."""

import asyncio
import importlib.metadata
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from thawline.data import DataKind
from thawline.registry.names import COLUMNS
from thawline.serving.batcher import Batcher, Overloaded, UnreadableItem
from thawline.serving.follower import Follower
from thawline.serving.guard import Guard
from thawline.serving.metrics import Metrics
from thawline.serving.requests import BadRequest, SentItem, items_of, read_body
from thawline.serving.served import ServedModel
from thawline.serving.webhook import is_genuine

__all__ = ["AppOptions", "create_app"]


@dataclass(frozen=True)
class AppOptions:
    """What one process of the server needs to know."""

    max_batch: int = 32
    max_delay: float = 0.002
    """Seconds."""
    max_waiting: int = 512
    """Images or texts in the server at once."""
    max_body: int = 32_000_000
    """Bytes."""
    token: str | None = None
    """What ``Authorization: Bearer`` must say; ``None`` asks for nothing."""
    webhook_secret: str | None = None
    """What MLflow signs its webhooks with; ``None`` takes none."""


class ItemPrediction(BaseModel):
    """What the model says about one image or text."""

    label: str
    probability: float
    probabilities: dict[str, float]
    """Of the most probable classes, the best first."""


class PredictAnswer(BaseModel):
    """The answer to ``POST /predict``: one prediction for each image or text, in order."""

    model: str
    version: str
    predictions: list[ItemPrediction]


def create_app(follower: Follower, options: AppOptions, metrics: Metrics) -> FastAPI:
    """The application of one process. ``follower`` has loaded its first version; it begins to follow with the app."""
    batcher = Batcher(
        max_batch=options.max_batch,
        max_delay=options.max_delay,
        max_waiting=options.max_waiting,
        on_batch=metrics.batch,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        computing = asyncio.create_task(batcher.run())
        follower.start()
        yield
        await asyncio.to_thread(follower.stop)
        computing.cancel()
        batcher.close()

    app = FastAPI(
        title="Thawline",
        description="Classifies images or texts by a model from the MLflow registry.",
        version=importlib.metadata.version("thawline"),
        lifespan=lifespan,
    )

    def openapi() -> dict[str, Any]:
        """Made anew for who asks, because the model that is followed may change from one kind to the other."""
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schema["paths"]["/predict"]["post"]["requestBody"] = {
            "required": True,
            "content": _PREDICT_BODIES[follower.model.kind],
        }
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
    app.add_middleware(Guard, token=options.token, metrics=metrics)

    @app.exception_handler(BadRequest)
    async def bad_request(request: Request, error: BadRequest) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status)

    @app.exception_handler(RequestValidationError)
    async def wrong_option(request: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        return JSONResponse({"error": f"{problem['loc'][-1]}: {problem['msg']}, got {problem['input']!r}."}, 400)

    @app.exception_handler(HTTPException)
    async def no_such_page(request: Request, error: HTTPException) -> JSONResponse:
        sentence = f"{error.detail}: {request.method} {request.url.path}. What there is, /docs lists."
        return JSONResponse({"error": sentence}, error.status_code, error.headers)

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, error: Overloaded) -> JSONResponse:
        metrics.refuse()
        return JSONResponse({"error": "The server is busy: try again in a second."}, 503, {"Retry-After": "1"})

    async def classify(model: ServedModel, items: list[SentItem]) -> list[list[float]]:
        try:
            with metrics.inside(len(items)):
                return await batcher.classify(model, [item.content for item in items])
        except UnreadableItem as error:
            raise BadRequest(400, f"{items[error.index].name} cannot be read: {error}.") from None

    @app.post("/predict", response_model=PredictAnswer)
    async def predict(request: Request, top_k: Annotated[int, Query(ge=1, le=10_000)] = 5) -> PredictAnswer:
        """Classify one or several. Images: multipart files, a raw body of type image/*, or JSON with base64. Texts:
        JSON, or a body of type text/plain."""
        body = await read_body(request, options.max_body)
        model = follower.model  # one for the whole request: the next one may be of another kind
        answers = await classify(
            model, await items_of(request.headers, body, model.kind, max_items=options.max_waiting)
        )
        return PredictAnswer(
            model=model.name,
            version=model.version,
            predictions=[_prediction(model.classes, answer, top_k) for answer in answers],
        )

    @app.post("/invocations")
    async def invocations(request: Request) -> Response:
        """MLflow's scoring protocol, as `mlflow models serve` speaks it."""
        body = await read_body(request, options.max_body)
        model = follower.model
        kind = request.headers.get("content-type", "")
        try:
            items = await asyncio.to_thread(model.items_in, body, kind)
        except ValueError as error:
            raise BadRequest(400, f"The request cannot be read: {error}") from None
        if not items:
            raise BadRequest(400, f"There is no {COLUMNS[model.kind]} in the request.")
        answers = await classify(model, [SentItem(f"Row {index}", item) for index, item in enumerate(items)])
        return JSONResponse({"predictions": [model.row(answer) for answer in answers]})

    if options.webhook_secret is not None:

        @app.post("/webhook", status_code=202)
        async def webhook(request: Request) -> dict[str, str]:
            """A word from MLflow that an alias has moved; register it for `model_version_alias.created`."""
            body = await read_body(request, options.max_body)
            if not is_genuine(options.webhook_secret or "", request.headers, body):
                raise BadRequest(403, "The webhook's signature is not that of this server's secret, or it is too old.")
            follower.look()
            return {"status": "looking"}

    @app.get("/health")
    @app.get("/ping", include_in_schema=False)
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/ready")
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

    @app.get("/version")
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

    @app.get("/metrics")
    async def prometheus() -> Response:
        """Counts and times in Prometheus' text format."""
        return Response(*metrics.exposition(follower.model.version))

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        return resources.files("thawline.serving").joinpath("page.html").read_text(encoding="utf-8")

    return app


def _prediction(classes: tuple[str, ...], probabilities: list[float], top_k: int) -> ItemPrediction:
    ranked = sorted(zip(classes, probabilities, strict=True), key=lambda each: -each[1])[:top_k]
    return ItemPrediction(label=ranked[0][0], probability=ranked[0][1], probabilities=dict(ranked))


_ONE_IMAGE = {"type": "string", "format": "binary"}
_BASE64 = {"type": "string", "format": "byte"}
_STRING = {"type": "string"}


def _one_or_several(kind: DataKind, schema: dict[str, str]) -> dict[str, Any]:
    """JSON with one item, or with a list of them."""
    forms: dict[str, Mapping[str, Any]] = {COLUMNS[kind]: schema, kind: {"type": "array", "items": schema}}
    return {"schema": {"oneOf": [_object(name, form) for name, form in forms.items()]}}


def _object(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: schema}, "required": [name], "additionalProperties": False}


_PREDICT_BODIES: dict[DataKind, dict[str, Any]] = {
    "images": {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"file": {"type": "array", "items": _ONE_IMAGE}}}
        },
        "image/*": {"schema": _ONE_IMAGE},
        "application/json": _one_or_several("images", _BASE64),
    },
    "texts": {
        "application/json": _one_or_several("texts", _STRING),
        "text/plain": {"schema": _STRING},
    },
}
