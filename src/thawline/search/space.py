"""From the search space of a recipe to the hyperparameters of a trial."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from thawline.backbones import kind_of
from thawline.config import BatchNorm, Policy, SearchConfig
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
    "point_of",
    "probe_of",
    "sample",
    "with_backbones",
]

_CHOICES = ("optimizer", "policy", "batch_norm", "augmentation")
"""What, beside the backbone, is one of some names; the rest are numbers of a range."""


@dataclass(frozen=True)
class Start:
    """A point that a search begins with, whatever the backbone."""

    share: float
    """Of the layer groups that are frozen."""
    learning_rate: float
    """Of networks for images, with AdamW."""
    policy: Policy | None = None
    """Where the space opens policies; ``None`` for the configuration's own."""


PORTFOLIO = (
    Start(0.0, 1e-4),
    Start(1 / 3, 1e-3),
    Start(1 / 3, 3e-4),
    Start(0.0, 3e-4, "gradual"),
    Start(2 / 3, 1e-3),
    Start(0.0, 1e-3),
)
"""Found by leaving one of eight tasks out after the other, the best first (ADR 21)."""
_TEXTS_SLOWER = 0.5
"""Encoders of texts want half the rate of networks for images."""


class Suggest(Protocol):
    """The part of Optuna's ``Trial`` that sampling needs."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """An integer in [low, high]."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """A number in [low, high], on a log scale if asked."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""


def check_space(config: SearchConfig, depths: Mapping[str, int]) -> None:
    """Refuse a freeze-depth range that the backbone does not have, and a choice that there is not.

    Args:
        config: the whole configuration.
        depths: number of layer groups of each backbone in ``config.backbones``.

    Raises:
        ConfigError: naming the backbone, its depth and the range.
    """
    if config.space.batch_norm is not None and all(map(config.backbone.is_random, config.backbones)):
        raise ConfigError(
            "space.batch_norm: there is nothing to choose with backbone.weights=none, where batch-norms have no "
            f"statistics to keep, but got {list(config.space.batch_norm)}. Leave it out, or give pretrained weights."
        )
    for name in config.backbones:
        wanted = _wanted_range(config, name)
        if wanted is not None and wanted[1] > depths[name]:
            key = "space.freeze_depth" if config.space.backbone is None else f"space.backbone: {name}"
            raise ConfigError(
                f"{key}: 0 <= low <= high <= {depths[name]} must hold, because {name} has {depths[name]} "
                f"layer groups, but got {list(wanted)}. `thawline summary {name}` shows them."
            )
    searched = [key for key in ("policy", "layer_decay", "batch_norm") if getattr(config.space, key) is not None]
    if searched and all(depth_range(config, depths, name)[0] == depths[name] for name in config.backbones):
        raise ConfigError(
            f"space.{searched[0]}: there is nothing to choose, because every trial trains the head alone. Leave it "
            "out, or open smaller freeze depths."
        )


def sample(trial: Suggest, config: SearchConfig, depths: Mapping[str, int]) -> Hyperparameters:
    """Ask Optuna for what the space opens; take the configuration's value for the rest."""
    space, train = config.space, config.train
    backbone = config.backbone.name
    if space.backbone is not None:
        # In an order of its own, for Optuna takes another order for another space.
        backbone = trial.suggest_categorical("backbone", sorted(space.backbone))
    low, high = depth_range(config, depths, backbone)
    return Hyperparameters(
        backbone=backbone,
        freeze_depth=trial.suggest_int(_depth_parameter(config, backbone), low, high),
        learning_rate=trial.suggest_float("learning_rate", *space.learning_rate, log=True),
        weight_decay=(
            trial.suggest_float("weight_decay", *space.weight_decay, log=True)
            if space.weight_decay
            else train.weight_decay
        ),
        head_learning_rate_factor=(
            trial.suggest_float("head_learning_rate_factor", *space.head_learning_rate_factor, log=True)
            if space.head_learning_rate_factor
            else train.head_learning_rate_factor
        ),
        optimizer=(trial.suggest_categorical("optimizer", space.optimizer) if space.optimizer else train.optimizer),
        policy=trial.suggest_categorical("policy", space.policy) if space.policy else train.policy,
        layer_decay=(
            trial.suggest_float("layer_decay", *space.layer_decay, log=False)
            if space.layer_decay
            else train.layer_decay
        ),
        batch_norm=_batch_norm(trial, config, backbone),
        augmentation=(
            trial.suggest_categorical("augmentation", space.augmentation) if space.augmentation else train.augmentation
        ),
    )


def probe_of(config: SearchConfig, depths: Mapping[str, int], backbone: str) -> Hyperparameters:
    """The linear probe of a backbone as a trial: everything frozen, whatever the space opens, and nothing sampled."""
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


def _batch_norm(trial: Suggest, config: SearchConfig, backbone: str) -> BatchNorm:
    choices = config.space.batch_norm
    if choices is None or config.backbone.is_random(backbone):
        return config.batch_norm_of(backbone)
    chosen: BatchNorm = trial.suggest_categorical("batch_norm", choices)
    return chosen


def kept_backbones(config: SearchConfig, ranking: Iterable[str]) -> list[str]:
    """Those that are tried, the best first: so many as ``study.keep_backbones``, and what ``study.enqueue`` names."""
    ranked = [name for name in ranking if name in config.backbones] or list(config.backbones)
    named = {point.get("backbone") for point in config.study.enqueue}
    return [name for name in ranked if name in ranked[: config.study.keep_backbones] or name in named]


