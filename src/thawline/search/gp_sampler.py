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
"""The parameter that determines the cost of an epoch in a study of one backbone."""
PAUSED = "paused"
"""Attribute of a paused trial: its result so far; empty once it was resumed."""


class GPSamplerWithPruned(optuna.samplers.GPSampler):
    """Optuna's ``GPSampler``, extended to learn from pruned trials and, optionally, to weigh improvement by cost.

    Optuna's own sees only complete and running trials: it learns nothing from pruned ones, and suggests the same point
    again. Here a pruned or paused trial counts with the last value that it reported. That is a little less than it
    would have reached, but it was below the median, or not worth another epoch, anyway.
    """

    def __init__(self, *, seed: int | None = None, seconds: Sequence[float] | None = None, **options: Any) -> None:
        """See Optuna's sampler for further options.

        Args:
            seed: seed of the random numbers.
            seconds: seconds per epoch by freeze depth, from 0; they divide the expected improvement of a trial (Snoek,
                Larochelle, Adams, "Practical Bayesian Optimization of Machine Learning Algorithms", 2012). ``None``
                counts trials.
            options: options of Optuna's sampler.
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
        # Optuna allows overriding this method but gives no guarantees about it; a test notices a change.
        if self._seconds is not None and DEPTH in self._space:
            acqf = _per_second(acqf, self._space, self._seconds)
        return super()._optimize_acqf(acqf, best_params)


def _per_second(acqf: Any, space: Mapping[str, BaseDistribution], seconds: Sequence[float]) -> Any:
    """Expected improvement per second, both as logarithms; seconds are interpolated between depths."""
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
"""Maximum number of trials that the model is fitted to: its time grows with their cube."""


def _pruned_as_complete(study: optuna.Study, asking: FrozenTrial) -> tuple[optuna.Study, FrozenTrial]:
    """A copy of the study in memory in which pruned trials are complete, and its copy of the asking trial.

    For a large study, the copy has the best and the latest trials, half of each, and the running ones.
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
    """A paused trial as if it were never resumed; one that has ended since is unchanged."""
    if trial.state is not TrialState.RUNNING:
        return trial
    ended = copy.deepcopy(trial)
    ended.state, ended.datetime_complete = TrialState.PRUNED, datetime.datetime.now()
    ended.value = ended.intermediate_values[max(ended.intermediate_values)]
    return ended


_SEEN = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
