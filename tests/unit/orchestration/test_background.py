"""A function that runs in a thread while a flow continues."""

import threading
from concurrent.futures import Future
from contextvars import ContextVar

import pytest

from thawline.exceptions import DataError, TrackingError
from thawline.orchestration.background import in_background

_seen: ContextVar[str] = ContextVar("seen", default="nothing")


def test_the_block_runs_meanwhile_and_gets_the_result_in_its_own_context() -> None:
    go_on = threading.Event()

    def wait(name: str) -> tuple[str, str, bool]:
        assert go_on.wait(30)
        return name, _seen.get(), threading.current_thread() is threading.main_thread()

    token = _seen.set("the caller's")
    with in_background(wait, name="store") as waiting:
        assert not waiting.done()
        go_on.set()
        assert waiting.result(30) == ("store", "the caller's", False)
    _seen.reset(token)


def test_what_the_function_raises_is_raised_by_who_asks_for_its_result() -> None:
    def fail() -> None:
        raise TrackingError("the store cannot be reached")

    with in_background(fail) as failing, pytest.raises(TrackingError, match="cannot be reached"):
        failing.result(30)


def test_an_error_of_the_block_waits_for_the_function_and_ctrl_c_does_not() -> None:
    finish = threading.Event()
    futures: list[Future[bool]] = []

    def interrupted_by(error: type[BaseException]) -> None:
        with in_background(finish.wait, 30) as future:
            futures.append(future)
            raise error

    with pytest.raises(KeyboardInterrupt):
        interrupted_by(KeyboardInterrupt)
    assert not futures[0].done(), "it may be waiting for a server that does not answer"
    threading.Timer(0.2, finish.set).start()
    with pytest.raises(DataError):
        interrupted_by(DataError)
    assert futures[1].done()
    futures[0].result(30)
