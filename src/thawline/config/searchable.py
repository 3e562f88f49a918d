"""The table of searchable training settings: its rows are the fields of ``train`` that are marked as searchable.

A row feeds the section ``space``, sampling, the first points, points of a recipe, retraining and the leaderboard. To
add one, mark a field of :class:`~thawline.config.TrainConfig`, and add a field of the same name to
:class:`~thawline.training.Hyperparameters`, with the value of trials that did not record it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Le
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from thawline.config.model import as_list
from thawline.config.train import Searchable, TrainConfig

__all__ = ["SEARCHABLE", "Choice", "Range"]


@dataclass(frozen=True)
class Range:
    """A number, searched in a range ``(low, high)``."""

    mark: Searchable
    highest: float | None
    """The largest value that the setting may have; ``None`` if there is no limit."""

    @property
    def annotation(self) -> Any:
        """Type of the key in ``space``."""
        return tuple[float, float] | None

    def check_opened(self, opened: Sequence[Any]) -> str | None:
        """The reason why a space cannot have this range; ``None`` if it can."""
        low, high = opened
        if 0 < low <= high and (self.highest is None or high <= self.highest):
            return None
        limit = "" if self.highest is None else f" <= {self.highest:g}"
        return f"0 < low <= high{limit} must hold, but got {list(opened)}"

    def check_value(self, name: str, value: Any, opened: Sequence[Any]) -> str | None:
        """Why a point cannot have this value; ``None`` if it can."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and opened[0] <= value <= opened[1]:
            return None
        return f"{opened[0]} <= {name} <= {opened[1]} must hold, but got {value!r}"

    def nearest(self, value: float | str, opened: Sequence[Any]) -> Any:
        """The value in the range that is nearest to another, which may be given as text."""
        low, high = opened
        return min(max(float(value), low), high)

    def coordinates(self, value: Any, opened: Sequence[Any]) -> tuple[float, ...]:
        """The position of a value in the range, from 0 to 1, for a model of the trials so far."""
        low, high, value = (math.log(each) if self.mark.log else float(each) for each in (*opened, value))
        return ((value - low) / (high - low) if high > low else 0.0,)


@dataclass(frozen=True)
class Choice:
    """One of several names, searched among those that the space lists."""

    mark: Searchable
    names: tuple[str, ...]
    """All valid names."""

    @property
    def annotation(self) -> Any:
        """Type of the key in ``space``."""
        return Annotated[tuple[Literal[self.names], ...] | None, BeforeValidator(as_list)]  # type: ignore[name-defined]

    def check_opened(self, opened: Sequence[Any]) -> str | None:
        """The reason why a space cannot have these names; ``None`` if it can."""
        if opened and len(set(opened)) == len(opened):
            return None
        return f"must list at least one choice, each once, but got {list(opened)}"

    def check_value(self, name: str, value: Any, opened: Sequence[Any]) -> str | None:
        """Why a point cannot have this value; ``None`` if it can."""
        return None if value in opened else f"{name} must be one of {', '.join(opened)}, but got {value!r}"

    def nearest(self, value: float | str, opened: Sequence[Any]) -> Any:
        """The name itself; ``None`` if the space does not list it, since no other is nearest."""
        return value if value in opened else None

    def coordinates(self, value: Any, opened: Sequence[Any]) -> tuple[float, ...]:
        """One-hot: 1 for this name, 0 for each other name that the space lists."""
        return tuple(float(value == name) for name in opened)


def _rows(model: type[BaseModel]) -> Iterator[tuple[str, Range | Choice]]:
    for name, field in model.model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, Searchable):
                yield name, _row(mark, field)


def _row(mark: Searchable, field: FieldInfo) -> Range | Choice:
    if get_origin(field.annotation) is Literal:
        return Choice(mark, get_args(field.annotation))
    return Range(mark, next((float(str(rule.le)) for rule in field.metadata if isinstance(rule, Le)), None))


SEARCHABLE: Mapping[str, Range | Choice] = {
    "learning_rate": Range(Searchable("Range of the learning rate, sampled on a log scale."), highest=None),
    **dict(_rows(TrainConfig)),
}
"""By name of the key in ``space``, and in ``train`` except for the learning rate, which is always searched.

Backbone and freeze depth are not among them: the range of depths depends on the backbone.
"""
