"""Commands, each in a fork of one process that has the heavy libraries already.

A command spends its first ten seconds on imports, a search as many again on those of its fork server. A fork has an
environment, a working directory, outputs, signals and an end of its own, as a process has. What it does not show is
what happens when libraries are imported: what they read from the environment then is that of the first process, and
what they compute once they have computed. Prefect, whose settings are such, is not loaded there: commands that run a
flow at a named server are forks of a second process, one for each set of Prefect's variables, that has Prefect and the
flows too. So of every verb that works some tests run a real process.

Run as a script this module is that first process: it reads one request a line, and answers each with one line.
"""

import atexit
import fcntl
import gc
import itertools
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
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_OF_FLOWS = (
    *(f"flows.{each}" for each in ("search", "retrain", "promote")),
    *("orchestration.reach", "orchestration.server"),
)
"""Modules of Thawline that load Prefect."""
_RUN_FLOWS = ("search", "retrain", "promote")
"""Verbs that do."""
_FILES_OF_PREFECT = (".env", "prefect.toml", "pyproject.toml")
"""Where else Prefect finds settings: in the working directory."""
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


_with_flows: dict[frozenset[tuple[str, str]], tuple[IO[str], IO[str]]] = {}
"""Processes that have Prefect with these variables: what is written to each is a request, what is read an answer."""


def _answer_requests() -> None:
    """Until nobody asks any more, or in a fork, until its command has ended."""
    from thawline import environment

    environment.prepare()  # MLflow reads some of it when it is imported
    _load([*_LIBRARIES, *(f"thawline.{each}" for each in _OURS), *_OF_PREFECT], _compute_once)
    assert "prefect" not in sys.modules, "a command's own environment has its settings"
    for line in sys.stdin:
        *command, _ = json.loads(line)
        settings = _settings_of_flows(*command)
        print(_carry_out(line) if settings is None else _pass_on(line, settings, command[1]), flush=True)  # noqa: T201
    _close_all()
    with suppress(ChildProcessError):
        while True:
            os.wait()


def _load(names: Sequence[str], then: Callable[[], None] = lambda: None) -> None:
    for name in names:
        __import__(name)
    then()
    assert threading.active_count() == 1, "a fork would lack the others"
    gc.collect()
    gc.freeze()  # else each fork looks through a million objects, and copies their pages, whenever it collects garbage


def _compute_once() -> None:
    """Let libraries compute what they then remember, for which every search would take a second or two.

    Among it are backward passes. Forks could do none if PyTorch had started a thread for a device. It looks for devices
    at the first of all passes, and tensors without numbers are of one: so the first is one with numbers, on the CPU.
    """
    import torch
    import tqdm
    from mlflow.utils import requirements_utils
    from sqlalchemy.orm import configure_mappers

    from thawline import backbones

    tqdm.tqdm.monitor_interval = 0  # else its first bar starts a thread
    network = backbones.create("mobilenet_v3_small", num_classes=2, weights="none", image_size=32)
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" and not torch.accelerator.is_available():
        torch.ones(1, requires_grad=True).sum().backward()
        backbones.depth_costs(network)  # how operators behave without numbers
    requirements_utils._init_packages_to_modules_map()  # of all packages that are installed
    configure_mappers()


def _carry_out(line: str) -> str:
    """Run or start the command of a request; the answer."""
    *command, files = json.loads(line)
    if files:
        _start(command, files)
        return "null"
    return json.dumps(_run(command))


def _settings_of_flows(
    arguments: list[str], environment: dict[str, str], folder: str
) -> frozenset[tuple[str, str]] | None:
    """Prefect's variables, if they are all that the command's flow has of settings and name a server."""
    if arguments[0] not in _RUN_FLOWS or not environment.get("PREFECT_API_URL"):
        return None
    if any((Path(folder) / name).exists() for name in _FILES_OF_PREFECT):
        return None
    return frozenset((name, value) for name, value in environment.items() if name.startswith("PREFECT_"))


def _pass_on(line: str, settings: frozenset[tuple[str, str]], environment: dict[str, str]) -> str:
    """The answer of a process that has Prefect with these settings, which is forked if there is none yet."""
    if settings not in _with_flows:
        (theirs, asking), (answering, answer) = os.pipe(), os.pipe()
        if not os.fork():
            os.close(asking)
            os.close(answering)
            _close_all()
            _answer_with_flows(os.fdopen(theirs), os.fdopen(answer, "w"), environment)
        os.close(theirs)
        os.close(answer)
        _with_flows[settings] = os.fdopen(asking, "w"), os.fdopen(answering)
    requests, answers = _with_flows[settings]
    requests.write(line)
    requests.flush()
    return answers.readline().rstrip()


def _answer_with_flows(requests: IO[str], answers: IO[str], environment: dict[str, str]) -> NoReturn:
    os.environ.clear()
    os.environ.update(environment)
    from thawline.environment import prepare, quiet_prefect

    prepare()
    quiet_prefect()
    _load([f"thawline.{each}" for each in _OF_FLOWS])
    _with_flows[frozenset()] = requests, answers  # for forks to close
    for line in requests:
        answers.write(_carry_out(line) + "\n")
        answers.flush()
    with suppress(ChildProcessError):
        while True:
            os.wait()
    os._exit(0)


def _close_all() -> None:
    """Ask those processes no more, which ends them unless another process may still ask."""
    for pipe in itertools.chain.from_iterable(_with_flows.values()):
        pipe.close()
    _with_flows.clear()


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
        _close_all()
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
    _close_all()
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
        atexit.register(gc.unfreeze)  # at its end, some libraries print what of theirs is left
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
