"""Shorten libraries' failure messages to one line, and keep their logs off the terminal."""

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from thawline.config import without_password

__all__ = ["first_line", "hold_back_warnings", "is_missing", "quiet_mlflow"]


def is_missing(error: BaseException) -> bool:
    """Whether an error is MLflow's for a run, model or version that does not exist; needs no import of MLflow."""
    return getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, shortened and without passwords, or its type if it has none."""
    lines = str(error).strip().splitlines()
    text = without_password(lines[0].strip()) if lines else ""
    # MLflow quotes urllib3's log of every attempt; only the unreachable server and the reason matter.
    if silent := re.match(r"API request to (\w+://[^/]+)\S* failed with exception", text):
        why = re.search(r"Connection refused|timed out|Failed to resolve|certificate verify failed[^('\"]*", text)
        return f"{silent[1]} does not answer" + (f" ({why[0].strip()})" if why else "")
    return text[:300] or type(error).__name__


_NOISE = {
    # "Creating initial MLflow database tables", and each step of a migration.
    "mlflow.store.db.utils": logging.WARNING,
    "alembic": logging.WARNING,
    "alembic.runtime.migration": logging.WARNING,
    # "Waiting up to 300 seconds for model version to finish creation".
    "mlflow.store.model_registry.abstract_store": logging.WARNING,
    # "Validating input example against model signature".
    "mlflow.pyfunc": logging.WARNING,
    # A warning that pip is not installed, which is irrelevant in an environment created by uv.
    "mlflow.utils.environment": logging.ERROR,
}


@contextmanager
def quiet_mlflow() -> Iterator[None]:
    """Suppress MLflow's progress messages, but not its warnings about our calls."""
    before = {name: logging.getLogger(name).level for name in _NOISE}
    try:
        for name, level in _NOISE.items():
            logging.getLogger(name).setLevel(level)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


class _NotOurThread(logging.Filter):
    """Drops library logs from queue threads: an unreachable server is reported once, at the end."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.threadName or "").startswith("thawline-tracking")


_filter_lock = threading.Lock()
_filter: _NotOurThread | None = None


def hold_back_warnings() -> None:
    """Keep libraries' failure messages from queue threads off the terminal, but not those from other threads.

    These are urllib3's "Retrying …", and MLflow's traceback for a locked or full database.
    """
    global _filter  # noqa: PLW0603  installed once per process
    with _filter_lock:
        if _filter is None:
            _filter = _NotOurThread()
            for name in ("urllib3.connectionpool", "mlflow.store.db.utils"):
                logging.getLogger(name).addFilter(_filter)
