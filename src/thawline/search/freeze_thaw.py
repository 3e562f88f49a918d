"""Freeze-thaw: train next the trial that promises most.

Every trial trains one epoch at a time. Then the next trial is chosen among the paused ones and the next new one, by its
expected improvement over the best value so far. If time is the budget, this is divided by the seconds that the trial
still needs (Swersky, Snoek, Adams, "Freeze-Thaw Bayesian Optimization", 2014).

The final value of a curve is forecast in two steps. First, from an epoch to the end, a value closes a share of its gap
to the perfect value; this share is learned from the study's own curves, with recorded curves as the prior. Then a
Gaussian process over the hyperparameters combines these forecasts, weighted by their uncertainty, so that a trial with
few or no epochs is judged by its neighbours.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from thawline.search.modelled import best_and_latest

__all__ = ["Curve", "Forecast", "FreezeThaw", "forecast"]

_GAIN = (0.30, 0.25)
"""Mean and standard deviation of the share of its gap to perfection that a curve closes from start to end; later in
proportion to the remaining epochs. From recorded curves, see ``benchmarks/freeze_thaw.py``."""
_PRIOR_CURVES = 4
"""Weight of the recorded curves, as a number of the study's own curves."""
_NOISE = 0.02
"""Standard deviation of a trial's final value by chance."""
_MODELLED = 60
"""Maximum number of trials that the model is fitted to: its time grows with their cube."""
_FEWEST = 3
"""Minimum number of started trials for a model; with fewer, only their mean and deviation are used."""
_SMALLEST_GAP = 0.02
"""Minimum gap to perfection."""


@dataclass(frozen=True)
class Curve:
    """A trial, as far as the choice depends on it."""

    number: int
    point: tuple[float, ...] | None
    """Its hyperparameters, scaled to [0, 1], the same number for every trial; ``None`` for a trial not drawn yet."""
    values: tuple[float, ...] = ()
    """Value after each epoch so far; larger is better."""
    seconds: float = 1.0
    """Seconds per epoch."""
    resumable: bool = True
    """Whether it may be chosen: it has not ended, and is not being trained now."""


@dataclass(frozen=True)
class Forecast:
    """Forecast of a trial's best value at its end."""

    mean: float
    deviation: float

    def chance(self, best: float) -> float:
        """Probability of being better than ``best``."""
        return 0.5 * (1 + math.erf((self.mean - best) / self.deviation / math.sqrt(2)))

    def improvement(self, best: float) -> float:
        """Expected improvement over ``best``."""
        z = (self.mean - best) / self.deviation
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return (self.mean - best) * self.chance(best) + self.deviation * density


@dataclass(frozen=True)
class FreezeThaw:
    """The rule by which a study distributes epochs.

    Raises:
        ValueError: if an option is out of range.
    """

    n_startup_trials: int = 4
    """Trials that are trained to the end before any is paused: the model learns from them, and they give an early
    result."""
    least_chance: float = 0.01
    """A paused trial stays paused if its probability of becoming the best is smaller."""

    def __post_init__(self) -> None:
        if isinstance(self.n_startup_trials, bool) or not isinstance(self.n_startup_trials, int):
            raise ValueError(f"n_startup_trials must be a whole number, but got {self.n_startup_trials!r}")
        if self.n_startup_trials < 0:
            raise ValueError(f"n_startup_trials must be 0 or more, but got {self.n_startup_trials}")
        if not 0 <= self.least_chance < 1:
            raise ValueError(f"0 <= least_chance < 1 must hold, but got {self.least_chance}")

    def choose(
        self, curves: Sequence[Curve], *, epochs: int, best: float | None, perfect: float, by_time: bool
    ) -> int | None:
        """The number of the trial that gets the next epoch; ``None`` if none is worth one.

        A started trial is worth it if its probability of ending as the best is large enough. A new one always is, so
        that a budget of trials is always used.

        Args:
            curves: trials that have ended, are being trained or are paused, and the next new one.
            epochs: number of epochs of a trial trained to the end.
            best: the best value so far, the linear probe's included; ``None`` if there is none.
            perfect: upper bound of the value: 1, or 0 for negative losses.
            by_time: whether to divide the expected improvement by the seconds it takes.
        """
        candidates = [curve for curve in curves if curve.resumable and len(curve.values) < epochs]
        if sum(len(curve.values) >= epochs for curve in curves) < self.n_startup_trials:
            first = sorted(candidates, key=lambda curve: (not curve.values, curve.number))
            return first[0].number if first else None
        forecasts = dict(zip((c.number for c in curves), forecast(curves, epochs, perfect), strict=True))
        scores: dict[int, float] = {}
        for curve in candidates:
            foreseen = forecasts[curve.number]
            if curve.values and best is not None and foreseen.chance(best) < self.least_chance:
                continue
            gain = foreseen.mean if best is None else foreseen.improvement(best)
            scores[curve.number] = gain / ((epochs - len(curve.values)) * curve.seconds) if by_time else gain
        return max(scores, key=lambda number: (scores[number], -number), default=None)


