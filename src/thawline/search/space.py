"""From the search space of a recipe to the hyperparameters of a trial."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from thawline.config import SearchConfig
from thawline.exceptions import ConfigError
from thawline.training import Hyperparameters

__all__ = ["Suggest", "check_space", "default_point", "point_of", "sample"]


class Suggest(Protocol):
    """The part of Optuna's ``Trial`` that sampling needs."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """An integer in [low, high]."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """A number in [low, high], on a log scale if asked."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""


def check_space(config: SearchConfig, depths: Mapping[str, int]) -> None:
    """Refuse a freeze-depth range that the backbone does not have.

    Args:
        config: the whole configuration.
        depths: number of layer groups of each backbone in ``config.backbones``.

    Raises:
        ConfigError: naming the backbone, its depth and the range.
    """
    if config.space.freeze_depth is None:
        return
    name = config.backbone.name
    if config.space.freeze_depth[1] > depths[name]:
        raise ConfigError(
            f"space.freeze_depth: 0 <= low <= high <= {depths[name]} must hold, because {name} has {depths[name]} "
            f"layer groups, but got {list(config.space.freeze_depth)}. `thawline summary {name}` shows them."
        )


def sample(trial: Suggest, config: SearchConfig, depths: Mapping[str, int]) -> Hyperparameters:
    """Ask Optuna for what the space opens; take the configuration's value for the rest."""
    space, train = config.space, config.train
    backbone = config.backbone.name
    if space.backbone is not None:
        backbone = trial.suggest_categorical("backbone", space.backbone)
    low, high = _depth_range(config, depths, backbone)
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
    )


def default_point(config: SearchConfig, depths: Mapping[str, int]) -> dict[str, Any]:
    """What the first trial tries: as much frozen as the space allows, at a standard learning rate.

    It is the cheapest and the safest trial, so that even a study of one trial is useful.
    """
    space, train = config.space, config.train
    backbone = config.backbones[0]
    point: dict[str, Any] = {"backbone": backbone} if space.backbone else {}
    point[_depth_parameter(config, backbone)] = _depth_range(config, depths, backbone)[1]
    point["learning_rate"] = _clip(1e-3, space.learning_rate)
    if space.weight_decay:
        point["weight_decay"] = _clip(train.weight_decay, space.weight_decay)
    if space.head_learning_rate_factor:
        point["head_learning_rate_factor"] = _clip(train.head_learning_rate_factor, space.head_learning_rate_factor)
    if space.optimizer:
        point["optimizer"] = train.optimizer if train.optimizer in space.optimizer else space.optimizer[0]
    return point


def point_of(point: Mapping[str, Any], config: SearchConfig, depths: Mapping[str, int]) -> dict[str, Any]:
    """A point of ``study.enqueue`` under the names and within the ranges of the search space.

    Raises:
        ConfigError: if it names something that the space does not open, or a value outside of its range.
    """
    space = config.space
    backbone = point.get("backbone", config.backbones[0])
    ranges: dict[str, Sequence[Any] | None] = {
        "backbone": space.backbone,
        "freeze_depth": _depth_range(config, depths, backbone) if backbone in depths else None,
        "learning_rate": space.learning_rate,
        "weight_decay": space.weight_decay,
        "head_learning_rate_factor": space.head_learning_rate_factor,
        "optimizer": space.optimizer,
    }
    problems = []
    for name, value in point.items():
        allowed = ranges.get(name)
        if allowed is None:
            known = ", ".join(name for name, values in ranges.items() if values is not None)
            problems.append(f"the space does not open {name!r}, it opens {known}")
        elif name in {"backbone", "optimizer"} and value not in allowed:
            problems.append(f"{name} must be one of {', '.join(allowed)}, but got {value!r}")
        elif name not in {"backbone", "optimizer"} and not _within(value, allowed, whole=name == "freeze_depth"):
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


def _depth_range(config: SearchConfig, depths: Mapping[str, int], backbone: str) -> tuple[int, int]:
    return config.space.freeze_depth or (0, depths[backbone])


def _clip(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
