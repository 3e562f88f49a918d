"""The section ``space``."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, model_validator

from thawline.config.model import Model, as_list
from thawline.config.train import AugmentationKind, BatchNorm, Policy

__all__ = ["SearchSpace"]


def _backbone_choices(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(f"must be a list of names, such as [{value}], but got {value!r}")
    if not isinstance(value, list | tuple):
        return value
    if not all(isinstance(name, str) for name in value):
        raise ValueError(f"must be a list of names, or a mapping such as {{resnet18: [2, 5]}}, but got {list(value)}")
    if len(set(value)) != len(value):
        raise ValueError(f"must list each backbone once, but got {list(value)}")
    return dict.fromkeys(value)


_RangeByName = dict[str, tuple[int, int] | None]


class SearchSpace(Model):
    """What Optuna may choose. A two-item list is a range; ``null`` keeps the value in ``train`` for every trial."""

    freeze_depth: tuple[int, int] | None = None
    """Smallest and largest number of frozen layer groups; by default from 0 (train everything) to all (head alone)."""
    learning_rate: tuple[float, float] = (1e-5, 1e-2)
    """Range of the learning rate, sampled on a log scale."""
    weight_decay: tuple[float, float] | None = None
    """Range of the weight decay, sampled on a log scale."""
    head_learning_rate_factor: tuple[float, float] | None = None
    """Range of the head's learning-rate factor, sampled on a log scale."""
    optimizer: Annotated[tuple[Literal["adamw", "sgd"], ...] | None, BeforeValidator(as_list)] = None
    """Optimizers to choose from."""
    backbone: Annotated[
        _RangeByName | None, BeforeValidator(_backbone_choices, json_schema_input_type=list[str] | _RangeByName | None)
    ] = None
    """Backbones to choose from: a list of names, or a mapping from each name to its range of freeze depths (``null``:
    all). Before the first trial each is probed on its frozen features, see ``study.keep_backbones``."""
    policy: Annotated[tuple[Policy, ...] | None, BeforeValidator(as_list)] = None
    """Policies of thawing to choose from."""
    layer_decay: tuple[float, float] | None = None
    """Range of the factor by which the learning rate falls from layer group to layer group towards the input."""
    batch_norm: Annotated[tuple[BatchNorm, ...] | None, BeforeValidator(as_list)] = None
    """What batch-norms of thawed layer groups may do."""
    augmentation: Annotated[tuple[AugmentationKind, ...] | None, BeforeValidator(as_list)] = None
    """Ways of changing training images to choose from; without it all trials see the same. With ``train.views`` each is
    stored."""

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        problems = []
        if self.freeze_depth is not None and not 0 <= self.freeze_depth[0] <= self.freeze_depth[1]:
            problems.append(f"freeze_depth: 0 <= low <= high must hold, but got {list(self.freeze_depth)}")
        for name in ("learning_rate", "weight_decay", "head_learning_rate_factor"):
            value = getattr(self, name)
            if value is not None and not 0 < value[0] <= value[1]:
                problems.append(f"{name}: 0 < low <= high must hold, but got {list(value)}")
        if self.layer_decay is not None and not 0 < self.layer_decay[0] <= self.layer_decay[1] <= 1:
            problems.append(f"layer_decay: 0 < low <= high <= 1 must hold, but got {list(self.layer_decay)}")
        for name in ("optimizer", "backbone", "policy", "batch_norm", "augmentation"):
            value = getattr(self, name)
            if value is not None and (not value or len(set(value)) != len(value)):
                problems.append(f"{name}: must list at least one choice, each once, but got {list(value)}")
        if self.backbone is not None and self.freeze_depth is not None:
            problems.append(
                "freeze_depth cannot be set together with backbone: give each backbone its own, as in "
                "backbone: {resnet18: [2, 5]}"
            )
        for name, depths in (self.backbone or {}).items():
            if depths is not None and not 0 <= depths[0] <= depths[1]:
                problems.append(f"backbone: {name}: 0 <= low <= high must hold, but got {list(depths)}")
        if problems:
            raise ValueError("; ".join(problems))
        return self