def forecast(curves: Sequence[Curve], epochs: int, perfect: float) -> list[Forecast]:
    """Forecast the final value of each trial, in the order of ``curves``; see :meth:`FreezeThaw.choose`."""
    gains = _gains([curve.values for curve in curves if len(curve.values) >= epochs], epochs, perfect)
    known = {i: _extended(curve.values, gains, perfect) for i, curve in enumerate(curves) if curve.values}
    means = np.array([each.mean for each in known.values()])
    if len(known) < _FEWEST:
        usual = Forecast(float(means.mean()), 0.1) if len(means) else Forecast(perfect - 0.5, 0.3)
        return [known.get(i, usual) for i in range(len(curves))]
    usual = Forecast(float(means.mean()), max(float(means.std()), _NOISE))
    return _smoothed(curves, known, usual)


def _gains(ended: Sequence[Sequence[float]], epochs: int, perfect: float) -> list[tuple[float, float]]:
    """Mean and deviation of the share of the gap closed from each epoch until the end."""
    gains = []
    for epoch in range(epochs):
        left = 1 - epoch / epochs
        own = [(max(values) - values[epoch]) / _missing(values[epoch], perfect) for values in ended]
        weight = _PRIOR_CURVES + len(own)
        mean = (_GAIN[0] * left * _PRIOR_CURVES + sum(own)) / weight
        spread = (_GAIN[1] * left) ** 2 * _PRIOR_CURVES + sum((gain - mean) ** 2 for gain in own)
        gains.append((mean, math.sqrt(spread / weight)))
    return gains


def _extended(values: Sequence[float], gains: Sequence[tuple[float, float]], perfect: float) -> Forecast:
    """Forecast of a curve's end from this curve only."""
    if len(values) >= len(gains):
        return Forecast(max(values), _NOISE)
    mean, deviation = (share * _missing(values[-1], perfect) for share in gains[len(values) - 1])
    return Forecast(max(*values, values[-1] + mean), max(deviation, _NOISE))


def _missing(value: float, perfect: float) -> float:
    return max(perfect - value, _SMALLEST_GAP)


def _smoothed(curves: Sequence[Curve], known: Mapping[int, Forecast], usual: Forecast) -> list[Forecast]:
    """Forecasts that take a trial's neighbours into account; for trials without epochs, only these."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    fitted = best_and_latest(list(known), _MODELLED, lambda i: known[i].mean)
    points = np.array([curves[i].point for i in fitted], dtype=np.float64)
    targets = np.array([(known[i].mean - usual.mean) / usual.deviation for i in fitted])
    noise = np.array([(known[i].deviation / usual.deviation) ** 2 for i in fitted])
    kernel = ConstantKernel(1.0, (0.1, 10.0)) * Matern([0.5] * points.shape[1], (0.1, 5.0), nu=2.5)
    drawn = [i for i, curve in enumerate(curves) if curve.point is not None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a length scale at its bound, or an optimizer that stopped early
        model = GaussianProcessRegressor(kernel, alpha=noise, random_state=0).fit(points, targets)
        means, deviations = model.predict([curves[i].point for i in drawn], return_std=True)
    smoothed = [usual] * len(curves)
    for i, mean, deviation in zip(drawn, means, deviations, strict=True):
        reached = max(curves[i].values, default=-math.inf)
        foreseen, spread = usual.mean + usual.deviation * float(mean), usual.deviation * float(deviation)
        smoothed[i] = Forecast(max(reached, foreseen), max(spread, _NOISE / 2))
    return smoothed
