"""Commands, each in a fork of one process that has the heavy libraries already.

A command spends its first ten seconds on imports, a search as many again on those of its fork server. A fork has an
environment, a working directory, outputs, signals and an end of its own, as a process has. What it does not show is
what happens when libraries are imported: what they read from the environment then is that of the first process.
Prefect, whose settings are such, is not loaded before the fork. So of every verb that works some tests run a real
process.

Run as a script this module is that first process: it reads one request a line, and answers each with one line.
"""

import fcntl
import json
import multiprocessing.util
import os
import select
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

__all__ = ["Fork", "Forks", "forks"]

_LIBRARIES = (
    *("torch", "torchvision", "captum.attr", "matplotlib.backends.backend_svg", "sklearn.manifold", "optuna", "pandas"),
    *("mlflow", "mlflow.pyfunc.model", "mlflow.store.tracking.sqlalchemy_store"),
)
_OURS = (
    *("cli", "api", "search.preload", "search", "study_report", "terminal", "registry", "scoring", "explain"),
    "serving.app",
)
"""Modules of Thawline that load neither Prefect nor a device."""
_OF_PREFECT = ("anyio", "griffe", "h2.connection", "httpx", "jsonschema", "pendulum", "pydantic_settings", "trio")
"""Libraries that Prefect loads, and that read no settings."""
_OUTPUTS = ("stdout", "stderr")
_PATIENCE = 540
"""Seconds that a command may take."""


class Fork:
    """A command that runs in a fork, with what of :class:`subprocess.Popen` is used here; it leads a session."""

    def __init__(self, status: IO[str], stdout: IO[str] | None = None, stderr: IO[str] | None = None) -> None:
        self.stdout, self.stderr, self._status = stdout, stderr, status
        self.pid = int(status.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code if it has ended, that of a signal negative."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            with self._status:
                self.returncode = int(self._status.readline())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Until it has ended.

        Raises:
            TimeoutError: if it has not after so many seconds.
        """
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise TimeoutError(f"process {self.pid} has not ended within {timeout} seconds")
        code = self.poll()
        assert code is not None
        return code

    def close(self) -> None:
        """Read its outputs no more."""
        for stream in filter(None, (self.stdout, self.stderr)):
            stream.close()

    def kill(self) -> None:
        """It alone, by SIGKILL."""
        self._send(signal.SIGKILL)

    def terminate(self) -> None:
        """It alone, by SIGTERM."""
        self._send(signal.SIGTERM)

    def _send(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Forks:
    """The first process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, arguments: list[str], environment: Mapping[str, str], folder: Path) -> tuple[int, str, str]:
        """Run ``thawline`` with these arguments; exit code, standard output and standard error.

        Args:
            arguments: after the command's name; ``-c`` and a program run that in place of ``thawline``, as Python does.
            environment: all of it.
            folder: the working directory, which is made.

        Raises:
            TimeoutError: if it takes minutes.
        """
        code, out, err = self._ask(arguments, environment, folder, [])
        return code, out, err

    def start(
        self, arguments: list[str], environment: Mapping[str, str], folder: Path, *, terminal: str | None = None
    ) -> Fork:
        """Start ``thawline`` as :meth:`run` does, in a session of its own, and return while it runs.

        Args:
            arguments: see :meth:`run`.
            environment: see :meth:`run`.
            folder: see :meth:`run`.
            terminal: device that is its input, its outputs and its controlling terminal, in place of pipes.
        """
        with tempfile.TemporaryDirectory() as pipes:
            status, *ends = (_reading_end(Path(pipes) / name) for name in ("status", *(() if terminal else _OUTPUTS)))
            standard = [terminal] * 3 if terminal else [os.devnull, *(f"{pipes}/{name}" for name in _OUTPUTS)]
            self._ask(arguments, environment, folder, [*standard, f"{pipes}/status"])
        return Fork(status, *ends)

    def _ask(self, arguments: list[str], environment: Mapping[str, str], folder: Path, files: list[str]) -> Any:
        folder.mkdir(parents=True, exist_ok=True)
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps([arguments, dict(environment), str(folder), files]) + "\n")
        stdin.flush()
        if not select.select([stdout], [], [], _PATIENCE)[0]:
            self._process.kill()
            raise TimeoutError(f"thawline {' '.join(arguments)}: not ended within {_PATIENCE} seconds")
        answer = stdout.readline()
        assert answer, "the process that commands are forked from has ended"
        return json.loads(answer)


