"""Ctrl-C and SIGTERM end a command cleanly, in bounded time even if something hangs, and a second one at once.

The first signal raises KeyboardInterrupt in the main thread, which closes everything as it propagates. Libraries
install their own handlers, swallow exceptions, or wait for unavailable servers. So a thread receives every signal
through ``signal.set_wakeup_fd``, whichever handler runs, and ends the process when its time is up.
"""

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import ClassVar, NoReturn

__all__ = ["allow", "came", "exit_code", "hear", "leave", "listen", "take_along"]

_LEAVE_SECONDS = 2.0
"""Time for closing, in addition to that of running trials."""
_LOST = 0
"""Used in place of a signal number: the exception was lost in an interrupted destructor."""
_AGAIN_SECONDS = 0.05
"""Time for such a destructor to return."""


class _Stop:
    """The received signals, and the time limit of the process."""

    number: int | None = None
    raised = False
    seconds = _LEAVE_SECONDS
    groups: ClassVar[list[int]] = []
    wake_up: socket.socket | None = None
    """Socket to which the interpreter writes numbers of received signals."""


_stop = _Stop()


def listen(on_forced: Callable[[], None]) -> None:
    """Permanently handle SIGINT and SIGTERM of this process; call it in the main thread.

    Args:
        on_forced: prints and ends what is necessary when the process cannot exit cleanly.
    """
    if _stop.wake_up is None:
        reading, _stop.wake_up = socket.socketpair()
        _stop.wake_up.setblocking(False)
        threading.Thread(target=_watch, args=(reading, on_forced), name="stopping", daemon=True).start()
    signal.set_wakeup_fd(_stop.wake_up.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def allow(seconds: float) -> None:
    """Set the time for closing after a signal, for the rest of this command.

    Args:
        seconds: time for running trials, or requests in flight, to finish; everything else has 2 s more.
    """
    _stop.seconds = seconds + _LEAVE_SECONDS


def take_along(group: int) -> None:
    """Also kill this process group when the command exits at once, as it would otherwise keep running."""
    _stop.groups.append(group)


def hear(number: int) -> None:
    """Record a signal caught by an event loop's own handler."""
    if _stop.wake_up is not None:
        _stop.number = _stop.number or number
        _stop.wake_up.send(bytes([number]))


def came() -> bool:
    """Whether this process was asked to stop."""
    return _stop.number is not None


def exit_code() -> int:
    """130 after Ctrl-C, 143 after SIGTERM, as in a shell."""
    return 128 + (_stop.number or signal.SIGINT)


def leave(code: int | None = None) -> NoReturn:
    """End this process cleanly, without tearing down its modules, which takes many seconds with torch.

    During a regular exit, the thread that limits the time would be the first to stop.

    Args:
        code: exit code; by default :func:`exit_code`, without waiting for running threads.
    """
    try:
        if code is not None:
            threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(exit_code() if code is None else code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise only once, because the clean-up must not be interrupted."""
    _stop.number = _stop.number or number
    if not _stop.raised:
        _stop.raised = True
        _be_quiet()
        raise KeyboardInterrupt


def _be_quiet() -> None:
    """Silence exceptions in destructors and threads that are caused by leaving."""
    sys.unraisablehook = _raise_again_if_lost
    threading.excepthook = lambda _: None


def _raise_again_if_lost(unraisable: "sys.UnraisableHookArgs") -> None:
    """Raise again if the interruption was lost in a destructor: garbage collection may run anywhere."""
    if _stop.wake_up is not None and issubclass(unraisable.exc_type, KeyboardInterrupt):
        _stop.raised = False
        _stop.wake_up.send(bytes([_LOST]))


def _watch(reading: socket.socket, on_forced: Callable[[], None]) -> None:
    deadline: float | None = None
    while True:
        reading.settimeout(None if deadline is None else max(0.01, deadline - time.monotonic()))
        try:
            came = [number for number in reading.recv(64) if number in (signal.SIGINT, signal.SIGTERM, _LOST)]
        except TimeoutError:
            _leave_at_once(on_forced)
        for number in came:
            if number == _LOST:
                time.sleep(_AGAIN_SECONDS)
                # Not SIGINT, because a second one ends the process at once.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                continue
            # Prefect sends its own process another SIGTERM after handling the first.
            if deadline is not None and number == signal.SIGINT:
                _leave_at_once(on_forced)
            _stop.number = _stop.number or number
            _be_quiet()
            deadline = deadline or time.monotonic() + _stop.seconds


def _leave_at_once(on_forced: Callable[[], None]) -> NoReturn:
    try:
        for group in _stop.groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        on_forced()
    finally:
        os._exit(exit_code())
