"""The last message of a command stopped by Ctrl-C or SIGTERM, even during loading."""

import logging
import sys

from thawline import logs

__all__ = ["leave_at_once", "say_stopped"]

_GO_ON = {"search", "demo", "retrain", "score"}
"""Verbs that can resume."""
_SHOW_CURSOR = "\x1b[?25h"
_said = False


def say_stopped() -> None:
    """Print the message once, with a second sentence for verbs that can resume."""
    global _said  # noqa: PLW0603  by the main thread, or by the one that forces the end
    if _said:
        return
    _said = True
    sentences = ["Stopped."]
    if _verb(sys.argv[1:]) in _GO_ON:
        sentences.append("The same command resumes where it stopped.")
    for sentence in sentences:
        if logs.chosen() is logs.LogFormat.json:
            logs.start()
            logging.getLogger("thawline.cli").warning("%s", sentence)
        else:
            print(sentence, file=sys.stderr)  # noqa: T201


def leave_at_once() -> None:
    """Print the message, and restore the cursor that a live table may have hidden."""
    if sys.__stderr__ is not None and sys.__stderr__.isatty():
        sys.stderr = sys.__stderr__
        sys.stderr.write(f"{_SHOW_CURSOR}\r")
    say_stopped()
    sys.stderr.flush()


def _verb(arguments: list[str]) -> str | None:
    """The first argument that is neither an option nor its value; arguments may not be parsed yet."""
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--log-format":
            next(waiting, None)
        elif not argument.startswith("-"):
            return argument
    return None
