"""Sample a trial's hyperparameters from a recipe's search space."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

from thawline.backbones import kind_of
from thawline.config import SEARCHABLE, Policy, Range, SearchConfig
from thawline.exceptions import ConfigError
from thawline.training import Hyperparameters, Thawing

__all__ = [
    "PORTFOLIO",
    "Start",
    "Suggest",
    "check_space",
    "default_points",
    "depth_range",
    "depth_shares",
    "kept_backbones",
    "planned_depths",
    "point_in_cube",
    "point_of",
    "probe_of",
    "sample",
    "with_backbones",
]

_Config = TypeVar("_Config", bound=SearchConfig)
_SAMPLED = tuple(each.name for each in fields(Hyperparameters) if each.name in SEARCHABLE)
"""The searchable settings in the order of sampling; a different order would change the trials of a seed."""


@dataclass(frozen=True)
class Start:
    """A point that a search starts with, for any backbone."""

    share: float
    """Share of frozen layer groups."""
    learning_rate: float
    """For image networks with AdamW."""
    policy: Policy | None = None
    """Used if the space contains policies; ``None`` for the configuration's own."""


PORTFOLIO = (
    Start(0.0, 1e-4),
    Start(1 / 3, 1e-3),
    Start(1 / 3, 3e-4),
    Start(0.0, 3e-4, "gradual"),
    Start(2 / 3, 1e-3),
    Start(0.0, 1e-3),
)
"""Found by leave-one-out over eight tasks, best first (ADR 21)."""
_TEXTS_SLOWER = 0.5
"""Text encoders need half the learning rate of image networks."""


class Suggest(Protocol):
    """The part of Optuna's ``Trial`` used for sampling."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """An integer in [low, high]."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """A number in [low, high], optionally on a log scale."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""


def check_space(config: SearchConfig, depths: Mapping[str, int]) -> None:
    """Refuse a freeze-depth range that the backbone does not have, and settings without anything to choose.

    Args:
        config: the whole configuration.
        depths: number of layer groups of each backbone in ``config.backbones``.

    Raises:
        ConfigError: with the backbone, its depth and the range.
    """
    norms = config.space.opened("batch_norm")
    if norms is not None and all(map(config.backbone.is_random, config.backbones)):
        raise ConfigError(
            "space.batch_norm: there is nothing to choose with backbone.weights=none, where batch-norms have no "
            f"statistics to keep, but got {list(norms)}. Remove it, or use pretrained weights."
        )
    for name in config.backbones:
        wanted = _wanted_range(config, name)
        if wanted is not None and wanted[1] > depths[name]:
            key = "space.freeze_depth" if config.space.backbone is None else f"space.backbone: {name}"
            raise ConfigError(
                f"{key}: 0 <= low <= high <= {depths[name]} must hold, because {name} has {depths[name]} "
                f"layer groups, but got {list(wanted)}. `thawline summary {name}` shows them."
            )
    searched = [name for name, row in SEARCHABLE.items() if row.mark.thawed_only and config.space.opened(name)]
    if searched and all(depth_range(config, depths, name)[0] == depths[name] for name in config.backbones):
        raise ConfigError(
            f"space.{searched[0]}: there is nothing to choose, because every trial trains the head only. Leave it "
            "out, or open smaller freeze depths."
        )


def sample(trial: Suggest, config: SearchConfig, depths: Mapping[str, int]) -> Hyperparameters:
    """Sample the settings in the space with Optuna; take the configuration's values for the rest."""
    space, backbone = config.space, config.backbone.name
    if space.backbone is not None:
        # In a fixed order, as a different order is a different space to Optuna.
        backbone = trial.suggest_categorical("backbone", sorted(space.backbone))
    low, high = depth_range(config, depths, backbone)
    return Hyperparameters(
        backbone=backbone,
        freeze_depth=trial.suggest_int(_depth_parameter(config, backbone), low, high),
        **{name: _drawn(trial, config, backbone, name) for name in _SAMPLED},
    )