def with_backbones(config: SearchConfig, names: Iterable[str]) -> SearchConfig:
    """The search with these of its backbones, in this order."""
    if config.space.backbone is None:
        return config
    choices = {name: config.space.backbone[name] for name in names}
    return config.model_copy(update={"space": config.space.model_copy(update={"backbone": choices})})


def default_points(config: SearchConfig, depths: Mapping[str, int]) -> list[dict[str, Any]]:
    """The points that are tried first, moved into the space; of several backbones those of the first one alone.

    A grid is tried as it is given.
    """
    if config.study.sampler == "GridSampler":
        return []
    first = config.backbones[0]
    texts = kind_of(first) == "texts"
    points = []
    for start in PORTFOLIO:
        rate = start.learning_rate * (_TEXTS_SLOWER if texts else 1)
        point = _default_point(config, depths, first, round(start.share * depths[first]), rate)
        if start.policy in (config.space.policy or ()):
            point["policy"] = start.policy
        if point not in points:
            points.append(point)
    return points


def _default_point(
    config: SearchConfig, depths: Mapping[str, int], backbone: str, freeze_depth: int, learning_rate: float
) -> dict[str, Any]:
    space, train = config.space, config.train
    low, high = depth_range(config, depths, backbone)
    point: dict[str, Any] = {"backbone": backbone} if space.backbone else {}
    point[_depth_parameter(config, backbone)] = min(max(freeze_depth, low), high)
    point["learning_rate"] = _clip(learning_rate, space.learning_rate)
    if space.weight_decay:
        point["weight_decay"] = _clip(train.weight_decay, space.weight_decay)
    if space.head_learning_rate_factor:
        point["head_learning_rate_factor"] = _clip(train.head_learning_rate_factor, space.head_learning_rate_factor)
    if space.layer_decay:
        point["layer_decay"] = _clip(train.layer_decay, space.layer_decay)
    for name in _CHOICES:
        if choices := getattr(space, name):
            usual = getattr(train, name)
            point[name] = usual if usual in choices else choices[0]
    return point


def point_of(point: Mapping[str, Any], config: SearchConfig, depths: Mapping[str, int]) -> dict[str, Any]:
    """A point of ``study.enqueue`` under the names and within the ranges of the search space.

    Raises:
        ConfigError: if it names something that the space does not open, or a value outside of its range.
    """
    space = config.space
    backbone = point.get("backbone", config.backbones[0])
    ranges: dict[str, Sequence[Any] | None] = {
        "backbone": tuple(space.backbone) if space.backbone is not None else None,
        "freeze_depth": depth_range(config, depths, backbone) if backbone in depths else None,
        "learning_rate": space.learning_rate,
        "weight_decay": space.weight_decay,
        "head_learning_rate_factor": space.head_learning_rate_factor,
        "layer_decay": space.layer_decay,
        "optimizer": space.optimizer,
        "policy": space.policy,
        "batch_norm": space.batch_norm,
        "augmentation": space.augmentation,
    }
    problems = []
    if space.backbone is not None and "freeze_depth" in point and "backbone" not in point:
        problems.append("freeze_depth is that of a backbone: name the backbone too")
    for name, value in point.items():
        allowed = ranges.get(name)
        if allowed is None:
            known = ", ".join(name for name, values in ranges.items() if values is not None)
            problems.append(f"the space does not open {name!r}, it opens {known}")
        elif name in ("backbone", *_CHOICES) and value not in allowed:
            problems.append(f"{name} must be one of {', '.join(allowed)}, but got {value!r}")
        elif name not in ("backbone", *_CHOICES) and not _within(value, allowed, whole=name == "freeze_depth"):
            problems.append(f"{allowed[0]} <= {name} <= {allowed[1]} must hold, but got {value!r}")
    if problems:
        raise ConfigError(f"study.enqueue: {dict(point)}: {'; '.join(problems)}.")
    return {
        _depth_parameter(config, backbone) if name == "freeze_depth" else name: value for name, value in point.items()
    }


def _within(value: Any, bounds: Sequence[Any], *, whole: bool) -> bool:
    right_kind = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    return bool(right_kind and bounds[0] <= value <= bounds[1])


def _depth_parameter(config: SearchConfig, backbone: str) -> str:
    """With several backbones each has a parameter of its own, since depth 3 of one is not depth 3 of another."""
    return f"freeze_depth:{backbone}" if config.space.backbone else "freeze_depth"


def depth_range(config: SearchConfig, depths: Mapping[str, int], backbone: str) -> tuple[int, int]:
    """Smallest and largest freeze depth that are tried of a backbone."""
    return _wanted_range(config, backbone) or (0, depths[backbone])


def depth_shares(config: SearchConfig, depths: Mapping[str, int], backbone: str) -> dict[int, float]:
    """The freeze depths that epochs of trials have, each with its share of all epochs, if all are tried equally often.

    Policies that thaw begin at the head.
    """
    low, high = depth_range(config, depths, backbone)
    train, count = config.train, Counter[int]()
    for policy in config.space.policy or (train.policy,):
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


def _wanted_range(config: SearchConfig, backbone: str) -> tuple[int, int] | None:
    """The range of freeze depths that the recipe gives for a backbone."""
    return config.space.freeze_depth if config.space.backbone is None else config.space.backbone.get(backbone)


def _clip(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
