"""Work in a separate process, so that a crash or a memory leak ends only that process.

Processes are forked from a server that has the heavy libraries loaded, and serve one call after another: the first
starts in a second or two instead of twenty, the next at once. A call may send messages over a pipe and wait for
replies, so Optuna's study stays in the driver. When the driver dies, its workers exit. When it stops, they are asked to
leave within some seconds. A worker that is silent for too long is killed.
"""

import importlib
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess, SpawnProcess
from types import FrameType
from typing import Any, TypeAlias

from thawline import logs
from thawline.exceptions import ThawlineError
from thawline.processes import main_module_hidden, start_fork_server, worker_context
from thawline.search.conversation import Conversation, WorkerCrashed, WorkStopped
from thawline.search.events import Event, Note, emit, tell_driver
from thawline.training import Interrupted
from thawline.training.runtime import release_memory

__all__ = [
    "Link",
    "WorkStopped",
    "WorkerCrashed",
    "call_in_worker",
    "call_in_workers",
    "call_with_retries",
    "load_meanwhile",
    "prepare_workers",
    "stop_workers",
    "workers_dismissed",
]

_Process: TypeAlias = ForkServerProcess | SpawnProcess
_Send: TypeAlias = Callable[[Any], Any]

_LEAVE_SECONDS = 5.0
_OF_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
"""Environment variables with a process's devices, read once, at its first use of a device. On a cluster they differ
between tasks."""
_SIGN_SECONDS = 1.0
"""Minimum interval between a worker's heartbeats."""


