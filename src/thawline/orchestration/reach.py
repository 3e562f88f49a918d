"""What a flow can do without when Prefect's API is lost: its pages in the UI, and its final state."""

import functools
import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import httpx

__all__ = ["keeps_its_value", "page", "value_of"]

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")
_log = logging.getLogger("thawline.orchestration")
_values: ContextVar[list[Any] | None] = ContextVar("values", default=None)


class _Reach:
    lost = False
    """Whether it has stopped answering: Prefect's client would try for a minute each time."""


def page(publish: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """A function that puts something into Prefect's UI: a flow continues if that fails, and warns once."""

    @functools.wraps(publish)
    def publish_if_reached(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        if not _Reach.lost:
            try:
                publish(*args, **kwargs)
            except httpx.HTTPError as error:
                _lose(error)

    return publish_if_reached


def keeps_its_value(function: Callable[Parameters, Value]) -> Callable[Parameters, Value]:
    """A flow's function whose value :func:`value_of` finds, even if Prefect cannot be told that the flow has ended.

    Clusters are sent the flow by value: it reaches the context variable, which cannot be pickled, by a function's name.
    """

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Value:
        value = function(*args, **kwargs)
        keep(value)
        return value

    return call


def keep(value: object) -> None:
    """Have :func:`value_of` find this."""
    values = _values.get()
    if values is not None:
        values.append(value)


def value_of(run: Callable[[], Value]) -> Value:
    """The value of a flow that is run, also where the API is lost after its last step."""
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
        _log.warning("Prefect's API does not answer (%s): the search continues, and Prefect's UI lacks the rest", error)
    _Reach.lost = True
