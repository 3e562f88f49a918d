"""Schedule a study whose trials are paused and resumed after every epoch."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from thawline.config import SearchConfig
from thawline.search.freeze_thaw import Curve, FreezeThaw
from thawline.search.gp_sampler import PAUSED
from thawline.search.records import BEGUN, Asked, TrialRecord
from thawline.search.sampling import PROBE, freeze_thaw_of
from thawline.search.space import planned_depths, point_in_cube
from thawline.search.storage import Claims, patiently
from thawline.search.trial_result import TrialResult
from thawline.training import Hyperparameters, sign_of

__all__ = ["NEW", "Slices", "lease_of"]

NEW = -1
"""Stands for a trial that has not been drawn yet."""


def lease_of(number: int) -> str:
    """Name of a trial's claim."""
    return f"trial-{number}"


class Slices:
    """The epochs of a study, distributed one at a time.

    A paused trial is RUNNING in Optuna's study, with its result so far as an attribute, and without a lease: any search
    that shares the study may resume it.
    """

    def __init__(
        self,
        rule: FreezeThaw,
        study: optuna.Study,
        claims: Claims,
        config: SearchConfig,
        may_draw: Callable[[], bool],
    ) -> None:
        """Share the trials of a study; see :meth:`of`."""
        self._rule, self._study, self._claims, self._config = rule, study, claims, config
        self._may_draw = may_draw
        self._depths: Mapping[str, int] = study.user_attrs["depths"]
        self._sign = sign_of(config.study.metric)
        self._curves: dict[int, tuple[tuple[TrialState, int], Curve]] = {}
        """Curves by trial, with the state and number of epochs they belong to: in a large study few of them change."""

    @classmethod
    def of(
        cls, study: optuna.Study, claims: Claims, config: SearchConfig, may_draw: Callable[[], bool]
    ) -> "Slices | None":
        """The slices of a study; ``None`` unless its pruner is freeze-thaw.

        Args:
            study: the study with its trials.
            claims: which search works on which trial.
            config: the search's configuration.
            may_draw: returns whether more trials may be drawn.
        """
        rule = freeze_thaw_of(config.study)
        return None if rule is None else cls(rule, study, claims, config, may_draw)

    def next(
        self, waiting: Sequence[int] | None = None, *, may_draw: bool = True, training: int | None = None
    ) -> int | None:
        """The number of the trial that should train next, or :data:`NEW`; ``None`` if none is worth another epoch.

        Args:
            waiting: new trials that the caller may start; ``None`` for all that are drawn and not started.
            may_draw: whether the caller would draw another one.
            training: the trial that asks whether to continue.
        """
        trials = patiently(self._study.get_trials, deepcopy=False)
        attributes = self._study.user_attrs  # a copy, which is expensive
        curves = [self._curve(trial, attributes, resumable=waits) for trial, waits in self._begun(trials, training)]
        drawn = [trial for trial in trials if _is_new(trial) and (waiting is None or trial.number in waiting)]
        if drawn:  # the one that comes first in the queue
            first = min(drawn, key=lambda trial: (-self._frozen(trial), trial.number))
            curves.append(self._curve(first, attributes))
        elif may_draw and self._may_draw():
            curves.append(Curve(NEW, None, seconds=_mean([curve.seconds for curve in curves])))
        probed = [self._sign * trial.value for trial in trials if PROBE in trial.user_attrs and trial.value is not None]
        return self._rule.choose(
            curves,
            epochs=self._config.train.epochs,
            best=max([*probed, *(value for curve in curves for value in curve.values)], default=None),
            perfect=0.0 if self._config.study.metric == "loss" else 1.0,
            by_time=self._config.study.timeout_minutes is not None,
        )

    def pause(self, result: TrialResult) -> None:
        """Store the result so far of a trial that pauses."""
        if not self._claims.lost(lease_of(result.number)):
            self._note(result.number, PAUSED, asdict(result))
        self._claims.release(lease_of(result.number))

    def resume(self, number: int) -> Asked | None:
        """Claim a paused trial; ``None`` if another search has it."""
        with self._claims.alone("draw"):
            if not self._claims.take(lease_of(number)):
                return None
            trial = self._trial(number)
            paused = trial.user_attrs.get(PAUSED)
            if trial.state.is_finished() or not paused:
                self._claims.release(lease_of(number))
                return None
            self._note(number, PAUSED, {})
        hyperparameters = Hyperparameters(**trial.user_attrs["hyperparameters"])
        return Asked(number, hyperparameters, resumed=True, seconds=paused["seconds"])

    def left(self, records: Sequence[TrialRecord], *, out_of_time: bool) -> Iterator[TrialResult]:
        """Claim the paused trials, best first, and return their results: without being resumed, they end as pruned.

        At the time limit, one that is better than all complete trials counts as complete, like a trial that is being
        trained.
        """
        complete = [self._sign * r.value for r in records if r.state == "complete" and r.value is not None]
        best = max(complete, default=-math.inf)
        paused = [r.result for r in records if r.state == "paused" and r.result is not None]
        valued = [(result, self._sign * result.value) for result in paused if result.value is not None]
        for result, value in sorted(valued, key=lambda each: -each[1]):
            if self.resume(result.number) is None:
                continue
            if out_of_time and value > best:
                best = value
                yield replace(result, state="complete", reason=f"stopped by the time limit, {result.reason}")
            else:
                yield replace(result, state="pruned", reason=f"{result.reason}, not resumed")

    def _note(self, number: int, name: str, value: object) -> None:
        patiently(optuna.Trial(self._study, self._trial(number)._trial_id).set_user_attr, name, value)

    def _trial(self, number: int) -> FrozenTrial:
        trial: FrozenTrial = patiently(self._study.get_trials, deepcopy=False)[number]
        return trial

    @staticmethod
    def _begun(trials: Sequence[FrozenTrial], training: int | None) -> Iterator[tuple[FrozenTrial, bool]]:
        """Trials that have finished an epoch, and whether they may train another now."""
        for trial in trials:
            if PROBE in trial.user_attrs or not trial.intermediate_values or trial.state is TrialState.FAIL:
                continue
            waits = bool(trial.user_attrs.get(PAUSED)) or trial.number == training
            yield trial, trial.state is TrialState.RUNNING and waits

    def _curve(self, trial: FrozenTrial, attributes: Mapping[str, Any], *, resumable: bool = True) -> Curve:
        current = trial.state, len(trial.intermediate_values)
        known, curve = self._curves.get(trial.number, (None, None))
        if curve is None or known != current:
            curve = self._curve_of(trial, attributes)
            self._curves[trial.number] = current, curve
        return replace(curve, resumable=resumable) if curve.resumable != resumable else curve

    def _curve_of(self, trial: FrozenTrial, attributes: Mapping[str, Any]) -> Curve:
        values = [self._sign * value for _, value in sorted(trial.intermediate_values.items())]
        if trial.state is TrialState.COMPLETE:  # it may have stopped early
            values += [max(values)] * (self._config.train.epochs - len(values))
        hyperparameters = Hyperparameters(**trial.user_attrs["hyperparameters"])
        point = point_in_cube(hyperparameters, self._config, self._depths)
        return Curve(trial.number, point, tuple(values), self._seconds(hyperparameters, attributes))

    def _seconds(self, hyperparameters: Hyperparameters, attributes: Mapping[str, Any]) -> float:
        """Mean seconds per epoch of a trial, as policies thaw during training. If unknown, all epochs cost the same."""
        known = attributes.get(f"seconds:{hyperparameters.backbone}")
        if known is None:
            return 1.0
        deepest, epochs = self._depths[hyperparameters.backbone], self._config.train.epochs
        return _mean([known[depth] for depth in planned_depths(hyperparameters, self._config, deepest, epochs)])

    def _frozen(self, trial: FrozenTrial) -> float:
        hyperparameters = trial.user_attrs["hyperparameters"]
        return float(hyperparameters["freeze_depth"] / self._depths[hyperparameters["backbone"]])


def _is_new(trial: FrozenTrial) -> bool:
    drawn = trial.state is TrialState.RUNNING and "hyperparameters" in trial.user_attrs
    return drawn and not {BEGUN, PROBE} & trial.user_attrs.keys()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 1.0
