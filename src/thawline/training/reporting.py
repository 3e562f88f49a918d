"""Report the results of epochs, each once its checkpoint is written.

After a kill, training resumes from its last checkpoint, and reports that checkpoint's epochs again. If an epoch were
reported before its checkpoint is on disk, it could be trained and reported twice. So while a thread writes the
checkpoint, the next epoch trains, and is aborted if the decision on the previous one is to stop.
"""

from collections.abc import Callable

from thawline.training.checkpoint import CheckpointFolder
from thawline.training.results import Decision, EpochResult

__all__ = ["Ended", "Reports"]


class Ended(Exception):
    """Training ends with the last reported epoch; later steps are discarded."""


class Reports:
    """The reports of one training, and the last decision."""

    def __init__(self, on_epoch: Callable[[EpochResult], Decision], checkpoints: CheckpointFolder) -> None:
        """Report the epochs in ``checkpoints`` to ``on_epoch``, which returns whether to continue."""
        self._on_epoch, self._checkpoints = on_epoch, checkpoints
        self._owed: EpochResult | None = None
        self.decision = Decision.CONTINUE

    def repeat(self, result: EpochResult) -> None:
        """Report an epoch of a loaded checkpoint, before training starts."""
        self.decision = self._on_epoch(result)

    def add(self, result: EpochResult) -> None:
        """Report an epoch as soon as its checkpoint is written, possibly now."""
        self._owed = result
        self.tell(wait=False)

    def tell(self, *, wait: bool) -> None:
        """Report pending epochs whose checkpoints are written.

        Args:
            wait: whether to wait until they are written.

        Raises:
            Exception: the error of a failed write.
        """
        if self._owed is not None and (wait or not self._checkpoints.is_writing):
            result, self._owed = self._owed, None
            self._checkpoints.wait()
            self.decision = self._on_epoch(result)

    def check(self, *, wait: bool) -> None:
        """The same within an epoch.

        Raises:
            Ended: if the decision is to end training.
        """
        self.tell(wait=wait)
        if self.decision is not Decision.CONTINUE:
            raise Ended
