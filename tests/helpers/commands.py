"""Commands that take no time themselves, each in a fork of one process that has the heavy libraries already.

A command that refuses what it is given spends its seconds on imports. A fork has an environment, a working directory,
outputs and an end of its own, as a process has; only what libraries read from the environment when they are imported is
that of the first process, which is why Prefect, whose settings are such, is not among them.

Run as a script this module is that first process: it reads one request a line, and answers each with one line.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["Forks", "forks"]

_LIBRARIES = ("torch", "torchvision", "optuna", "pandas", "mlflow")
_PATIENCE = 300
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
    for name in _LIBRARIES:
        __import__(name)
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


if __name__ == "__main__":
    _answer_requests()
