"""Run each command in a fork of one process that has loaded the heavy libraries.

A command spends its first ten seconds on imports, and a search as long again on those of its fork server. Like a
process, a fork has its own environment, working directory, outputs, signals and exit. It does not cover effects of
imports: libraries read the environment of the first process, and their one-time computations are done. Prefect reads
its settings on import and is not loaded there: commands that run a flow at a named server are forks of a second
process, one per set of Prefect's variables, which has loaded Prefect and the flows too. So for every verb, some tests
run a real process.

Run as a script, this module is that first process: it reads one request per line, and answers each with one line.
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
_OF_PREFECT = ("anyio", "griffe", "h2.connection", "httpx", "jsonschema", "pydantic_settings", "trio")
_OF_PREFECT += ("pendulum",) if sys.version_info < (3, 13) else ()
"""Libraries that Prefect loads, and that read no settings."""
_OF_FLOWS = (
    *(f"flows.{each}" for each in ("search", "retrain", "promote")),
    *("orchestration.reach", "orchestration.server"),
)
"""Modules of Thawline that load Prefect."""
_RUN_FLOWS = ("search", "retrain", "promote")
"""Verbs that run flows."""
_FILES_OF_PREFECT = (".env", "prefect.toml", "pyproject.toml")
"""Files with Prefect's settings in the working directory."""
_OUTPUTS = ("stdout", "stderr")
_PATIENCE = 540
"""Time limit of a command in seconds."""


def _is_readable(stream: IO[str], seconds: float | None) -> bool:
    """Wait until a pipe has data or is closed. ``select()`` would refuse the high descriptors of a long test run."""
    waiting = select.poll()
    waiting.register(stream, select.POLLIN)
    return bool(waiting.poll(None if seconds is None else 1000 * seconds))


