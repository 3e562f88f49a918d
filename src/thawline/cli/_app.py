"""The command itself: the options before the verb, and how it ends."""

import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from thawline import __version__, environment
from thawline.cli._shared import fail
from thawline.exceptions import ThawlineError

__all__ = ["app", "main"]

app = typer.Typer(
    name="thawline",
    help="Turn a folder of labelled images into a served classifier: search freeze depth and learning rate, "
    "compare the trials in MLflow, promote the best.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    rich_markup_mode="markdown",
)
_debug = False


def main() -> None:
    """Run the command line. A known error is one message and exit code 2; ``--debug`` shows its traceback."""
    environment.prepare()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except ThawlineError as error:
        if _debug:
            raise
        fail(str(error))
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)  # noqa: T201
        sys.exit(130)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"thawline {__version__}")  # noqa: T201
        raise typer.Exit


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Leave as on Ctrl-C: runs are closed, servers and trials ended, and the same command goes on later."""
    raise KeyboardInterrupt


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    global _debug  # noqa: PLW0603  read once, by main()
    _debug = debug
