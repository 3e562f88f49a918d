"""Policies of thawing: which layer groups are frozen in which epoch.

They are functions of the epochs so far and of nothing else. So there is no state that a checkpoint could miss: what is
thawed in the next epoch follows from the history that it holds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from thawline.config import TrainConfig
from thawline.training.directions import sign_of
from thawline.training.hyperparameters import Hyperparameters, TrialPolicy
from thawline.training.results import EpochResult, no_longer_improves

__all__ = ["Thawing"]


@dataclass(frozen=True)
class Thawing:
    """How the freeze depth of one training falls from epoch to epoch, down to that of its trial."""

    policy: TrialPolicy
    freeze_depth: int
    """Where it ends."""
    deepest: int
    """Number of layer groups, where ``gradual`` and ``lp_ft`` begin: head only."""
    until: int
    """Epochs after which ``thaw_fraction`` has all thawed."""
    metric: str
    """Validation metric, a key of ``METRIC_DIRECTIONS``."""
    patience: int | None = None
    """Epochs without a better value after which ``gradual`` thaws another group, in place of the even schedule."""
    at: tuple[int, ...] | None = None
    """The epochs, from 1 and rising, at which ``gradual`` thaws another group; ``None`` for the even schedule."""

    @classmethod
    def of(cls, hyperparameters: Hyperparameters, config: TrainConfig, *, deepest: int, metric: str) -> "Thawing":
        """As a trial and its configuration say."""
        return cls(
            policy=hyperparameters.policy,
            freeze_depth=hyperparameters.freeze_depth,
            deepest=deepest,
            until=config.epochs_until_thawed,
            metric=metric,
            patience=config.thaw_patience,
            at=config.thaw_epochs,
        )

    def depths(self, history: Sequence[EpochResult]) -> list[int]:
        """The freeze depth of each epoch so far and of the next, ``len(history) + 1`` numbers that never rise."""
        if self.policy == "gradual" and self.patience is not None:
            return self._on_plateaus(history, self.patience)
        return self.planned(len(history) + 1)

    def planned(self, epochs: int) -> list[int]:
        """The freeze depth of each epoch as far as it can be known before: plateaus are taken to come evenly."""
        if self.policy == "gradual" and self.at is not None:
            return [self._at_given(self.at, epoch) for epoch in range(1, epochs + 1)]
        return [self._scheduled(epoch) for epoch in range(epochs)]

    def stops_early(self, history: Sequence[EpochResult], patience: int | None) -> bool:
        """Whether the best value is ``patience`` epochs old, counted from when the last layer group was thawed at most.

        Before that there is no stopping: the best is yet to be thawed.
        """
        depths = self.depths(history)
        if depths[-1] > self.freeze_depth:
            return False
        return no_longer_improves(history, self.metric, patience, since=depths.index(depths[-1]))

    def _scheduled(self, epoch: int) -> int:
        """Of an epoch, from 0."""
        if self.policy in ("static", "probe") or epoch >= self.until:
            return self.freeze_depth
        if self.policy == "lp_ft":
            return self.deepest
        return self.deepest - epoch * (self.deepest - self.freeze_depth) // self.until

    def _at_given(self, at: Sequence[int], epoch: int) -> int:
        """Of an epoch, from 1."""
        if epoch >= at[-1]:
            return self.freeze_depth
        return max(self.freeze_depth, self.deepest - sum(thawed <= epoch for thawed in at))

    def _on_plateaus(self, history: Sequence[EpochResult], patience: int) -> list[int]:
        """On plateaus, and all that are left in the end: otherwise trials of different freeze depths that make progress
        would train exactly the same."""
        sign = sign_of(self.metric)
        depths, best, since = [self._scheduled(0)], -math.inf, 0
        for result in history:
            depth, value = depths[-1], sign * result.metrics[f"val/{self.metric}"]
            if value > best:
                best, since = value, result.epoch
            elif result.epoch - since >= patience:
                depth = max(self.freeze_depth, depth - 1)
            depths.append(self.freeze_depth if result.epoch >= self.until else depth)
            if depths[-1] < depths[-2]:
                since = result.epoch
        return depths
