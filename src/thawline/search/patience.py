"""Wait for a storage that is locked, restarting or full."""

import logging
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError

from thawline.exceptions import StudyError

__all__ = ["PASSING", "patiently", "patiently_for"]

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")
_PATIENCE_SECONDS = 600.0
_LONGEST_DELAY = 10.0


def patiently(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """:func:`patiently_for` with ten minutes."""
    return patiently_for(_PATIENCE_SECONDS, call, *args, **kwargs)


def patiently_for(seconds: float, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call, and retry for up to this many seconds while the storage is locked or unreachable, or its disk is full.

    The call must be idempotent: a response may have been lost.

    Raises:
        StudyError: if the call still fails after that.
    """
    deadline, delay = time.monotonic() + seconds, 0.2
    while True:
        try:
            return call(*args, **kwargs)
        except PASSING as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            if time.monotonic() >= deadline:
                raise StudyError(
                    f"The study cannot be written: {reason}. No training is lost: the same command "
                    "resumes once that is fixed."
                ) from error
            _log.warning("the study cannot be written: %s; retrying", reason)
        time.sleep(delay)
        delay = min(2 * delay, _LONGEST_DELAY)


PASSING = (
    StorageInternalError,
    sa.exc.OperationalError,
    sa.exc.InterfaceError,
    sa.exc.InternalError,
    sa.exc.TimeoutError,
    OSError,
)
"""Errors that may be transient; an internal one is what a PostgreSQL server reports that is only a standby for now."""