def _drawn(trial: Suggest, config: SearchConfig, backbone: str, name: str) -> Any:
    """The value of a searchable setting: sampled if it is in the space, else the configuration's."""
    opened, row = config.space.opened(name), SEARCHABLE[name]
    if opened is None or (name == "batch_norm" and config.backbone.is_random(backbone)):
        return config.fixed(name, backbone)
    if isinstance(row, Range):
        return trial.suggest_float(name, *opened, log=row.mark.log)
    return trial.suggest_categorical(name, opened)


def probe_of(config: SearchConfig, depths: Mapping[str, int], backbone: str) -> Hyperparameters:
    """The linear probe of a backbone as a trial: everything frozen and nothing sampled, regardless of the space."""
    return Hyperparameters(
        backbone=backbone,
        freeze_depth=depths[backbone],
        learning_rate=0.0,
        weight_decay=0.0,
        head_learning_rate_factor=1.0,
        optimizer=config.train.optimizer,
        policy="probe",
        batch_norm=config.batch_norm_of(backbone),
    )


def kept_backbones(config: SearchConfig, ranking: Iterable[str]) -> list[str]:
    """The backbones to try, best first: ``study.keep_backbones`` of them, and those in ``study.enqueue``."""
    ranked = [name for name in ranking if name in config.backbones] or list(config.backbones)
    named = {point.get("backbone") for point in config.study.enqueue}
    return [name for name in ranked if name in ranked[: config.study.keep_backbones] or name in named]


def with_backbones(config: _Config, names: Iterable[str]) -> _Config:
    """The search restricted to these backbones, in this order."""
    if config.space.backbone is None:
        return config
    choices = {name: config.space.backbone[name] for name in names}
    return config.model_copy(update={"space": config.space.model_copy(update={"backbone": choices})})


def default_points(config: SearchConfig, depths: Mapping[str, int]) -> list[dict[str, Any]]:
    """The points to try first, clipped to the space; with several backbones, only for the first one.

    If the study's trials suffice for all of them, or time limits it, the cheapest come first: a good model is found
    sooner, and the sampler starts from the same results. A grid is tried unchanged.
    """
    if config.study.sampler == "GridSampler":
        return []
    first = config.backbones[0]
    texts = kind_of(first) == "texts"
    points = []
    for start in PORTFOLIO:
        rate = start.learning_rate * (_TEXTS_SLOWER if texts else 1)
        point = _default_point(config, depths, first, round(start.share * depths[first]), rate)
        if start.policy in (config.space.opened("policy") or ()):
            point["policy"] = start.policy
        if point not in points:
            points.append(point)
    most = config.study.most_trials
    if most is None or most >= len(config.backbones) + len(config.study.enqueue) + len(points):
        points.sort(key=lambda point: -point[_depth_parameter(config, first)])
    return points


def _default_point(
    config: SearchConfig, depths: Mapping[str, int], backbone: str, freeze_depth: int, learning_rate: float
) -> dict[str, Any]:
    low, high = depth_range(config, depths, backbone)
    point: dict[str, Any] = {"backbone": backbone} if config.space.backbone else {}
    point[_depth_parameter(config, backbone)] = min(max(freeze_depth, low), high)
    for name, row in SEARCHABLE.items():
        opened = config.space.opened(name)
        if opened is not None:
            usual = learning_rate if name == "learning_rate" else getattr(config.train, name)
            near = row.nearest(usual, opened)
            point[name] = opened[0] if near is None else near
    return point