class Link:
    """The connection from a function in a worker to its driver."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._sending = connection, threading.Lock()
        self._said = time.monotonic()

    def __call__(self, message: Any) -> Any:
        """Send a message and wait for the reply."""
        self._send("message", message)
        return self._connection.recv()

    def tell(self, event: Event) -> None:
        """Let the driver emit an event; from any thread."""
        self._send("event", event)

    def alive(self) -> bool:
        """Send a heartbeat; returns whether this process was asked to leave."""
        if time.monotonic() - self._said >= _SIGN_SECONDS:
            self._send("alive", None)
        return _leaving.is_set()

    def _send(self, kind: str, value: Any) -> None:
        with self._sending:
            self._connection.send((kind, value))
        self._said = time.monotonic()


class _Here:
    """The link of a call within this process."""

    def __init__(self, on_message: _Send) -> None:
        self._on_message = on_message

    def __call__(self, message: Any) -> Any:
        return self._on_message(message)

    def alive(self) -> bool:
        return False


_leaving = threading.Event()
"""In a worker: set when the driver or the system asks it to leave."""
_stopping = threading.Event()
_grace_ends = 0.0
_idle: list["_Worker"] = []
_idle_lock = threading.Lock()


def stop_workers(grace_seconds: float = 0.0) -> None:
    """Ask all running calls to leave, kill them after ``grace_seconds``, and end all idle processes."""
    global _grace_ends  # noqa: PLW0603  read by the threads that wait for calls
    _grace_ends = time.monotonic() + grace_seconds
    _stopping.set()
    with _idle_lock:
        waiting, _idle[:] = list(_idle), []
    for worker in waiting:
        worker.release()


@contextmanager
def workers_dismissed(grace_seconds: float) -> Iterator[None]:
    """End all workers after the block. On an interruption, running trials are asked to write a checkpoint and leave.

    Args:
        grace_seconds: time for that, before they are killed.
    """
    try:
        yield
    except BaseException:
        stop_workers(grace_seconds)
        raise
    stop_workers()


def prepare_workers() -> None:
    """Start the fork server now, so that it loads libraries while the data is being read."""
    _stopping.clear()
    start_fork_server()


def call_in_worker(
    function: Callable[..., Any],
    *args: Any,
    on_message: _Send = lambda message: None,
    silent_seconds: float | None = None,
    poll_seconds: float = 0.2,
    apart: bool = False,
) -> Any:
    """Run ``function(*args, link)`` in another process, and return its result.

    Waiting polls, so that the caller can be interrupted (Prefect's time-outs and cancellation). The process is kept for
    the next call, or ended if this function leaves without a result.

    Args:
        function: a module-level function, as it is sent by name. It may call ``link(message)``, which returns the
            reply, and ``link.alive()``, and may raise :class:`Interrupted` when that asks it to leave. The driver emits
            its events.
        args: picklable values.
        on_message: returns the reply to a message.
        silent_seconds: a process that is silent for this long is killed; ``None`` waits indefinitely.
        poll_seconds: polling interval, which bounds the delay of an interruption.
        apart: whether to use a process that serves only such calls, because trials change seeds, switches and threads.

    Raises:
        WorkerCrashed: if the process dies or leaves without a result, or is killed for its silence.
        WorkStopped: after :func:`stop_workers`.
        ThawlineError: what ``function`` raised.
    """
    if multiprocessing.current_process().daemon:  # Dask's workers must not have children
        return function(*args, _Here(on_message))
    return call_in_workers(
        [(function, args)],
        on_message=on_message,
        silent_seconds=silent_seconds,
        poll_seconds=poll_seconds,
        apart=apart,
    )


def call_in_workers(
    calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]],
    *,
    on_message: _Send = lambda message: None,
    silent_seconds: float | None = None,
    poll_seconds: float = 0.2,
    apart: bool = False,
) -> Any:
    """Run functions that work together, each in its own process; returns the result of the first.

    They end together: when one dies or fails, the others, which may be waiting for it, are killed after a few seconds.

    Args:
        calls: functions with their arguments, as in :func:`call_in_worker`.
        on_message: returns the reply to a message of any of them.
        silent_seconds: kill all when all are silent for this long: one that hangs blocks the others.
        poll_seconds: see there.
        apart: see there.

    Raises:
        WorkerCrashed: if one of the processes dies or leaves, or all are killed for their silence.
        WorkStopped: after :func:`stop_workers`.
        ThawlineError: the first error raised, unless the first function returned.
    """
    workers: list[_Worker] = []
    try:
        for function, args in calls:
            workers.append(_take(apart))
            workers[-1].call(function, args)
        talk = Conversation(workers, on_message, silent_seconds, lambda: _grace_ends if _stopping.is_set() else None)
        answers = talk.hold(poll_seconds)
        kind, value = talk.answer()
        if kind == "left":
            raise WorkStopped if _stopping.is_set() else WorkerCrashed("its process was asked to leave")
    except BaseException:
        for worker in workers:
            worker.end()
        raise
    for worker in workers:
        if len(workers) == 1 or (worker in answers and answers[worker][0] == "result"):
            _give_back(worker)
        else:  # it may be waiting for another that has failed
            worker.end()
    if kind == "error":
        raise value
    return value


def load_meanwhile(modules: Sequence[str]) -> None:
    """Import modules in the idle process for calls ``apart``, without waiting; its next call waits for them.

    Args:
        modules: full names; a failed import is left to the call that needs it.
    """
    with _idle_lock:
        for worker in _idle:
            if worker.apart:
                worker.load(modules)


def call_with_retries(function: Callable[..., Any], *args: Any, retries: int, title: str, apart: bool = False) -> Any:
    """Run ``function(*args)`` as in :func:`call_in_worker`, and retry after a crash, with a warning each time.

    Args:
        function: a module-level function that leaves nothing unfinished when it dies, or resumes it.
        args: picklable values.
        retries: number of retries after crashes, at least 0.
        title: description for warnings: "probing resnet18".
        apart: see :func:`call_in_worker`.

    Raises:
        WorkerCrashed: the last of ``1 + retries`` crashes.
        WorkStopped: after :func:`stop_workers`.
        ThawlineError: what ``function`` raised; a retry would raise it again.
    """
    for _ in range(retries):
        try:
            return call_in_worker(_without_link, function, args, apart=apart)
        except WorkerCrashed as error:
            emit(Note(f"{title}: {error}; retrying", "warning"))
    return call_in_worker(_without_link, function, args, apart=apart)


def _without_link(function: Callable[..., Any], args: tuple[Any, ...], _: Link) -> Any:
    return function(*args)


class _Worker:
    """A process and the driver's end of its pipe."""

    def __init__(self, *, apart: bool, devices: Mapping[str, str]) -> None:
        self.apart, self.devices = apart, devices
        start_fork_server()
        self.connection, theirs = multiprocessing.Pipe()
        self.process: _Process = worker_context().Process(
            target=_serve, args=(theirs, devices), name="thawline-worker", daemon=True
        )
        with main_module_hidden():
            self.process.start()
        theirs.close()

    def call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Send a call.

        Raises:
            WorkerCrashed: if the process has died, or dies while receiving a large call.
            WorkStopped: after :func:`stop_workers`.
        """
        try:
            self.connection.send((function, args))
        except OSError:
            raise self._crash() from None

    def load(self, modules: Sequence[str]) -> None:
        """Import modules before the next call, without a reply."""
        with suppress(OSError):  # it has died; the next call notices
            self.connection.send((_load, (modules,)))

    def hear(self) -> tuple[str, Any]:
        """The worker's next message: its kind and value.

        Raises:
            WorkerCrashed: if the process has died.
            WorkStopped: after :func:`stop_workers`.
        """
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            raise self._crash() from None
        return kind, value

    def reply(self, answer: Any) -> None:
        """Answer a message; raises as :meth:`hear`."""
        try:
            self.connection.send(answer)
        except OSError:
            raise self._crash() from None

    def ask_to_leave(self) -> None:
        """See :class:`thawline.search.conversation.Speaker`."""
        self.process.terminate()

    def release(self) -> None:
        """Let an idle process exit, at once if it is importing something."""
        self.connection.close()
        self.process.terminate()
        self.process.join(_LEAVE_SECONDS)
        self.end()

    def end(self) -> None:
        self.connection.close()
        if self.process.is_alive():
            self.process.kill()
        self.process.join()

    def _crash(self) -> WorkerCrashed | WorkStopped:
        self.process.join()
        if _stopping.is_set():  # asked to leave before it could listen
            return WorkStopped()
        return WorkerCrashed.with_exit_code(self.process.exitcode)


def _take(apart: bool) -> _Worker:
    devices = {name: os.environ[name] for name in _OF_DEVICES if name in os.environ}
    with _idle_lock:
        while found := [worker for worker in _idle if (worker.apart, worker.devices) == (apart, devices)]:
            _idle.remove(found[-1])
            if found[-1].process.is_alive():
                return found[-1]
            found[-1].end()
    return _Worker(apart=apart, devices=devices)


def _give_back(worker: _Worker) -> None:
    if _stopping.is_set():
        worker.end()
        return
    with _idle_lock:
        _idle.append(worker)


def _serve(connection: Connection, devices: Mapping[str, str]) -> None:
    """The child process: serves one call after another, until the driver closes the pipe."""
    _end_with_parent()
    for name in _OF_DEVICES:  # the fork server's may be another task's
        os.environ.pop(name, None)
    os.environ.update(devices)
    logs.start()
    # Ctrl-C reaches every process of a terminal; the driver receives it too, and ends its trials.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    busy = False

    def leave(number: int, frame: FrameType | None) -> None:
        _leaving.set()
        if not busy:
            os._exit(0)  # nothing to save, and a signal alone would not end the wait for the next call

    signal.signal(signal.SIGTERM, leave)
    while not _leaving.is_set():
        try:
            function, args = connection.recv()
        except EOFError:
            return
        if function is _load:
            function(*args)
            continue
        busy = True
        link = Link(connection)
        tell_driver(link.tell)
        try:
            answer = ("result", function(*args, link))
        except ThawlineError as error:
            answer = ("error", error)
        except Interrupted:
            answer = ("left", None)
        connection.send(answer)
        del function, args, answer
        release_memory()  # before the next trial allocates; others on the same GPU may need it
        busy = False


def _load(modules: Sequence[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in modules:
            with suppress(Exception):
                importlib.import_module(module)


def _end_with_parent() -> None:
    """End a trial whose driver died: it must not keep the device and write to the same files."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
