"""Ways to stop a command in a terminal, and what must hold for its end."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
from terminals import Terminal

from thawline.prefect_server import Files

__all__ = ["GRACE", "RESUMES", "STOPPED", "stop"]

GRACE = 20
"""The default of ``study.grace_seconds``; the end may come that much later, plus three seconds."""
STOPPED, RESUMES = "Stopped.", "The same command resumes where it stopped."


def press_twice(command: Terminal, home: Path) -> None:
    """Press Ctrl-C twice."""
    command.press_ctrl_c()
    command.press_ctrl_c()


def end_everything(command: Terminal, home: Path) -> None:
    """Like a shutdown of the machine or systemd: Prefect's server ends before the search can report to it."""
    address = Files(home).read()
    assert address is not None
    os.killpg(address.pid, signal.SIGKILL)
    command.signal_group(signal.SIGTERM)


WAYS: dict[str, tuple[Callable[[Terminal, Path], None], int]] = {
    "ctrl-c": (lambda command, _: command.press_ctrl_c(), 130),
    "ctrl-c twice": (press_twice, 130),
    "SIGINT to the group": (lambda command, _: command.signal_group(signal.SIGINT), 130),
    "SIGTERM to the group": (lambda command, _: command.signal_group(signal.SIGTERM), 143),
    "SIGTERM to the group, and no server": (end_everything, 143),
}


def stop(command: Terminal, home: Path, way: str, *, code: int | None = None) -> str:
    """Stop a command in this way, and check its end.

    Args:
        command: a command that has reached the point where to stop it.
        home: Thawline's home.
        way: one of ``WAYS``.
        code: expected exit code; by default a shell's for this signal.

    Returns:
        Its output.
    """
    send, expected = WAYS[way]
    family = command.family()
    assert family, "it had ended before"
    send(command, home)
    assert command.end(GRACE + 3) == (expected if code is None else code), command.text
    for noise in ("Traceback", "Exception ignored", "leaked", "Error", "Warning"):
        assert noise not in command.text, command.text
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, [process.cmdline() for process in alive]
    return command.text
