"""Failure messages of libraries: one line for people, and nothing on the terminal."""

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from thawline.config import without_password

__all__ = ["first_line", "hold_back_warnings", "quiet_mlflow"]


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, shortened and without passwords, or its type if it has none."""
    lines = str(error).strip().splitlines()
    text = without_password(lines[0].strip()) if lines else ""
    # MLflow quotes urllib3's account of every attempt; what matters is which server does not answer, and why.
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
    # A warning that pip is not installed, which an environment made by uv does not need.
    "mlflow.utils.environment": logging.ERROR,
}


@contextmanager
def quiet_mlflow() -> Iterator[None]:
    """Suppress MLflow's progress messages; its warnings about our calls are let through."""
    before = {name: logging.getLogger(name).level for name in _NOISE}
    try:
        for name, level in _NOISE.items():
            logging.getLogger(name).setLevel(level)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


class _NotOurThread(logging.Filter):
    """Drops what a library logs from a queue's thread: an unreachable server is reported once, at the end."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.threadName or "").startswith("thawline-tracking")


_filter_lock = threading.Lock()
_filter: _NotOurThread | None = None


def hold_back_warnings() -> None:
    """Keep libraries' failure messages in the queues' threads off the terminal; other threads keep theirs.

    That is urllib3's "Retrying …", and the traceback that MLflow logs of a database that is locked or full.
    """
    global _filter  # noqa: PLW0603  installed once per process
    with _filter_lock:
        if _filter is None:
            _filter = _NotOurThread()
            for name in ("urllib3.connectionpool", "mlflow.store.db.utils"):
                logging.getLogger(name).addFilter(_filter)
