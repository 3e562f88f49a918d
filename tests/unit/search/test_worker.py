"""A worker serves one call after the other, and its end is told apart from its answer."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import psutil
import pytest

from thawline.exceptions import StudyError, ThawlineError
from thawline.search import conversation, worker
from thawline.search.events import Note, Phase, emit, watching
from thawline.search.steps import run_step, try_step
from thawline.search.worker import Link, WorkerCrashed, WorkStopped, call_in_worker, call_in_workers, load_meanwhile
from thawline.training import Interrupted

pytestmark = pytest.mark.xdist_group("processes")


def _pid(send: Callable[[Any], Any]) -> int:
    return os.getpid()


def _raise(send: Callable[[Any], Any]) -> None:
    raise ThawlineError("a rule, a value and the next step")


def _exit(code: int, send: Callable[[Any], Any]) -> None:
    os._exit(code)


def _work_until_asked(link: Link) -> None:
    while not link.alive():
        link("working")
    raise Interrupted


def _hang(link: Link) -> None:
    link("working")
    threading.Event().wait()


def _tell(count: int) -> int:
    emit(Note("said by a step"))
    emit(Phase("counting", count, 10))
    return os.getpid()


def _end(code: int) -> int:
    os._exit(code)


def _refuse() -> int:
    raise StudyError("a rule, a value and the next step")


def _length(text: str) -> int:
    return len(text)


def _has_loaded(module: str) -> bool:
    return module in sys.modules


def _add_path(path: str) -> int:
    sys.path.append(path)
    return os.getpid()


def _ask(value: int, send: Callable[[Any], Any]) -> Any:
    return send(value), send(value + 1)


def _devices(send: Callable[[Any], Any]) -> tuple[int, str | None]:
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


def test_a_worker_has_the_devices_of_who_calls_and_serves_no_call_of_other_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    first, seen = call_in_worker(_devices)
    assert seen == "0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    second, seen = call_in_worker(_devices)
    assert (seen, second != first) == ("1", True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert call_in_worker(_devices)[1] is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert call_in_worker(_devices) == (first, "0"), "a control: of the same devices it is used again"


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


def test_a_worker_that_is_asked_to_leave_leaves_by_itself_within_its_grace() -> None:
    def stop(message: object) -> None:
        if not worker._stopping.is_set():
            worker.stop_workers(60)

    with pytest.raises(WorkStopped):
        call_in_worker(_work_until_asked, on_message=stop)
    assert not [process for process in active_children() if process.name == "thawline-worker"]


def test_a_worker_that_does_not_leave_within_its_grace_is_ended() -> None:
    with pytest.raises(WorkStopped):
        call_in_worker(_hang, on_message=lambda message: worker.stop_workers(0.5))
    assert not [process for process in active_children() if process.name == "thawline-worker"]


def test_a_worker_that_the_system_asks_to_leave_is_a_crash_after_which_the_next_continues() -> None:
    def terminate(message: object) -> None:
        for process in active_children():
            if process.name == "thawline-worker":
                process.terminate()

    with pytest.raises(WorkerCrashed, match="was asked to leave"):
        call_in_worker(_work_until_asked, on_message=terminate)
    assert call_in_worker(_pid) != os.getpid()


def test_a_worker_that_waits_for_a_call_ends_at_once_when_it_is_asked_to() -> None:
    pid = call_in_worker(_pid)
    (process,) = [process for process in active_children() if process.pid == pid]
    process.terminate()
    process.join(30)
    assert process.exitcode == 0


def test_a_worker_that_says_nothing_for_too_long_is_ended() -> None:
    with pytest.raises(WorkerCrashed, match=r"made no progress for 0\.005 minutes"):
        call_in_worker(_hang, silent_seconds=0.3)
    assert not [process for process in active_children() if process.name == "thawline-worker"]


def test_after_a_stop_nothing_runs_and_nobody_is_left() -> None:
    call_in_worker(_pid)
    worker.stop_workers()
    assert not [process for process in active_children() if process.name == "thawline-worker"]
    with pytest.raises(WorkStopped):
        call_in_worker(_pid)


def test_what_a_step_emits_is_heard_here_and_steps_share_a_process_in_which_no_trial_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trial, seen = call_in_worker(_pid), list[Phase]()
    with caplog.at_level("INFO", "thawline"), watching(seen.append):
        step = run_step(_tell, 3, retries=0, title="counting")
    assert [record.getMessage() for record in caplog.records] == ["said by a step"]
    assert seen == [Phase("counting", 3, 10)]
    assert len({trial, step, os.getpid()}) == 3
    assert call_in_worker(_pid) == trial
    assert run_step(_tell, 4, retries=0, title="counting") == step


def test_a_step_whose_process_dies_again_and_again_is_an_error_or_left_out(caplog: pytest.LogCaptureFixture) -> None:
    ended = "its process ended with 7"
    with pytest.raises(StudyError, match=rf"packaging: {ended}.*The same command resumes"):
        run_step(_end, 7, retries=1, title="packaging")
    assert [record.getMessage() for record in caplog.records] == [f"packaging: {ended}; retrying"]
    caplog.clear()
    assert try_step(_end, 7, retries=0, title="writing the report", otherwise=0) == 0
    assert [record.getMessage() for record in caplog.records] == [f"writing the report: {ended}; skipped"]


def test_a_process_that_dies_while_a_large_call_is_sent_is_a_crash_and_the_step_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    large = "x" * 2**23  # more than a pipe holds
    step = run_step(_tell, 3, retries=0, title="counting")
    os.kill(step, signal.SIGSTOP)  # it takes nothing of what is sent
    kill = threading.Timer(1, os.kill, (step, signal.SIGKILL))
    kill.start()
    try:
        assert run_step(_length, large, retries=1, title="packaging") == len(large)
    finally:
        kill.join()
    assert "packaging: its process was killed by signal 9; retrying" in caplog.text


def test_what_later_steps_need_is_loaded_while_the_driver_does_something_else() -> None:
    rare, missing = "wave", "no_module_of_this_name"
    step = run_step(_tell, 3, retries=0, title="counting")
    assert not run_step(_has_loaded, rare, retries=0, title="looking")
    load_meanwhile([missing, rare])
    assert run_step(_has_loaded, rare, retries=0, title="looking")
    assert run_step(_tell, 3, retries=0, title="counting") == step  # what is missing has not ended it


def test_a_process_that_loads_something_ends_at_once_when_the_search_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.stop_workers()  # a new one sees the path below
    worker.prepare_workers()
    begun = tmp_path / "begun"
    (tmp_path / "endless.py").write_text(
        f"import pathlib, threading\npathlib.Path({str(begun)!r}).touch()\nthreading.Event().wait()\n"
    )
    step = run_step(_add_path, str(tmp_path), retries=0, title="looking")
    load_meanwhile(["endless"])
    while not begun.exists():  # the process is another one: there is nothing to wait for
        assert psutil.pid_exists(step)
    monkeypatch.setattr(worker, "_LEAVE_SECONDS", 60)
    worker.stop_workers()
    assert not psutil.pid_exists(step)
    worker.prepare_workers()


def test_what_a_step_refuses_is_not_left_out() -> None:
    with pytest.raises(StudyError, match="a rule, a value and the next step"):
        try_step(_refuse, retries=1, title="writing the report", otherwise=0)


def _answer(value: int, link: Link) -> int:
    return value


def _pids(link: Link) -> int:
    link(os.getpid())
    return os.getpid()


def _no_worker_is_left() -> bool:
    return not [process for process in active_children() if process.name == "thawline-worker"]


def test_functions_that_work_together_have_a_process_each_and_the_first_ones_result_is_theirs() -> None:
    seen: list[int] = []
    first = call_in_workers([(_pids, ()), (_pids, ())], on_message=seen.append)
    assert first in seen
    assert len({*seen, os.getpid()}) == 3
    assert call_in_worker(_pid) in seen, "both wait for the next call"


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([(_hang, ()), (_raise, ())], (ThawlineError, "a rule, a value and the next step")),
        ([(_raise, ()), (_hang, ())], (ThawlineError, "a rule, a value and the next step")),
        ([(_hang, ()), (_exit, (7,))], (WorkerCrashed, "its process ended with 7")),
        ([(_exit, (7,)), (_hang, ())], (WorkerCrashed, "its process ended with 7")),
    ],
    ids=["another fails", "the first fails", "another dies", "the first dies"],
)
def test_when_one_of_them_fails_or_dies_the_others_are_ended(
    monkeypatch: pytest.MonkeyPatch, calls: Any, expected: tuple[type[Exception], str]
) -> None:
    monkeypatch.setattr(conversation, "_REST_SECONDS", 0.3)
    with pytest.raises(expected[0], match=expected[1]):
        call_in_workers(calls)
    assert _no_worker_is_left()


def test_one_that_does_not_come_back_when_the_first_has_a_result_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "_REST_SECONDS", 0.3)
    assert call_in_workers([(_answer, (5,)), (_hang, ())]) == 5
    assert len([process for process in active_children() if process.name == "thawline-worker"]) == 1


def test_when_they_are_asked_to_leave_all_do() -> None:
    def stop(message: object) -> None:
        if not worker._stopping.is_set():
            worker.stop_workers(60)

    with pytest.raises(WorkStopped):
        call_in_workers([(_work_until_asked, ()), (_work_until_asked, ())], on_message=stop)
    assert _no_worker_is_left()


def test_they_are_ended_only_when_all_of_them_are_silent() -> None:
    with pytest.raises(WorkerCrashed, match="made no progress"):
        call_in_workers([(_hang, ()), (_hang, ())], silent_seconds=0.3)
    assert _no_worker_is_left()
