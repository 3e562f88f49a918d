"""A worker serves one call after the other, and its end is told apart from its answer."""

import os
from collections.abc import Callable
from multiprocessing import active_children
from typing import Any

import pytest

from thawline.exceptions import ThawlineError
from thawline.search import worker
from thawline.search.worker import WorkerCrashed, WorkStopped, call_in_worker

pytestmark = pytest.mark.xdist_group("processes")


def _pid(send: Callable[[Any], Any]) -> int:
    return os.getpid()


def _raise(send: Callable[[Any], Any]) -> None:
    raise ThawlineError("a rule, a value and the next step")


def _exit(code: int, send: Callable[[Any], Any]) -> None:
    os._exit(code)


def _ask(value: int, send: Callable[[Any], Any]) -> Any:
    return send(value), send(value + 1)


def test_a_worker_is_used_again_and_answers_from_another_process() -> None:
    first = call_in_worker(_pid)
    assert first != os.getpid()
    assert call_in_worker(_pid) == first


def test_a_known_error_is_raised_here_and_the_worker_stays() -> None:
    pid = call_in_worker(_pid)
    with pytest.raises(ThawlineError, match="a rule, a value and the next step"):
        call_in_worker(_raise)
    assert call_in_worker(_pid) == pid


def test_a_worker_that_ends_is_a_crash_with_its_exit_code_and_the_next_call_has_another() -> None:
    pid = call_in_worker(_pid)
    with pytest.raises(WorkerCrashed, match="ended with 7"):
        call_in_worker(_exit, 7)
    assert call_in_worker(_pid) != pid


def test_messages_are_answered_in_order() -> None:
    assert call_in_worker(_ask, 4, on_message=lambda value: 2 * value) == (8, 10)


def test_after_a_stop_nothing_runs_and_nobody_is_left() -> None:
    call_in_worker(_pid)
    worker.stop_workers()
    assert not [process for process in active_children() if process.name == "thawline-worker"]
    with pytest.raises(WorkStopped):
        call_in_worker(_pid)
