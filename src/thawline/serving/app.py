"""The HTTP application: its routers, and errors as one sentence each."""

import asyncio
import importlib.metadata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from thawline.serving import routes
from thawline.serving.batcher import Batcher, Overloaded
from thawline.serving.bodies import Bodies
from thawline.serving.classifying import AppOptions, Classifying
from thawline.serving.follower import Follower
from thawline.serving.guard import Guard
from thawline.serving.metrics import Metrics
from thawline.serving.requests import BadRequest
from thawline.serving.routes.predict import PREDICT_BODIES
from thawline.serving.shadow import Shadow

__all__ = ["AppOptions", "create_app"]


def create_app(follower: Follower, options: AppOptions, metrics: Metrics, shadow: Shadow | None = None) -> FastAPI:
    """Create the application of one process; ``follower`` must have loaded its first version, and starts with the app.

    Args:
        follower: follower of the served model.
        options: limits and secrets.
        metrics: for ``/metrics``.
        shadow: the challenger to compare with the served model, if any.
    """
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
        if shadow is not None:
            shadow.start()
        yield
        if shadow is not None:
            shadow.stop()
        await asyncio.to_thread(follower.stop)
        computing.cancel()
        batcher.close()

    app = FastAPI(
        title="Thawline",
        description="Classifies images or texts with a model from the MLflow registry.",
        version=importlib.metadata.version("thawline"),
        lifespan=lifespan,
    )
    app.add_middleware(Guard, token=options.token, allowed_hosts=options.allowed_hosts, metrics=metrics)
    bodies = Bodies(largest=options.max_body, together=options.max_bodies, seconds=options.client_seconds)
    classifying = Classifying(follower, batcher, metrics, bodies, options, shadow)
    app.include_router(routes.predict.router(classifying))
    app.include_router(routes.invocations.router(classifying))
    app.include_router(routes.inference.router(classifying))
    if options.webhook_secret is not None:
        app.include_router(routes.webhook.router(follower, options.webhook_secret, bodies))
    app.include_router(routes.health.router(follower))
    app.include_router(routes.metrics.router(follower, metrics))
    app.include_router(routes.page.router())
    _describe(app, follower)
    _answer_errors(app, metrics)
    return app


def _describe(app: FastAPI, follower: Follower) -> None:
    """Make the OpenAPI schema describe the request bodies that the current model accepts."""

    def openapi() -> dict[str, Any]:
        """Generate the schema for each request, because a new version may be of another kind."""
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schema["paths"]["/predict"]["post"]["requestBody"] = {
            "required": True,
            "content": PREDICT_BODIES[follower.model.kind],
        }
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _answer_errors(app: FastAPI, metrics: Metrics) -> None:
    """Answer errors with a status and one sentence."""

    @app.exception_handler(BadRequest)
    async def bad_request(request: Request, error: BadRequest) -> JSONResponse:
        too_slow = {"Connection": "close"} if error.status == 408 else None
        return JSONResponse({"error": str(error)}, error.status, too_slow)

    @app.exception_handler(RequestValidationError)
    async def wrong_option(request: Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        return JSONResponse({"error": f"{problem['loc'][-1]}: {problem['msg']}, got {problem['input']!r}."}, 400)

    @app.exception_handler(HTTPException)
    async def no_such_page(request: Request, error: HTTPException) -> JSONResponse:
        sentence = f"{error.detail}: {request.method} {request.url.path}. See /docs for the available paths."
        return JSONResponse({"error": sentence}, error.status_code, error.headers)

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, error: Overloaded) -> JSONResponse:
        metrics.refuse()
        return JSONResponse({"error": "The server is busy: try again in a second."}, 503, {"Retry-After": "1"})
