"""Work in a process of its own, so that its death, its memory and its crashes stay its own.

Processes come from a fork server that has the heavy libraries loaded, and serve one call after another: the first
starts in a second or two instead of twenty, the next at once. A call may report over a pipe and wait for the answer, so
Optuna's study stays with the driver. When the driver dies, its workers end themselves.
"""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from typing import Any, TypeAlias

from thawline.exceptions import ThawlineError

__all__ = ["WorkStopped", "WorkerCrashed", "call_in_worker", "prepare_workers", "stop_workers"]

_Process: TypeAlias = ForkServerProcess | SpawnProcess
_Send: TypeAlias = Callable[[Any], Any]

_LEAVE_SECONDS = 5.0
_PRELOAD = ["thawline.search.preload"]


class WorkerCrashed(Exception):
    """The process ended without a result."""

    def __init__(self, exit_code: int | None) -> None:
        cause = f"was killed by signal {-exit_code}" if exit_code and exit_code < 0 else f"ended with {exit_code}"
        super().__init__(f"its process {cause}")
        self.exit_code = exit_code


class WorkStopped(Exception):
    """The driver is leaving; what was begun is not over and goes on when the search is run again."""


_stopping = threading.Event()
_idle: list["_Worker"] = []
_idle_lock = threading.Lock()


def stop_workers() -> None:
    """End all calls that run now, so that nobody waits for their last epoch, and all processes that wait for one."""
    _stopping.set()
    with _idle_lock:
        waiting, _idle[:] = list(_idle), []
    for worker in waiting:
        worker.release()


def prepare_workers() -> None:
    """Start the fork server now, so that it loads the libraries while the data is being read."""
    _stopping.clear()
    _start_server()


def call_in_worker(
    function: Callable[..., Any], *args: Any, on_message: _Send = lambda message: None, poll_seconds: float = 0.2
) -> Any:
    """Run ``function(*args, send)`` in another process and wait for what it returns.

    The wait is a poll, so that whoever calls can be interrupted (Prefect's time-outs and cancellation); the process is
    ended when this function leaves without a result, and kept for the next call otherwise.

    Args:
        function: of a module, since its name is what is sent. It may call ``send(message)``, which returns the answer.
        args: values that can be pickled.
        on_message: answers messages.
        poll_seconds: how soon an interruption is noticed.

    Raises:
        WorkerCrashed: if the process dies without a result.
        WorkStopped: after :func:`stop_workers`.
        ThawlineError: what ``function`` raised.
    """
    worker = _take()
    try:
        worker.connection.send((function, args))
        kind, value = worker.converse(on_message, poll_seconds)
    except BaseException:
        worker.end()
        raise
    _give_back(worker)
    if kind == "error":
        raise value
    return value


class _Worker:
    """A process and the driver's end of its pipe."""

    def __init__(self) -> None:
        _start_server()
        self.connection, theirs = multiprocessing.Pipe()
        self.process: _Process = _context().Process(target=_serve, args=(theirs,), name="thawline-worker", daemon=True)
        self.process.start()
        theirs.close()

    def converse(self, on_message: _Send, poll_seconds: float) -> tuple[str, Any]:
        while True:
            if _stopping.is_set():
                raise WorkStopped
            try:
                if not self.connection.poll(poll_seconds):
                    continue
                kind, value = self.connection.recv()
                if kind != "message":
                    return kind, value
            except (EOFError, OSError):
                raise self._crash() from None
            answer = on_message(value)
            try:
                self.connection.send(answer)
            except OSError:
                raise self._crash() from None

    def release(self) -> None:
        """Let an idle process leave by itself."""
        self.connection.close()
        self.process.join(_LEAVE_SECONDS)
        self.end()

    def end(self) -> None:
        self.connection.close()
        if self.process.is_alive():
            self.process.kill()
        self.process.join()

    def _crash(self) -> WorkerCrashed:
        self.process.join()
        return WorkerCrashed(self.process.exitcode)


def _take() -> _Worker:
    with _idle_lock:
        while _idle:
            worker = _idle.pop()
            if worker.process.is_alive():
                return worker
            worker.end()
    return _Worker()


def _give_back(worker: _Worker) -> None:
    if _stopping.is_set():
        worker.end()
        return
    with _idle_lock:
        _idle.append(worker)


def _start_server() -> None:
    context = _context()
    if isinstance(context, ForkServerContext):
        context.set_forkserver_preload(_PRELOAD)
        from multiprocessing import forkserver

        forkserver.ensure_running()


def _context() -> ForkServerContext | SpawnContext:
    if "forkserver" in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")


def _serve(connection: Connection) -> None:
    """The child: one call after another, until the driver closes the pipe."""
    _end_with_parent()
    # Ctrl-C reaches every process of a terminal; the driver hears it too, and ends its trials.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def send(message: Any) -> Any:
        connection.send(("message", message))
        return connection.recv()

    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            return
        try:
            answer = ("result", function(*args, send))
        except ThawlineError as error:
            answer = ("error", error)
        connection.send(answer)
        del function, args, answer
        gc.collect()  # a trial's tensors go before the next one's come


def _end_with_parent() -> None:
    """A trial whose driver died must not train on, holding the device and writing to the same files."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
