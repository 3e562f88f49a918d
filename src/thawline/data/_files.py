"""Write files atomically, and print their names."""

import html
import os
import re
import secrets
from pathlib import Path

from thawline.exceptions import DataError

__all__ = ["as_text", "make_empty_folder", "markdown_text", "printable", "write_atomically"]


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary file beside ``path``, sync, then rename; creates missing folders.

    Permissions follow the umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    # Not tempfile, whose files are only readable by their owner.
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
    """Create a folder for results; an existing one must be empty.

    Raises:
        DataError: if it is not empty, or cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        empty = not any(folder.iterdir())
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be used: {error.strerror}.") from None
    if not empty:
        raise DataError(f"{folder} must be a new or an empty folder, so that nothing in it is overwritten.")


def markdown_text(text: str) -> str:
    """Escape text for Markdown, including tables: names may contain HTML, links and ``|``."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(printable(text), quote=False))


def printable(text: str) -> str:
    """Escape control characters: names may contain line breaks, escapes and bytes that are not UTF-8."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def as_text(name: str) -> str:
    """A file name as text for records, with bytes that are not UTF-8 escaped as ``\\xfc``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
