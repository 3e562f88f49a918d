"""Tasks of flows, which get their arguments as they are."""

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
    """Make a function a task of Prefect, which a flow calls and waits for, and whose result is not cached.

    Prefect looks for results of other tasks in all that a task is given, item by item and twice: for the manifest of
    200,000 images that is nine seconds for each task. Here it looks at the arguments themselves alone.

    Args:
        name: by which Prefect's UI shows it.
    """

    def decorated(function: Callable[_P, _R]) -> Callable[_P, _R]:
        made = cast("Callable[..., _R]", prefect.task(name=name, cache_policy=NO_CACHE)(function))

        @wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            return made(*map(opaque, args), **{key: opaque(value) for key, value in kwargs.items()})

        return call

    return decorated
