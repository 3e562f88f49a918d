"""The top-level command: global options, errors and exit codes."""

import itertools
import logging
import shlex
import sys
from typing import Annotated, Any, NoReturn

import typer

from thawline import environment, logs, stopping
from thawline.cli._encoding import show_what_can_be_shown
from thawline.cli._settings import OPTIONS
from thawline.cli._shared import fail
from thawline.config import SearchConfig
from thawline.config.mistakes import settings_meant
from thawline.exceptions import ThawlineError
from thawline.farewell import leave_at_once, say_stopped

__all__ = ["app", "main"]

app = typer.Typer(
    name="thawline",
    help="Turn labelled images or texts into a served classifier: search freeze depth and learning rate, "
    "compare the trials in MLflow, promote the best.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    rich_markup_mode="markdown",
)
_debug = False
_log = logging.getLogger("thawline.cli")


def main() -> None:
    """Run the command line. A known error prints one message and exits with code 2; ``--debug`` shows its traceback.

    Ctrl-C and SIGTERM print a sentence or two and exit with code 130 or 143.
    """
    show_what_can_be_shown()
    stopping.listen(leave_at_once)
    try:
        environment.prepare()
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        _fail_by_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        _leave_stopped()
    except Exception as error:
        if stopping.came():  # an interrupted library may raise anything
            _leave_stopped()
        if isinstance(error, ThawlineError) and not _debug:
            fail(str(error), error=type(error).__name__)
        if logs.chosen() is logs.LogFormat.text:
            raise
        _log.error("%s", error, exc_info=True)
        code = 1
    if stopping.came():  # typer turns KeyboardInterrupt into an exit code
        _leave_stopped()
    sys.exit(code)


def _leave_stopped() -> NoReturn:
    """Exit after a signal; everything has been closed by now."""
    say_stopped()
    stopping.leave()


def _print_version(wanted: bool) -> None:
    if wanted:
        from thawline import __version__

        print(f"thawline {__version__}")  # noqa: T201
        raise typer.Exit


def _meant(error: Any) -> str:
    """Settings that an unknown option probably means, in the syntax of this verb; empty if there are none."""
    taken = {name for parameter in error.ctx.command.params for name in parameter.opts} if error.ctx else set()
    if "--set" not in taken:
        return ""
    typed = dict(itertools.pairwise([*sys.argv, ""])).get(error.option_name, "")
    value = None if not typed or typed.startswith("--") else typed
    settings = settings_meant(error.option_name.lstrip("-"), value, SearchConfig)
    return " or ".join(
        f"{OPTIONS[key]} {value or ''}".rstrip()
        if OPTIONS.get(key) in taken
        else f"--set {shlex.quote(f'{key}={wanted}')}"
        for key, wanted in settings.items()
    )


def _fail_by_usage(error: Any) -> NoReturn:
    """Exit as typer does after a usage error."""
    if type(error).__name__ == "NoSuchOption" and (meant := _meant(error)):  # typer's own, which it does not export
        error.message, error.possibilities = f"{error.message}. Did you mean {meant}?", None
    if logs.chosen() is logs.LogFormat.json:
        fail(error.format_message(), error.exit_code, error="UsageError")
    from typer.rich_utils import rich_format_error

    rich_format_error(error)
    sys.exit(error.exit_code)


def _choose_log_format(chosen: logs.LogFormat) -> logs.LogFormat:
    logs.choose(chosen)
    return chosen


@app.callback()
def _options(
    log_format: Annotated[
        logs.LogFormat,
        typer.Option(
            envvar=logs.VARIABLE,
            is_eager=True,  # before typer looks up a verb that may not exist
            callback=_choose_log_format,
            help="Format of standard error: text for people, or JSON, one object per line.",
        ),
    ] = logs.LogFormat.text,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    global _debug  # noqa: PLW0603  read once, by main()
    _debug = debug
