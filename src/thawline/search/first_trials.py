"""The trials with which a study begins: linear probes, the user's points, and the portfolio."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna

from thawline.config import SearchConfig
from thawline.search.sampling import PROBE
from thawline.search.space import default_points

__all__ = ["enqueue_first_trials"]


def enqueue_first_trials(
    study: optuna.Study, config: SearchConfig, points: Sequence[dict[str, Any]], depths: Mapping[str, int]
) -> None:
    """Enqueue the linear probes and the first points, except for those that a process enqueued before it died."""
    known = study.get_trials(deepcopy=False)
    probed = {trial.user_attrs.get(PROBE) for trial in known}
    for backbone in config.backbones:
        if backbone not in probed:
            study.enqueue_trial({}, user_attrs={PROBE: backbone})
    enqueued = [trial.system_attrs["fixed_params"] for trial in known if PROBE not in trial.user_attrs]
    for point in _without_twins([*enqueued, *points, *default_points(config, depths)])[len(enqueued) :]:
        study.enqueue_trial(point)


def _without_twins(points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points without duplicates: a retrain starts with the champion's, which may be a default."""
    kept: list[dict[str, Any]] = []
    for point in points:
        if not any(_same_point(point, other) for other in kept):
            kept.append(point)
    return kept


def _same_point(point: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return point.keys() == other.keys() and all(
        math.isclose(value, other[name], rel_tol=1e-6)
        if isinstance(value, float) and isinstance(other[name], int | float)
        else value == other[name]
        for name, value in point.items()
    )
