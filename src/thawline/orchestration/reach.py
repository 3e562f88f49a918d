"""Handling of a lost connection to Prefect's API: a flow can continue without its UI pages and its final state."""

import functools
import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import httpx

__all__ = ["keep", "keeps_its_value", "page", "value_of"]

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")
_log = logging.getLogger("thawline.orchestration")
_values: ContextVar[list[Any] | None] = ContextVar("values", default=None)


class _Reach:
    lost = False
    """Whether the API has stopped responding: Prefect's client would retry for a minute each time."""


def page(publish: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Decorate a function that publishes in Prefect's UI: if it fails, the flow continues, with one warning."""

    @functools.wraps(publish)
    def publish_if_reached(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        if not _Reach.lost:
            try:
                publish(*args, **kwargs)
            except httpx.HTTPError as error:
                _lose(error)

    return publish_if_reached


def keeps_its_value(function: Callable[Parameters, Value]) -> Callable[Parameters, Value]:
    """Decorate a flow's function so that :func:`value_of` finds its value, even if its final state cannot be reported.

    Flows are pickled for clusters, which is impossible for the context variable: it is accessed through a function.
    """

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Value:
        value = function(*args, **kwargs)
        keep(value)
        return value

    return call


def keep(value: object) -> None:
    """Store a flow's value for :func:`value_of`, even if its final state cannot be reported."""
    values = _values.get()
    if values is not None:
        values.append(value)


def value_of(run: Callable[[], Value]) -> Value:
    """Run a flow and return its value, even if the API is lost after its last step."""
    values: list[Any] = []
    _Reach.lost = False
    token = _values.set(values)
    try:
        return run()
    except httpx.HTTPError as error:
        if not values:
            raise
        _lose(error)
        value: Value = values[-1]
        return value
    finally:
        _values.reset(token)


def _lose(error: Exception) -> None:
    if not _Reach.lost:
        _log.warning("Prefect's API does not respond (%s): the search continues, but Prefect's UI is incomplete", error)
    _Reach.lost = True
