"""Thawing policies: the layer groups that are frozen in each epoch.

They depend only on the history of epochs, so they have no state that a checkpoint could miss.
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
    """How the freeze depth of a training decreases over epochs, down to that of its trial."""

    policy: TrialPolicy
    freeze_depth: int
    """The final freeze depth."""
    deepest: int
    """Number of layer groups: ``gradual`` and ``lp_ft`` start with the head only."""
    until: int
    """Number of epochs after which ``thaw_fraction`` has thawed everything."""
    metric: str
    """Validation metric, a key of ``METRIC_DIRECTIONS``."""
    patience: int | None = None
    """Epochs without a better value after which ``gradual`` thaws another group, instead of the even schedule."""
    at: tuple[int, ...] | None = None
    """The epochs, from 1 and increasing, in which ``gradual`` thaws another group; ``None`` for the even schedule."""

    @classmethod
    def of(cls, hyperparameters: Hyperparameters, config: TrainConfig, *, deepest: int, metric: str) -> "Thawing":
        """The thawing of a trial with its configuration."""
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
        """The freeze depth of each epoch so far and of the next, ``len(history) + 1`` non-increasing numbers."""
        if self.policy == "gradual" and self.patience is not None:
            return self._on_plateaus(history, self.patience)
        return self.planned(len(history) + 1)

    def planned(self, epochs: int) -> list[int]:
        """The expected freeze depth of each epoch: plateaus are assumed to be evenly spaced."""
        if self.policy == "gradual" and self.at is not None:
            return [self._at_given(self.at, epoch) for epoch in range(1, epochs + 1)]
        return [self._scheduled(epoch) for epoch in range(epochs)]

    def stops_early(self, history: Sequence[EpochResult], patience: int | None) -> bool:
        """Whether the best value is ``patience`` epochs old, counted at the earliest from the last thawing.

        Training does not stop before everything is thawed.
        """
        depths = self.depths(history)
        if depths[-1] > self.freeze_depth:
            return False
        return no_longer_improves(history, self.metric, patience, since=depths.index(depths[-1]))

    def _scheduled(self, epoch: int) -> int:
        """The freeze depth of an epoch, from 0."""
        if self.policy in ("static", "probe") or epoch >= self.until:
            return self.freeze_depth
        if self.policy == "lp_ft":
            return self.deepest
        return self.deepest - epoch * (self.deepest - self.freeze_depth) // self.until

    def _at_given(self, at: Sequence[int], epoch: int) -> int:
        """The freeze depth of an epoch, from 1."""
        if epoch >= at[-1]:
            return self.freeze_depth
        return max(self.freeze_depth, self.deepest - sum(thawed <= epoch for thawed in at))

    def _on_plateaus(self, history: Sequence[EpochResult], patience: int) -> list[int]:
        """Thaw at plateaus, and the rest at the end: otherwise trials of different freeze depths that keep improving
        would train identically."""
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