@contextmanager
def forks(environment: Mapping[str, str]) -> Iterator[Forks]:
    """Start the first process, which loads its libraries when it is asked for the first command."""
    with subprocess.Popen(
        [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Forks(process)
        assert process.stdin is not None
        process.stdin.close()  # which ends it


def _answer_requests() -> None:
    """Until nobody asks any more, or in a fork, until its command has ended."""
    from thawline import environment

    environment.prepare()  # MLflow reads some of it when it is imported
    for name in (*_LIBRARIES, *(f"thawline.{each}" for each in _OURS), *_OF_PREFECT):
        __import__(name)
    assert "prefect" not in sys.modules, "a command's own environment has its settings"
    assert threading.active_count() == 1, "a fork would lack the others"
    for line in sys.stdin:
        *command, files = json.loads(line)
        answer: tuple[int, str, str] | None = None
        if files:
            _start(command, files)
        else:
            answer = _run(command)
        print(json.dumps(answer), flush=True)  # noqa: T201
    with suppress(ChildProcessError):
        while True:
            os.wait()


def _run(command: list[Any]) -> tuple[int, str, str]:
    """Fork a command, and wait for its end; exit code and outputs."""
    with Path(os.devnull).open() as nothing, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if not child:
            _become(*command, [file.fileno() for file in (nothing, out, err)])
        _, status = os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        return os.waitstatus_to_exitcode(status), out.read(), err.read()


def _start(command: list[Any], files: list[str]) -> None:
    """Fork a process that forks the command, writes its number, waits for its end, and writes how it was.

    Args:
        command: arguments, environment and folder.
        files: to be opened for its input and its outputs, and for what is written of it.
    """
    opened = [os.open(file, os.O_RDWR | os.O_NOCTTY) for file in files]
    if not os.fork():
        child = os.fork()
        if not child:
            os.setsid()
            os.close(opened.pop())
            if os.isatty(opened[0]):
                fcntl.ioctl(opened[0], termios.TIOCSCTTY, 0)
            _become(*command, opened)
        *standard, status = opened
        for number in standard:
            os.close(number)
        os.write(status, b"%d\n" % child)
        _, ended = os.waitpid(child, 0)
        os.write(status, b"%d\n" % os.waitstatus_to_exitcode(ended))
        os._exit(0)
    for number in opened:
        os.close(number)


def _reading_end(pipe: Path) -> IO[str]:
    """Of a pipe with this name, which is made."""
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # waits for nobody to write
    os.set_blocking(end, True)
    return os.fdopen(end)


def _become(arguments: list[str], environment: dict[str, str], folder: str, standard: list[int]) -> NoReturn:
    """Make a fork look like the process of a command whose input and outputs are these files, and run it."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["thawline", *arguments]
    for number, file in enumerate(standard):
        os.dup2(file, number)
    # Those of the first process remember what kind of file they had.
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, "w" if number else "r", closefd=False) for number in range(3)
    )
    sys.stderr.reconfigure(line_buffering=True, errors="backslashreplace")
    multiprocessing.util.spawnv_passfds = _fork_the_fork_server
    if arguments[0] == "-c":
        del sys.argv[0], sys.argv[1]
        exec(arguments[1], {"__name__": "__main__"})  # noqa: S102  a test's program
    else:
        from thawline.__main__ import main

        main()
    sys.exit()


_spawn = multiprocessing.util.spawnv_passfds


def _fork_the_fork_server(path: bytes, arguments: Sequence[str], kept: Sequence[int]) -> int:
    """How ``multiprocessing`` starts its servers; that of forks is a fork itself, which has its libraries already."""
    code = arguments[-1]
    others = {thread.name for thread in threading.enumerate()} - {"MainThread", "stopping"}
    if "multiprocessing.forkserver" not in code or others:
        return _spawn(path, arguments, kept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the other thread waits for signals, and holds no lock
        child = os.fork()
    if child:
        return child
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        last = 2
        for number in [*sorted(kept), os.sysconf("SC_OPEN_MAX")]:
            os.closerange(last + 1, number)
            last = number
        exec(code)  # noqa: S102  what Python would be run with
    finally:
        os._exit(0)


if __name__ == "__main__":
    _answer_requests()
