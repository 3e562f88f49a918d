"""Run a function in a thread while the flow continues."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from typing import ParamSpec, TypeVar

__all__ = ["in_background"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


@contextmanager
def in_background(function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> Iterator[Future[_R]]:
    """Call a function in a thread for the block, which gets its future.

    If the block raises an exception, the function is waited for, so that it does not work on files that the caller
    removes. Ctrl-C does not wait: the function may be waiting for an unavailable server.
    """
    future: Future[_R] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)  # raised by whoever asks for the result

    threading.Thread(target=copy_context().run, args=(run,), name="thawline-background", daemon=True).start()
    try:
        yield future
    except Exception:
        future.exception()
        raise
