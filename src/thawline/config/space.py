"""The section ``space``."""

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, Field, create_model, model_validator

from thawline.config.model import Model
from thawline.config.searchable import SEARCHABLE

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


class _Space(Model):
    """The search space. A two-item list is a range; ``null`` uses the value in ``train`` for every trial."""

    freeze_depth: tuple[int, int] | None = None
    """Smallest and largest number of frozen layer groups; by default from 0 (train everything) to all (head only)."""
    learning_rate: tuple[float, float] = (1e-5, 1e-2)
    """Range of the learning rate, sampled on a log scale."""
    backbone: Annotated[
        _RangeByName | None, BeforeValidator(_backbone_choices, json_schema_input_type=list[str] | _RangeByName | None)
    ] = None
    """Backbones to choose from: a list of names, or a mapping from each name to its range of freeze depths (``null``:
    all). Before the first trial, a linear probe ranks them, see ``study.keep_backbones``."""

    def opened(self, name: str) -> tuple[Any, ...] | None:
        """Range or choices of a searchable setting; ``None`` if it is not searched."""
        values: tuple[Any, ...] | None = getattr(self, name)
        return values

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        problems = []
        if self.freeze_depth is not None and not 0 <= self.freeze_depth[0] <= self.freeze_depth[1]:
            problems.append(f"freeze_depth: 0 <= low <= high must hold, but got {list(self.freeze_depth)}")
        for name, row in SEARCHABLE.items():
            opened = self.opened(name)
            if opened is not None and (problem := row.check_opened(opened)):
                problems.append(f"{name}: {problem}")
        if self.backbone is not None and not self.backbone:
            problems.append("backbone: must list at least one choice, each once, but got []")
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


if TYPE_CHECKING:
    SearchSpace = _Space
else:
    SearchSpace = create_model(
        "SearchSpace",
        __base__=_Space,
        __module__=__name__,
        __doc__=_Space.__doc__,
        # It has no source, which pydantic would search for its docstrings for half a second.
        __cls_kwargs__={"use_attribute_docstrings": False},
        **{
            name: (row.annotation, Field(None, description=row.mark.description))
            for name, row in SEARCHABLE.items()
            if name not in _Space.model_fields
        },
    )
