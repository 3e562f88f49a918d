"""Policies of thawing: which layer groups are frozen in which epoch.

They are functions of the epochs so far and of nothing else. So there is no state that a checkpoint could miss: what is
thawed in the next epoch follows from the history that it holds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from thawline.config import Policy, TrainConfig
from thawline.training.hyperparameters import Hyperparameters
from thawline.training.metrics import METRIC_DIRECTIONS
from thawline.training.results import EpochResult, no_longer_improves

__all__ = ["Thawing"]


@dataclass(frozen=True)
class Thawing:
    """How the freeze depth of one training falls from epoch to epoch, down to that of its trial."""

    policy: Policy
    freeze_depth: int
    """Where it ends."""
    deepest: int
    """Number of layer groups, where ``gradual`` and ``lp_ft`` begin: the head alone."""
    epochs: int
    fraction: float
    """Share of the epochs after which all is thawed, in (0, 1]."""
    patience: int | None
    """Epochs without a better value after which ``gradual`` thaws another group; ``None`` for evenly."""
    metric: str
    """Validation metric, a key of ``METRIC_DIRECTIONS``."""

    @classmethod
    def of(cls, hyperparameters: Hyperparameters, config: TrainConfig, *, deepest: int, metric: str) -> "Thawing":
        """As a trial and its configuration say."""
        return cls(
            policy=hyperparameters.policy,
            freeze_depth=hyperparameters.freeze_depth,
            deepest=deepest,
            epochs=config.epochs,
            fraction=config.thaw_fraction,
            patience=config.thaw_patience,
            metric=metric,
        )

    def depths(self, history: Sequence[EpochResult]) -> list[int]:
        """The freeze depth of each epoch so far and of the next, ``len(history) + 1`` numbers that never rise."""
        if self.policy == "gradual" and self.patience is not None:
            return self._on_plateaus(history, self.patience)
        return [self._at(epoch) for epoch in range(len(history) + 1)]

    def stops_early(self, history: Sequence[EpochResult], patience: int | None) -> bool:
        """Whether the best value is ``patience`` epochs old, counted from when the last layer group was thawed at most.

        Before that there is no stopping: the best is yet to be thawed.
        """
        depths = self.depths(history)
        if depths[-1] > self.freeze_depth:
            return False
        return no_longer_improves(history, self.metric, patience, since=depths.index(depths[-1]))

    def _at(self, epoch: int) -> int:
        """Of an epoch, from 0."""
        # At least one epoch for the head, and the last one for all: with a single epoch there is nothing to do in turn.
        turns = min(max(1, round(self.fraction * self.epochs)), self.epochs - 1)
        if self.policy == "static" or epoch >= turns:
            return self.freeze_depth
        if self.policy == "lp_ft":
            return self.deepest
        return self.deepest - epoch * (self.deepest - self.freeze_depth) // turns

    def _on_plateaus(self, history: Sequence[EpochResult], patience: int) -> list[int]:
        sign = 1 if METRIC_DIRECTIONS[self.metric] == "maximize" else -1
        depths, best, since = [self.deepest], -math.inf, 0
        for result in history:
            depth, value = depths[-1], sign * result.metrics[f"val/{self.metric}"]
            if value > best:
                best, since = value, result.epoch
            elif depth > self.freeze_depth and result.epoch - since >= patience:
                depth, since = depth - 1, result.epoch
            depths.append(depth)
        return depths
