"""Schedule a study whose trials are paused and resumed after every epoch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from thawline.config import SearchConfig
from thawline.search.freeze_thaw import Curve, FreezeThaw
from thawline.search.gp_sampler import PAUSED
from thawline.search.records import BEGUN
from thawline.search.sampling import PROBE, freeze_thaw_of
from thawline.search.space import planned_depths, point_in_cube
from thawline.search.storage import patiently
from thawline.training import Hyperparameters, sign_of

__all__ = ["NEW", "Slices"]

NEW = -1
"""Stands for a trial that has not been drawn yet."""


class Slices:
    """The epochs of a study, distributed one at a time."""

    def __init__(
        self, rule: FreezeThaw, study: optuna.Study, config: SearchConfig, may_draw: Callable[[], bool]
    ) -> None:
        """Distribute the epochs of a study; see :meth:`of`."""
        self._rule, self._study, self._config = rule, study, config
        self._may_draw = may_draw
        self._depths: Mapping[str, int] = study.user_attrs["depths"]
        self._sign = sign_of(config.study.metric)
        self._curves: dict[int, tuple[tuple[TrialState, int], Curve]] = {}
        """Curves by trial, with the state and number of epochs they belong to: in a large study few of them change."""

    @classmethod
    def of(cls, study: optuna.Study, config: SearchConfig, may_draw: Callable[[], bool]) -> "Slices | None":
        """The slices of a study; ``None`` unless its pruner is freeze-thaw.

        Args:
            study: the study with its trials.
            config: the search's configuration.
            may_draw: returns whether more trials may be drawn.
        """
        rule = freeze_thaw_of(config.study)
        return None if rule is None else cls(rule, study, config, may_draw)

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
        attributes = patiently(lambda: self._study.user_attrs)  # a copy, which is expensive
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
