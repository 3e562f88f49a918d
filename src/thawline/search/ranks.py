"""A trial in several processes: how a failure in one of them reaches the others.

Each process waits for the others after every batch, so a failed one reports to the driver, which ends them all.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from thawline.exceptions import CheckpointError, ThawlineError, TrainingError
from thawline.search.memory import reason_of
from thawline.training import Interrupted, is_device_lost, is_out_of_memory

__all__ = ["OF_ALL_RANKS", "RankFailed", "RankOutOfMemory", "told_as_of_rank"]

_log = logging.getLogger(__name__)

OF_ALL_RANKS = (TrainingError, CheckpointError)
"""Errors that all processes of a trial raise, since they compute the same and read the same checkpoints."""


class RankFailed(ThawlineError):
    """One of a trial's processes failed, unnoticed by the others."""


class RankOutOfMemory(RankFailed):
    """The device of one of a trial's processes is out of memory."""


@contextmanager
def told_as_of_rank() -> Iterator[None]:
    """Turn failures in the block into errors for the driver; a lost GPU ends this process."""
    try:
        yield
    except (Interrupted, RankFailed):
        raise
    except Exception as error:
        if is_device_lost(error):
            raise
        if is_out_of_memory(error):
            raise RankOutOfMemory(reason_of(error)) from error
        if isinstance(error, ThawlineError):
            raise RankFailed(str(error)) from error
        _log.warning("one of a trial's processes failed", exc_info=True)
        raise RankFailed(reason_of(error)) from error