class Fork:
    """A command in a fork, with a part of the interface of :class:`subprocess.Popen`; it leads a session."""

    def __init__(self, status: IO[str], stdout: IO[str] | None = None, stderr: IO[str] | None = None) -> None:
        self.stdout, self.stderr, self._status = stdout, stderr, status
        self.pid = int(status.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code if it has ended; negative for a signal."""
        if self.returncode is None and _is_readable(self._status, 0):
            with self._status:
                self.returncode = int(self._status.readline())
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            TimeoutError: if it has not ended after this many seconds.
        """
        if self.returncode is None and not _is_readable(self._status, timeout):
            raise TimeoutError(f"process {self.pid} has not ended within {timeout} seconds")
        code = self.poll()
        assert code is not None
        return code

    def close(self) -> None:
        """Stop reading its outputs."""
        for stream in filter(None, (self.stdout, self.stderr)):
            stream.close()

    def kill(self) -> None:
        """Send SIGKILL to this process only."""
        self._send(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM to this process only."""
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
        """Run ``thawline`` with these arguments; returns exit code, standard output and standard error.

        Args:
            arguments: arguments after the command's name; ``-c`` with a program runs that instead of ``thawline``, like
                Python.
            environment: the complete environment.
            folder: the working directory, which is created.

        Raises:
            TimeoutError: if it takes minutes.
        """
        code, out, err = self._ask(arguments, environment, folder, [])
        return code, out, err

    def start(
        self, arguments: list[str], environment: Mapping[str, str], folder: Path, *, terminal: str | None = None
    ) -> Fork:
        """Start ``thawline`` as in :meth:`run`, in its own session, and return while it runs.

        Args:
            arguments: see :meth:`run`.
            environment: see :meth:`run`.
            folder: see :meth:`run`.
            terminal: device for its input, its outputs and its controlling terminal, instead of pipes.
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
        if not _is_readable(stdout, _PATIENCE):
            self._process.kill()
            raise TimeoutError(f"thawline {' '.join(arguments)}: not ended within {_PATIENCE} seconds")
        answer = stdout.readline()
        assert answer, "the process that commands are forked from has ended"
        return json.loads(answer)


@contextmanager
def forks(environment: Mapping[str, str]) -> Iterator[Forks]:
    """Start the first process, which loads its libraries at the first command."""
    with subprocess.Popen(
        [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Forks(process)
        assert process.stdin is not None
        process.stdin.close()  # which ends it


_with_flows: dict[frozenset[tuple[str, str]], tuple[IO[str], IO[str]]] = {}
"""Processes that have loaded Prefect with these variables, as pipes for requests and answers."""


def _answer_requests() -> None:
    """Serve requests until they end or, in a fork, until its command has ended."""
    from thawline import environment

    environment.prepare()  # MLflow reads some of it on import
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
    gc.freeze()  # otherwise garbage collection in each fork visits a million objects and copies their pages


def _compute_once() -> None:
    """Trigger one-time computations of libraries, which would take every search a second or two.

    This includes backward passes. Forks could not run any if PyTorch had started a thread for a device. It looks for
    devices at the first pass, and meta tensors count as one, so the first pass uses real tensors on the CPU.
    """
    import torch
    import tqdm
    from mlflow.utils import requirements_utils
    from sqlalchemy.orm import configure_mappers

    from thawline import backbones

    tqdm.tqdm.monitor_interval = 0  # otherwise its first bar starts a thread
    network = backbones.create("mobilenet_v3_small", num_classes=2, weights="none", image_size=32)
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" and not torch.accelerator.is_available():
        torch.ones(1, requires_grad=True).sum().backward()
        backbones.depth_costs(network)  # operators on meta tensors
    requirements_utils._init_packages_to_modules_map()  # for all installed packages
    configure_mappers()


def _carry_out(line: str) -> str:
    """Run or start the command of a request; returns the answer."""
    *command, files = json.loads(line)
    if files:
        _start(command, files)
        return "null"
    return json.dumps(_run(command))


def _settings_of_flows(
    arguments: list[str], environment: dict[str, str], folder: str
) -> frozenset[tuple[str, str]] | None:
    """Prefect's variables, if they are the only settings of the command's flow and include a server."""
    if arguments[0] not in _RUN_FLOWS or not environment.get("PREFECT_API_URL"):
        return None
    if any((Path(folder) / name).exists() for name in _FILES_OF_PREFECT):
        return None
    return frozenset((name, value) for name, value in environment.items() if name.startswith("PREFECT_"))


def _pass_on(line: str, settings: frozenset[tuple[str, str]], environment: dict[str, str]) -> str:
    """The answer of a process that has loaded Prefect with these settings, forked if necessary."""
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
    """Close the pipes of those processes, which ends them unless another process uses them."""
    for pipe in itertools.chain.from_iterable(_with_flows.values()):
        pipe.close()
    _with_flows.clear()


def _run(command: list[Any]) -> tuple[int, str, str]:
    """Fork a command, and wait for its end; returns exit code and outputs."""
    with Path(os.devnull).open() as nothing, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if not child:
            _become(*command, [file.fileno() for file in (nothing, out, err)])
        _, status = os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        return os.waitstatus_to_exitcode(status), out.read(), err.read()


def _start(command: list[Any], files: list[str]) -> None:
    """Fork a process that forks the command, writes its id, waits for its end, and writes its status.

    Args:
        command: arguments, environment and folder.
        files: files for its input and outputs, and for its id and status.
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
    """Create a named pipe, and open its reading end."""
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # does not wait for a writer
    os.set_blocking(end, True)
    return os.fdopen(end)


def _become(arguments: list[str], environment: dict[str, str], folder: str, standard: list[int]) -> NoReturn:
    """Turn a fork into the process of a command with these files as input and outputs, and run it."""
    _close_all()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["thawline", *arguments]
    for number, file in enumerate(standard):
        os.dup2(file, number)
    # Those of the first process cache the type of their file.
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, "w" if number else "r", closefd=False) for number in range(3)
    )
    sys.stderr.reconfigure(line_buffering=True, errors="backslashreplace")
    multiprocessing.util.spawnv_passfds = _fork_the_fork_server
    if arguments[0] == "-c":
        del sys.argv[0], sys.argv[1]
        atexit.register(gc.unfreeze)  # at exit, some libraries print their remaining objects
        exec(arguments[1], {"__name__": "__main__"})  # noqa: S102  a test's program
    else:
        from thawline.__main__ import main

        main()
    sys.exit()


_spawn = multiprocessing.util.spawnv_passfds


def _fork_the_fork_server(path: bytes, arguments: Sequence[str], kept: Sequence[int]) -> int:
    """Replaces how ``multiprocessing`` starts its servers: a fork's server is a fork too, with loaded libraries."""
    code = arguments[-1]
    others = {thread.name for thread in threading.enumerate()} - {"MainThread", "stopping"}
    if "multiprocessing.forkserver" not in code or others:
        return _spawn(path, arguments, kept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the other thread waits for signals without a lock
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
