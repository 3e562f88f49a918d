"""A trial in a process of its own, so that its death, its memory and its crashes stay its own.

The process comes from a fork server that has the heavy libraries loaded: it starts in a second or two instead of
twenty. It reports each epoch over a pipe and waits for the answer, so Optuna's study stays with the driver. When the
driver dies, the trial ends itself.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from typing import TypeAlias

from thawline.search.trial import TrialResult, TrialSpec, run_trial
from thawline.training import Decision, EpochResult

__all__ = ["TrialCrashed", "TrialStopped", "prepare_workers", "run_in_process", "stop_workers"]

_log = logging.getLogger(__name__)
_Process: TypeAlias = ForkServerProcess | SpawnProcess

_PRELOAD = ["thawline.search.preload"]


class TrialCrashed(Exception):
    """A trial's process ended without a result."""

    def __init__(self, exit_code: int | None) -> None:
        cause = f"was killed by signal {-exit_code}" if exit_code and exit_code < 0 else f"ended with {exit_code}"
        super().__init__(f"the trial's process {cause}")
        self.exit_code = exit_code


class TrialStopped(Exception):
    """The driver is leaving; the trial is not over and goes on when the search is run again."""


_stopping = threading.Event()


def stop_workers() -> None:
    """End all trials that run now, so that whoever waits for their threads does not wait for their last epoch."""
    _stopping.set()


def prepare_workers() -> None:
    """Start the fork server now, so that it loads the libraries while the data is being read."""
    _stopping.clear()
    _start_server()


def _start_server() -> None:
    context = _context()
    if isinstance(context, ForkServerContext):
        context.set_forkserver_preload(_PRELOAD)
        from multiprocessing import forkserver

        forkserver.ensure_running()


def run_in_process(
    spec: TrialSpec, on_epoch: Callable[[EpochResult], Decision], *, poll_seconds: float = 0.2
) -> TrialResult:
    """Run one trial in a child process and wait for it.

    The wait is a poll, so that whoever calls can be interrupted (Prefect's time-outs and cancellation); the child is
    ended when this function leaves for any reason.

    Raises:
        TrialCrashed: if the process dies without a result.
        TrialStopped: after :func:`stop_workers`.
    """
    _start_server()
    ours, theirs = multiprocessing.Pipe()
    process: _Process = _context().Process(
        target=_main, args=(theirs, spec), name=f"trial-{spec.number:02d}", daemon=True
    )
    process.start()
    theirs.close()
    try:
        return _converse(ours, process, on_epoch, poll_seconds)
    finally:
        ours.close()
        if process.is_alive():
            process.kill()
        process.join()


def _converse(
    connection: Connection, process: _Process, on_epoch: Callable[[EpochResult], Decision], poll_seconds: float
) -> TrialResult:
    while True:
        if _stopping.is_set():
            raise TrialStopped
        if not connection.poll(poll_seconds):
            continue
        message = _received(connection, process)
        if isinstance(message, TrialResult):
            process.join()
            return message
        answer = on_epoch(message)
        try:
            connection.send(answer)
        except OSError:
            raise _crash(process) from None


def _received(connection: Connection, process: _Process) -> EpochResult | TrialResult:
    try:
        message = connection.recv()
    except (EOFError, OSError):
        raise _crash(process) from None
    assert isinstance(message, EpochResult | TrialResult)  # noqa: S101  narrows the type
    return message


def _crash(process: _Process) -> TrialCrashed:
    process.join()
    return TrialCrashed(process.exitcode)


def _context() -> ForkServerContext | SpawnContext:
    if "forkserver" in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")


def _main(connection: Connection, spec: TrialSpec) -> None:
    """The child: train, report each epoch, send the result."""
    _end_with_parent()
    # Ctrl-C reaches every process of a terminal; the driver hears it too, and ends its trials.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def report(result: EpochResult) -> Decision:
        connection.send(result)
        answer = connection.recv()
        assert isinstance(answer, Decision)  # noqa: S101  narrows the type
        return answer

    connection.send(run_trial(spec, report))
    connection.close()


def _end_with_parent() -> None:
    """A trial whose driver died must not train on, holding the device and writing to the same files."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