def point_of(point: Mapping[str, Any], config: SearchConfig, depths: Mapping[str, int]) -> dict[str, Any]:
    """Translate a point of ``study.enqueue`` to the names of the search space, and check its ranges.

    Raises:
        ConfigError: if it has a setting that is not in the space, or a value out of range.
    """
    space = config.space
    backbone = point.get("backbone", config.backbones[0])
    opened = {
        "backbone": tuple(space.backbone) if space.backbone is not None else None,
        "freeze_depth": depth_range(config, depths, backbone) if backbone in depths else None,
        **{name: space.opened(name) for name in SEARCHABLE},
    }
    problems = []
    if space.backbone is not None and "freeze_depth" in point and "backbone" not in point:
        problems.append("freeze_depth depends on the backbone: give the backbone too")
    for name, value in point.items():
        allowed = opened.get(name)
        if allowed is None:
            known = ", ".join(name for name, values in opened.items() if values is not None)
            problems.append(f"the space does not open {name!r}, it opens {known}")
        elif problem := _problem(name, value, allowed):
            problems.append(problem)
    if problems:
        raise ConfigError(f"study.enqueue: {dict(point)}: {'; '.join(problems)}.")
    return {
        _depth_parameter(config, backbone) if name == "freeze_depth" else name: value for name, value in point.items()
    }


def _problem(name: str, value: Any, allowed: Sequence[Any]) -> str | None:
    """Why a value is invalid in a point; ``None`` if it is valid."""
    if name == "backbone":
        return None if value in allowed else f"backbone must be one of {', '.join(allowed)}, but got {value!r}"
    if name == "freeze_depth":
        is_depth = isinstance(value, int) and not isinstance(value, bool)
        if is_depth and allowed[0] <= value <= allowed[1]:
            return None
        return f"{allowed[0]} <= freeze_depth <= {allowed[1]} must hold, but got {value!r}"
    return SEARCHABLE[name].check_value(name, value, allowed)


def _depth_parameter(config: SearchConfig, backbone: str) -> str:
    """With several backbones each has its own parameter, since depth 3 means something different for each."""
    return f"freeze_depth:{backbone}" if config.space.backbone else "freeze_depth"


def point_in_cube(
    hyperparameters: Hyperparameters, config: SearchConfig, depths: Mapping[str, int]
) -> tuple[float, ...]:
    """Hyperparameters of a trained trial as numbers in [0, 1], the same number for every trial of a study."""
    space, backbone = config.space, hyperparameters.backbone
    numbers = [hyperparameters.freeze_depth / depths[backbone]]
    if space.backbone is not None:
        numbers += [float(backbone == name) for name in sorted(space.backbone)]
    for name, row in SEARCHABLE.items():
        if opened := space.opened(name):
            numbers += row.coordinates(getattr(hyperparameters, name), opened)
    return tuple(numbers)


def depth_range(config: SearchConfig, depths: Mapping[str, int], backbone: str) -> tuple[int, int]:
    """Smallest and largest freeze depth to try for a backbone."""
    return _wanted_range(config, backbone) or (0, depths[backbone])


def depth_shares(config: SearchConfig, depths: Mapping[str, int], backbone: str) -> dict[int, float]:
    """The freeze depths of epochs, each with its share of all epochs, if all depths are tried equally often.

    Thawing policies start at the head.
    """
    low, high = depth_range(config, depths, backbone)
    train, count = config.train, Counter[int]()
    for policy in config.policies:
        for depth in range(low, high + 1):
            thawing = Thawing(
                policy=policy,
                freeze_depth=depth,
                deepest=depths[backbone],
                until=train.epochs_until_thawed,
                metric=config.study.metric,
                at=train.thaw_epochs,
            )
            count.update(thawing.planned(train.epochs))
    return {depth: times / count.total() for depth, times in sorted(count.items())}


def planned_depths(hyperparameters: Hyperparameters, config: SearchConfig, deepest: int, epochs: int) -> list[int]:
    """The freeze depth of each of a trial's first epochs, as planned. ``deepest`` freezes all layer groups."""
    thawing = Thawing.of(hyperparameters, config.train, deepest=deepest, metric=config.study.metric)
    return thawing.planned(epochs)


def _wanted_range(config: SearchConfig, backbone: str) -> tuple[int, int] | None:
    """The recipe's range of freeze depths for a backbone."""
    return config.space.freeze_depth if config.space.backbone is None else config.space.backbone.get(backbone)
