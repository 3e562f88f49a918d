"""Commands, each in a fork of one process that has the heavy libraries already.

A command spends its first ten seconds on imports, a search as many again on those of its fork server. A fork has an
environment, a working directory, outputs, signals and an end of its own, as a process has. What it does not show is
what happens when libraries are imported: what they read from the environment then is that of the first process.
Prefect, whose settings are such, is not loaded before the fork. So of every verb that works some tests run a real
process.

Run as a script this module is that first process: it reads one request a line, and answers each with one line.
"""

import json
import multiprocessing.util
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["Forks", "forks"]

_LIBRARIES = (
    *("torch", "torchvision", "captum.attr", "matplotlib.backends.backend_svg", "sklearn.manifold", "optuna", "pandas"),
    *("mlflow", "mlflow.pyfunc.model", "mlflow.store.tracking.sqlalchemy_store"),
)
_OURS = ("cli", "api", "search.preload", "search", "study_report", "terminal", "registry", "scoring", "explain")
"""Modules of Thawline that load neither Prefect nor a device."""
_OF_PREFECT = ("anyio", "griffe", "h2.connection", "httpx", "jsonschema", "pendulum", "pydantic_settings", "trio")
"""Libraries that Prefect loads, and that read no settings."""
_PATIENCE = 540
"""Seconds that a command may take."""


class Forks:
    """The first process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, arguments: list[str], environment: Mapping[str, str], folder: Path) -> tuple[int, str, str]:
        """Run ``thawline`` with these arguments; exit code, standard output and standard error.

        Args:
            arguments: after the command's name.
            environment: all of it.
            folder: the working directory, which is made.

        Raises:
            TimeoutError: if it takes minutes.
        """
        folder.mkdir(parents=True, exist_ok=True)
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps([arguments, dict(environment), str(folder)]) + "\n")
        stdin.flush()
        if not select.select([stdout], [], [], _PATIENCE)[0]:
            self._process.kill()
            raise TimeoutError(f"thawline {' '.join(arguments)}: not ended within {_PATIENCE} seconds")
        answer = stdout.readline()
        assert answer, "the process that commands are forked from has ended"
        code, out, err = json.loads(answer)
        return code, out, err


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
        request = json.loads(line)
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if not child:
                arguments, environment_of_its_own, folder = request
                _become(arguments, environment_of_its_own, folder, (out, err))
                from thawline.cli import main

                main()
            _, status = os.waitpid(child, 0)
            out.seek(0)
            err.seek(0)
            print(json.dumps([os.waitstatus_to_exitcode(status), out.read(), err.read()]), flush=True)  # noqa: T201


def _become(arguments: list[str], environment: dict[str, str], folder: str, outputs: tuple[IO[str], IO[str]]) -> None:
    """Make a fork look like the process of a command."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["thawline", *arguments]
    with Path(os.devnull).open() as nothing:
        for number, file in enumerate((nothing, *outputs)):
            os.dup2(file.fileno(), number)
    multiprocessing.util.spawnv_passfds = _fork_the_fork_server


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
