"""Tasks of flows, with unchanged arguments."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

import prefect
from prefect.cache_policies import NO_CACHE
from prefect.utilities.annotations import opaque

__all__ = ["task"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def task(name: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Make a function a Prefect task that a flow calls and waits for, without caching its result.

    By default, Prefect searches all arguments of a task for results of other tasks, item by item and twice: for the
    manifest of 200,000 images, that takes nine seconds per task. Here it checks only the arguments themselves.

    Args:
        name: in Prefect's UI.
    """

    def decorated(function: Callable[_P, _R]) -> Callable[_P, _R]:
        made = cast("Callable[..., _R]", prefect.task(name=name, cache_policy=NO_CACHE)(function))

        @wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            return made(*map(opaque, args), **{key: opaque(value) for key, value in kwargs.items()})

        return call

    return decorated
