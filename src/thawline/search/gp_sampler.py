"""Optuna's ``GPSampler`` as a study uses it."""

import copy
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from thawline.search.modelled import best_and_latest

__all__ = ["DEPTH", "PAUSED", "GPSamplerWithPruned"]

DEPTH = "freeze_depth"
"""The parameter of a study of one backbone that decides what an epoch costs."""
PAUSED = "paused"
"""Attribute of a trial that waits for its next epoch: what it has reached; empty of one that waited and was resumed."""


class GPSamplerWithPruned(optuna.samplers.GPSampler):
    """Optuna's ``GPSampler``, which also learns from pruned trials, and may weigh what it expects by its cost.

    Optuna's own sees only complete and running trials: it learns nothing from pruned ones, and asks for the same point
    again. Here a pruned or paused trial counts with the last value it reported, a little less than it would have
    reached: it was below the median, or not worth another epoch, all the same.
    """

    def __init__(self, *, seed: int | None = None, seconds: Sequence[float] | None = None, **options: Any) -> None:
        """See Optuna's for the options.

        Args:
            seed: of the random numbers.
            seconds: that an epoch takes, by freeze depth from 0: the expected improvement of a trial is divided by it
                (Snoek, Larochelle, Adams, "Practical Bayesian Optimization of Machine Learning Algorithms", 2012).
                ``None`` counts trials.
            options: of Optuna's sampler.
        """
        super().__init__(seed=seed, **options)
        self._seconds = seconds
        self._space: dict[str, BaseDistribution] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that are modelled together."""
        return super().infer_relative_search_space(*_pruned_as_complete(study, trial))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Ask the model."""
        self._space = search_space
        return super().sample_relative(*_pruned_as_complete(study, trial), search_space)

    def _optimize_acqf(self, acqf: Any, best_params: Any) -> Any:
        # Optuna leaves this method to be overridden, and promises nothing about it; a test notices a change.
        if self._seconds is not None and DEPTH in self._space:
            acqf = _per_second(acqf, self._space, self._seconds)
        return super()._optimize_acqf(acqf, best_params)


def _per_second(acqf: Any, space: Mapping[str, BaseDistribution], seconds: Sequence[float]) -> Any:
    """Expected improvement for each second, both as logarithms; between two depths the seconds are interpolated."""
    import torch
    from optuna._gp.acqf import BaseAcquisitionFunc

    column, depths = list(space).index(DEPTH), space[DEPTH]
    assert isinstance(depths, IntDistribution)  # noqa: S101  narrows the type
    costs = torch.log(torch.tensor(seconds[depths.low : depths.high + 1], dtype=torch.float64))

    class PerSecond(BaseAcquisitionFunc):
        def eval_acqf(self, x: torch.Tensor) -> torch.Tensor:
            place = (x[..., column] * len(costs) - 0.5).clamp(0, len(costs) - 1)  # as Optuna normalises integers
            below = place.floor().long().clamp(max=max(0, len(costs) - 2))
            above = (below + 1).clamp(max=len(costs) - 1)
            cost = costs[below] + (place - below) * (costs[above] - costs[below])
            expected: torch.Tensor = acqf.eval_acqf(x)
            return expected - cost

    return PerSecond(acqf.length_scales, acqf.search_space)


_MODELLED = 100
"""Trials that the model is fitted to, at most: the time for it grows with their cube."""


def _pruned_as_complete(study: optuna.Study, asking: FrozenTrial) -> tuple[optuna.Study, FrozenTrial]:
    """A copy of the study in memory in which pruned trials are complete, and that copy of the trial that asks.

    Of a large study it holds the best and the latest trials, half of each, and those that are running.
    """
    trials = [
        trial for trial in study.get_trials(deepcopy=False) if trial.number != asking.number and trial.state in _SEEN
    ]
    trials = [_as_pruned(trial) if trial.user_attrs.get(PAUSED) else trial for trial in trials]
    running = [trial for trial in trials if trial.state is TrialState.RUNNING]
    valued = [trial for trial in trials if trial.value is not None and trial.state is not TrialState.RUNNING]
    sign = 1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1
    kept = best_and_latest(valued, _MODELLED, lambda trial: sign * float(trial.value or 0.0))
    seen = copy.deepcopy([*kept, *running])
    made = optuna.create_study(direction=study.direction)
    for trial in sorted(seen, key=lambda trial: trial.number):
        if trial.state is TrialState.PRUNED:
            trial.state = TrialState.COMPLETE
        made.add_trial(trial)
    made.add_trial(asking)
    return made, made.get_trials(deepcopy=False)[-1]


def _as_pruned(trial: FrozenTrial) -> FrozenTrial:
    """A paused trial as if it was never resumed; one that has ended since is left as it is."""
    if trial.state is not TrialState.RUNNING:
        return trial
    ended = copy.deepcopy(trial)
    ended.state, ended.datetime_complete = TrialState.PRUNED, datetime.datetime.now()
    ended.value = ended.intermediate_values[max(ended.intermediate_values)]
    return ended


_SEEN = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
