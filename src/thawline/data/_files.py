"""Writing files so that a reader never sees half of one, and printing their names."""

import html
import os
import re
import secrets
from pathlib import Path

from thawline.exceptions import DataError

__all__ = ["as_text", "make_empty_folder", "markdown_text", "printable", "write_atomically"]


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside ``path``, make sure that it is on the disk, then rename; missing folders are made.

    Who may read the file is as the umask says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    # Not tempfile's: its files are for their owner alone.
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def make_empty_folder(folder: Path) -> None:
    """Make a folder for results; one that is there must be empty.

    Raises:
        DataError: if it is not, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        empty = not any(folder.iterdir())
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be used: {error.strerror}.") from None
    if not empty:
        raise DataError(f"{folder} must be a new or an empty folder, so that nothing in it is overwritten.")


def markdown_text(text: str) -> str:
    """The text as a page in Markdown shows it unchanged, in a table too: names may hold HTML, links and ``|``."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(printable(text), quote=False))


def printable(text: str) -> str:
    """The text with what steers a terminal written out: names may hold line breaks, escapes and bytes of no UTF-8."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def as_text(name: str) -> str:
    """The name of a file, bytes that are not UTF-8 written out as ``\\xfc``: what is recorded must be text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
