"""Work in a separate process, so that a crash or a memory leak ends only that process.

Processes come from a fork server that has the heavy libraries loaded, and serve one call after another: the first
starts in a second or two instead of twenty, the next at once. A call may report over a pipe and wait for the answer, so
Optuna's study stays with the driver. When the driver dies, its workers end themselves; when it stops, they are asked to
stop and have some seconds for it; one that is silent for too long is ended.
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
"""Variables that tell a process which devices it has, read once, when it first asks for one. On a cluster they differ
from task to task."""
_SIGN_SECONDS = 1.0
"""How often a worker sends a heartbeat, at most."""


class Link:
    """The connection of a function in a worker to its driver."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._sending = connection, threading.Lock()
        self._said = time.monotonic()

    def __call__(self, message: Any) -> Any:
        """Send a message and wait for the answer."""
        self._send("message", message)
        return self._connection.recv()

    def tell(self, event: Event) -> None:
        """Let the driver emit an event; from any thread."""
        self._send("event", event)

    def alive(self) -> bool:
        """Say that there is progress; returns whether this process was asked to leave."""
        if time.monotonic() - self._said >= _SIGN_SECONDS:
            self._send("alive", None)
        return _leaving.is_set()

    def _send(self, kind: str, value: Any) -> None:
        with self._sending:
            self._connection.send((kind, value))
        self._said = time.monotonic()


class _Here:
    """The link of a call in this very process."""

    def __init__(self, on_message: _Send) -> None:
        self._on_message = on_message

    def __call__(self, message: Any) -> Any:
        return self._on_message(message)

    def alive(self) -> bool:
        return False


_leaving = threading.Event()
"""In a worker: it was asked to leave, by its driver or by the system."""
_stopping = threading.Event()
_grace_ends = 0.0
_idle: list["_Worker"] = []
_idle_lock = threading.Lock()


def stop_workers(grace_seconds: float = 0.0) -> None:
    """Ask all calls that run now to leave, end them after ``grace_seconds``, and all processes that wait for one."""
    global _grace_ends  # noqa: PLW0603  read by the threads that wait for calls
    _grace_ends = time.monotonic() + grace_seconds
    _stopping.set()
    with _idle_lock:
        waiting, _idle[:] = list(_idle), []
    for worker in waiting:
        worker.release()


@contextmanager
def workers_dismissed(grace_seconds: float) -> Iterator[None]:
    """No worker is left after the block. Where it is interrupted, running trials are asked to leave with a checkpoint.

    Args:
        grace_seconds: what they have for it, before they are ended.
    """
    try:
        yield
    except BaseException:
        stop_workers(grace_seconds)
        raise
    stop_workers()


def prepare_workers() -> None:
    """Start the fork server now, so that it loads the libraries while the data is being read."""
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
    """Run ``function(*args, link)`` in another process and wait for what it returns.

    The wait is a poll, so that the caller can be interrupted (Prefect's time-outs and cancellation); the process is
    ended when this function leaves without a result, and kept for the next call otherwise.

    Args:
        function: of a module, since its name is what is sent. It may call ``link(message)``, which returns the answer,
            and ``link.alive()``; it may raise :class:`Interrupted` when that asks it to leave. What it emits, the
            driver emits.
        args: values that can be pickled.
        on_message: answers messages.
        silent_seconds: a process that is silent for this long is ended; ``None`` waits indefinitely.
        poll_seconds: how soon an interruption is noticed.
        apart: in a process that serves only such calls: trials leave seeds, switches and threads of their own.

    Raises:
        WorkerCrashed: if the process dies or leaves without a result, or is ended for its silence.
        WorkStopped: after :func:`stop_workers`.
        ThawlineError: what ``function`` raised.
    """
    if multiprocessing.current_process().daemon:  # of Dask, which keeps its workers from having children
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
    """Run functions that work together, each in a process of its own; returns what the first of them returns.

    They end together: when one dies or fails, the others, who may wait for it, are ended after a few seconds.

    Args:
        calls: functions with their arguments; these and the rest as in :func:`call_in_worker`.
        on_message: answers messages of all.
        silent_seconds: for which all are silent: one that hangs lets the others wait.
        poll_seconds: see there.
        apart: see there.

    Raises:
        WorkerCrashed: if one of the processes dies or leaves, or all are ended for their silence.
        WorkStopped: after :func:`stop_workers`.
        ThawlineError: the first that was raised, unless the first function returned.
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
        else:  # it may wait for another that has failed
            worker.end()
    if kind == "error":
        raise value
    return value


def load_meanwhile(modules: Sequence[str]) -> None:
    """Let the idle process that serves calls ``apart`` import modules; its next call waits for them, this does not.

    Args:
        modules: full names; what cannot be imported is left to the call that needs it.
    """
    with _idle_lock:
        for worker in _idle:
            if worker.apart:
                worker.load(modules)


def call_with_retries(function: Callable[..., Any], *args: Any, retries: int, title: str, apart: bool = False) -> Any:
    """Run ``function(*args)`` as :func:`call_in_worker` does, and again after a crash, with a warning each time.

    Args:
        function: of a module; it leaves nothing half-done when it dies, or resumes it.
        args: values that can be pickled.
        retries: how many crashes are followed by another call, at least 0.
        title: what it does, for the warnings: "probing resnet18".
        apart: see :func:`call_in_worker`.

    Raises:
        WorkerCrashed: the last of ``1 + retries`` crashes.
        WorkStopped: after :func:`stop_workers`.
        ThawlineError: what ``function`` raised; it would raise it again.
    """
    for _ in range(retries):
        try:
            return call_in_worker(_without_link, function, args, apart=apart)
        except WorkerCrashed as error:
            emit(Note(f"{title}: {error}; it is tried again", "warning"))
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
            WorkerCrashed: if the process has died, or dies before it has taken all of a large one.
            WorkStopped: after :func:`stop_workers`.
        """
        try:
            self.connection.send((function, args))
        except OSError:
            raise self._crash() from None

    def load(self, modules: Sequence[str]) -> None:
        """Import modules before the next call; there is no answer."""
        with suppress(OSError):  # it has died, which the next call notices
            self.connection.send((_load, (modules,)))

    def hear(self) -> tuple[str, Any]:
        """What it says next: its kind, and the value.

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
        """Let an idle process leave, at once if it is importing something."""
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
    """The child: one call after another, until the driver closes the pipe."""
    _end_with_parent()
    for name in _OF_DEVICES:  # those of the fork server may be another task's
        os.environ.pop(name, None)
    os.environ.update(devices)
    logs.start()
    # Ctrl-C reaches every process of a terminal; the driver hears it too, and ends its trials.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    busy = False

    def leave(number: int, frame: FrameType | None) -> None:
        _leaving.set()
        if not busy:
            os._exit(0)  # there is nothing to keep, and a mere signal would not end the wait for the next call

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
        release_memory()  # before the next trial's tensors come; others on the same GPU may need it meanwhile
        busy = False


def _load(modules: Sequence[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in modules:
            with suppress(Exception):
                importlib.import_module(module)


def _end_with_parent() -> None:
    """A trial whose driver died must not continue, holding the device and writing to the same files."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
