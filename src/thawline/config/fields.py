"""The fields of the configuration by key, for ``--help`` and for the reference in ``docs/``."""

import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from thawline.config.search import SearchConfig

__all__ = ["FIELDS", "SECTIONS", "alternatives", "help_of"]

_END_OF_SENTENCE = re.compile(r"(?<=\.)\s+(?=[A-Z`])")


def _sections() -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in SearchConfig.model_fields.items():
        assert isinstance(field.annotation, type)  # noqa: S101  of a section, which has no further settings beside it
        yield name, field.annotation


SECTIONS: dict[str, type[BaseModel]] = dict(_sections())
"""The sections of a recipe by name, in order of declaration."""
FIELDS: dict[str, FieldInfo] = {
    f"{section}.{name}": field for section, model in SECTIONS.items() for name, field in model.model_fields.items()
}
"""Every setting by its key, such as ``train.epochs``, in the order of declaration."""


def help_of(key: str) -> str:
    """The first sentence of a setting's description, and its default, as Markdown.

    Raises:
        KeyError: if there is no such setting.
    """
    field = FIELDS[key]
    sentence = " ".join(_END_OF_SENTENCE.split(field.description or "", maxsplit=1)[0].split())
    if field.is_required() or field.default is None or isinstance(field.default, bool):
        return sentence
    return f"{sentence.removesuffix('.')}; default: `{field.default}`."


def alternatives(annotation: Any) -> list[Any]:
    """The alternative types that an annotation allows, without value constraints and without ``None``."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [each for member in get_args(annotation) for each in alternatives(member)]
    return [] if annotation is type(None) else [annotation]
