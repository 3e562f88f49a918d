"""Output on terminals that cannot show every character, such as those with ``LC_ALL=C`` or Latin-1."""

import codecs
import io
import sys

__all__ = ["show_what_can_be_shown"]

_PLAIN = {
    **{"…": "...", "–": "-", "—": "-", "−": "-", "×": "x", "±": "+/-"},  # noqa: RUF001  these very characters
    **{"→": "->", "←": "<-", "≤": "<=", "≥": ">=", "·": "*", "•": "*", "●": "*"},
    **{"─": "-", "━": "-", "│": "|", "├": "+", "└": "+"},
}
_HANDLER = "thawline.plain"


def show_what_can_be_shown() -> None:
    """Make standard output and error replace characters that they cannot encode, instead of failing."""
    codecs.register_error(_HANDLER, _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end
