"""Ctrl-C and SIGTERM end a command in order, in bounded time whatever hangs, and at once the second time.

The first signal raises KeyboardInterrupt in the main thread, from which everything is closed on the way out. Libraries
have handlers of their own, swallow exceptions, or wait for servers that are gone; so a thread receives every signal by
``signal.set_wakeup_fd``, whichever handler runs, and ends the process when its time is over.
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
"""For closing, beyond what running trials are given."""
_LOST = 0
"""Stands where the numbers of signals do: a destructor was interrupted, where the exception came to nothing."""
_AGAIN_SECONDS = 0.05
"""For such a destructor to return."""


class _Stop:
    """The signals so far, and how long the process then has."""

    number: int | None = None
    raised = False
    seconds = _LEAVE_SECONDS
    groups: ClassVar[list[int]] = []
    wake_up: socket.socket | None = None
    """Where the interpreter writes the number of a signal that has come."""


_stop = _Stop()


def listen(on_forced: Callable[[], None]) -> None:
    """Take over SIGINT and SIGTERM of this process, for good; to be called in the main thread.

    Args:
        on_forced: what to print and to end when the process cannot exit in order.
    """
    if _stop.wake_up is None:
        reading, _stop.wake_up = socket.socketpair()
        _stop.wake_up.setblocking(False)
        threading.Thread(target=_watch, args=(reading, on_forced), name="stopping", daemon=True).start()
    signal.set_wakeup_fd(_stop.wake_up.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def allow(seconds: float) -> None:
    """How long the rest of this command may take to close when it is stopped.

    Args:
        seconds: what running trials, or requests in flight, have to finish; everything else has 2 s more.
    """
    _stop.seconds = seconds + _LEAVE_SECONDS


def take_along(group: int) -> None:
    """Kill this process group when the command exits at once: it would not notice, and keep running."""
    _stop.groups.append(group)


def hear(number: int) -> None:
    """Record a signal that an event loop has caught with its own handler."""
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
    """End this process in order, without tearing down its modules, which takes many seconds with torch.

    While it is being stopped, the thread that bounds the time would be the first to halt.

    Args:
        code: what it ends with; by default :func:`exit_code`, and threads that still run are not waited for.
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
    """Once: the clean-up must not be interrupted itself."""
    _stop.number = _stop.number or number
    if not _stop.raised:
        _stop.raised = True
        _be_quiet()
        raise KeyboardInterrupt


def _be_quiet() -> None:
    """An exception in a destructor or a thread, caused by leaving, is no news."""
    sys.unraisablehook = _raise_again_if_lost
    threading.excepthook = lambda _: None


def _raise_again_if_lost(unraisable: "sys.UnraisableHookArgs") -> None:
    """Garbage is collected anywhere: the interruption may have come while it was, and stopped nothing else."""
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
                # Not SIGINT, of which a second one ends the process at once.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                continue
            # Prefect sends its own process another SIGTERM once it has handled the first.
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
