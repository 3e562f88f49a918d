"""Telling the results of epochs, each once its checkpoint is written.

After a kill training resumes from its last checkpoint, and tells again what that holds: were an epoch told before its
checkpoint is on the disk, it could be trained, and told, twice. So while a thread writes it, the next epoch trains, and
the answer to the one before ends it, if it is to end.
"""

from collections.abc import Callable
from concurrent.futures import Future

from thawline.training.results import Decision, EpochResult

__all__ = ["Ended", "Reports", "already"]


def already() -> "Future[None]":
    """Of a checkpoint that is written."""
    done: Future[None] = Future()
    done.set_result(None)
    return done


class Ended(Exception):
    """Training is to end with the last epoch that was told; what was trained since is not part of it."""


class Reports:
    """What is told of one training, and the last answer."""

    def __init__(self, on_epoch: Callable[[EpochResult], Decision]) -> None:
        """Tell ``on_epoch``, which answers whether to continue."""
        self._on_epoch = on_epoch
        self._owed: tuple[EpochResult, Future[None]] | None = None
        self.decision = Decision.CONTINUE

    def repeat(self, result: EpochResult) -> None:
        """Tell an epoch that a checkpoint holds, before training begins."""
        self.decision = self._on_epoch(result)

    def add(self, result: EpochResult, written: "Future[None]") -> None:
        """Tell an epoch as soon as its checkpoint is written, which may be now."""
        self._owed = (result, written)
        self.tell(wait=False)

    def tell(self, *, wait: bool) -> None:
        """Tell what is owed, if it is written.

        Args:
            wait: for it to be written.

        Raises:
            Exception: what writing failed with.
        """
        if self._owed is not None and (wait or self._owed[1].done()):
            (result, written), self._owed = self._owed, None
            written.result()
            self.decision = self._on_epoch(result)

    def check(self, *, wait: bool) -> None:
        """The same within an epoch.

        Raises:
            Ended: if the answer is that training ends.
        """
        self.tell(wait=wait)
        if self.decision is not Decision.CONTINUE:
            raise Ended
