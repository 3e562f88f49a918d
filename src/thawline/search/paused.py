"""Trials that are paused: any search that shares the study may resume them, or end them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

import optuna
from optuna.trial import FrozenTrial

from thawline.config import SearchConfig
from thawline.search.gp_sampler import PAUSED
from thawline.search.records import Asked, TrialRecord
from thawline.search.storage import Claims, lease_of, patiently
from thawline.search.trial_result import TrialResult
from thawline.training import Hyperparameters, sign_of

__all__ = ["RESUMED_AFTER", "PausedTrials"]

RESUMED_AFTER = "resumed_after"
"""Attribute of a resumed trial: its number of epochs at that time. It trains at least one more."""


class PausedTrials:
    """The paused trials of a study.

    A paused trial is RUNNING in Optuna's study, with its result so far as an attribute, and without a lease.
    """

    def __init__(self, study: optuna.Study, claims: Claims, config: SearchConfig) -> None:
        self._study, self._claims = study, claims
        self._sign = sign_of(config.study.metric)

    def pause(self, result: TrialResult) -> None:
        """Store the result so far of a trial that pauses."""
        if not self._claims.lost(lease_of(result.number)):
            self._note(result.number, PAUSED, asdict(result))
        self._claims.release(lease_of(result.number))

    def resume(self, number: int) -> Asked | None:
        """Claim a paused trial; ``None`` if another search has it."""
        with self._claims.alone("draw"):
            result = self._claim(number)
            if result is not None:
                self.resumed(number)
        if result is None:
            return None
        hyperparameters = Hyperparameters(**self._trial(number).user_attrs["hyperparameters"])
        return Asked(number, hyperparameters, resumed=True, seconds=result.seconds)

    def resumed(self, number: int) -> None:
        """Record that a claimed trial is no longer paused, if it was."""
        trial = self._trial(number)
        if trial.user_attrs.get(PAUSED):
            self._note(number, RESUMED_AFTER, len(trial.intermediate_values))
            self._note(number, PAUSED, {})

    def left(self, records: Sequence[TrialRecord], *, out_of_time: bool) -> Iterator[TrialResult]:
        """Claim the paused trials, best first, and return their results: without being resumed, they end as pruned.

        At the time limit, one that is better than all complete trials counts as complete, like a trial that is being
        trained. Until its end is recorded, a trial stays paused: if this process dies before, another one ends it.
        """
        complete = [self._sign * r.value for r in records if r.state == "complete" and r.value is not None]
        best = max(complete, default=-math.inf)
        paused = [(r.number, self._sign * r.value) for r in records if r.state == "paused" and r.value is not None]
        for number, value in sorted(paused, key=lambda each: -each[1]):
            result = self._claim(number)
            if result is None:
                continue
            if out_of_time and value > best:
                best = value
                yield replace(result, state="complete", reason=f"stopped by the time limit, {result.reason}")
            else:
                yield replace(result, state="pruned", reason=f"{result.reason}, not resumed")

    def _claim(self, number: int) -> TrialResult | None:
        """The result so far of a trial that is still paused, now claimed; ``None`` if another search has it."""
        if not patiently(self._claims.take, lease_of(number)):
            return None
        trial = self._trial(number)
        paused = trial.user_attrs.get(PAUSED)
        if trial.state.is_finished() or not paused:
            self._claims.release(lease_of(number))
            return None
        return TrialResult(**paused)

    def _note(self, number: int, name: str, value: object) -> None:
        patiently(optuna.Trial(self._study, self._trial(number)._trial_id).set_user_attr, name, value)

    def _trial(self, number: int) -> FrozenTrial:
        trial: FrozenTrial = patiently(self._study.get_trials, deepcopy=False)[number]
        return trial
