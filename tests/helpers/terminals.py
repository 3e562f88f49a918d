"""Run commands in a pseudo-terminal, read their screen, and press keys."""

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from commands import Fork, Forks

__all__ = ["Terminal", "terminal"]

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
"""Colours and cursor movements."""


class Terminal:
    """A process whose controlling terminal is a pseudo-terminal read by this process.

    Args:
        command: command to run; with ``forks``, the arguments of ``thawline``.
        env: environment of the command.
        cwd: working directory of the command.
        forks: process to fork from.
    """

    def __init__(self, command: list[str], *, env: dict[str, str], cwd: Path, forks: Forks | None = None) -> None:
        self._master, slave = pty.openpty()
        env = {**env, "TERM": "xterm", "COLUMNS": "160", "LINES": "50"}
        self.process: subprocess.Popen[bytes] | Fork
        if forks is not None:
            self.process = forks.start(command, env, cwd, terminal=os.ttyname(slave))
        else:
            self.process = subprocess.Popen(
                command,
                env=env,
                cwd=cwd,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  calls nothing of ours
            )
        os.close(slave)
        self._shown, self._changed, self._closed = "", threading.Condition(), False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """The output so far, without colours."""
        with self._changed:
            return _CONTROL.sub("", self._shown)

    def says(self, text: str, seconds: float = 300) -> bool:
        """Wait until the output contains this; False if the command ended before."""
        with self._changed:
            assert self._changed.wait_for(lambda: text in self._shown or self._closed, seconds), self._shown
            return text in self._shown

    def press_ctrl_c(self) -> None:
        """Press Ctrl-C, which the terminal sends to the whole foreground process group."""
        os.write(self._master, b"\x03")

    def signal_group(self, number: int) -> None:
        """Signal the process group, like systemd and Slurm."""
        os.killpg(self.process.pid, number)

    def family(self) -> list[psutil.Process]:
        """The processes of its session, without a managed server, which has left it."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getsid(process.pid) == self.process.pid:
                    found.append(process)
        return found

    def end(self, seconds: float) -> int:
        """Wait for its end; returns the exit code."""
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code

    def close(self) -> None:
        """End remaining processes."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        self._reader.join(10)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self._master, 65536)
            except OSError:  # the last process has closed it
                chunk = b""
            with self._changed:
                self._shown += chunk.decode(errors="replace")
                self._closed = not chunk
                self._changed.notify_all()
            if not chunk:
                return


@contextmanager
def terminal(*arguments: str | Path, env: dict[str, str], cwd: Path, forks: Forks | None = None) -> Iterator[Terminal]:
    """``thawline`` with arguments in a terminal, ended with the block; a separate process without ``forks``."""
    thawline = [] if forks else [sys.executable, "-m", "thawline"]
    opened = Terminal([*thawline, *map(str, arguments)], env=env, cwd=cwd, forks=forks)
    try:
        yield opened
    finally:
        opened.close()
