"""The base of all sections of the configuration."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

__all__ = ["Model", "PlainName", "as_list", "word_off"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _plain_name(value: str) -> str:
    """Names become folder names, MLflow names and URL parts: letters, digits, ``.``, ``_``, ``-`` only."""
    if not _NAME.fullmatch(value):
        raise ValueError(
            "must start with a letter or a digit and contain at most 100 letters, digits, '.', '_' or '-', "
            f"but got {value!r}"
        )
    return value


PlainName = Annotated[str, AfterValidator(_plain_name)]


class Model(BaseModel):
    """Frozen; rejects unknown keys; the docstring below a field is its description."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        defer_build=True,  # build validators with the first configuration: `--help` needs none
    )


def word_off(value: object) -> object:
    """For settings that may be ``off``: YAML reads the word as false."""
    return "off" if value is False else value


def as_list(value: object) -> object:
    """Reject a single choice where a list is required: pydantic would split the word into letters.

    Raises:
        ValueError: with the list to write instead.
    """
    if isinstance(value, str):
        raise ValueError(f"must be a list such as [{value}], but got {value!r}")
    return value
