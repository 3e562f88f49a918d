"""Telling the results of epochs, each once its checkpoint is written.

After a kill training resumes from its last checkpoint, and tells again what that holds: were an epoch told before its
checkpoint is on the disk, it could be trained, and told, twice. So while a thread writes it, the next epoch trains, and
the answer to the one before ends it, if it is to end.
"""

from collections.abc import Callable

from thawline.training.checkpoint import CheckpointFolder
from thawline.training.results import Decision, EpochResult

__all__ = ["Ended", "Reports"]


class Ended(Exception):
    """Training is to end with the last epoch that was told; what was trained since is not part of it."""


class Reports:
    """What is told of one training, and the last answer."""

    def __init__(self, on_epoch: Callable[[EpochResult], Decision], checkpoints: CheckpointFolder) -> None:
        """Tell ``on_epoch``, which answers whether to continue, of what is in ``checkpoints``."""
        self._on_epoch, self._checkpoints = on_epoch, checkpoints
        self._owed: EpochResult | None = None
        self.decision = Decision.CONTINUE

    def repeat(self, result: EpochResult) -> None:
        """Tell an epoch that a checkpoint holds, before training begins."""
        self.decision = self._on_epoch(result)

    def add(self, result: EpochResult) -> None:
        """Tell an epoch as soon as its checkpoint, which is kept already, is written: maybe now."""
        self._owed = result
        self.tell(wait=False)

    def tell(self, *, wait: bool) -> None:
        """Tell what is owed, if it is written.

        Args:
            wait: for it to be written.

        Raises:
            Exception: what writing failed with.
        """
        if self._owed is not None and (wait or not self._checkpoints.is_writing):
            result, self._owed = self._owed, None
            self._checkpoints.wait()
            self.decision = self._on_epoch(result)

    def check(self, *, wait: bool) -> None:
        """The same within an epoch.

        Raises:
            Ended: if the answer is that training ends.
        """
        self.tell(wait=wait)
        if self.decision is not Decision.CONTINUE:
            raise Ended
