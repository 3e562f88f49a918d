"""Registered models as users name them, and what they take."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from thawline.data import DataKind
from thawline.exceptions import RegistryError

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "COLUMNS",
    "QUANTISED_FROM",
    "ModelInput",
    "ModelName",
    "check_text_column",
    "parse_model",
    "verdict_folder",
]

CHAMPION, CHALLENGER = "champion", "challenger"
QUANTISED_FROM = "thawline.quantised_from"
"""Tag of a version in int8: the version in single precision that it is a copy of."""
COLUMNS: Mapping[DataKind, str] = {"images": "image", "texts": "text"}
"""The only column of the table that a packaged model takes; also the word for one of what it classifies."""


@dataclass(frozen=True)
class ModelName:
    """A model as a user names it: exactly one of alias and version is given."""

    name: str
    alias: str | None = CHAMPION
    version: str | None = None

    def __str__(self) -> str:
        return f"{self.name}/{self.version}" if self.version else f"{self.name}@{self.alias}"


def parse_model(text: str) -> ModelName:
    """``name`` (its champion), ``name@alias`` or ``name/3``.

    Raises:
        RegistryError: for anything else.
    """
    match = re.fullmatch(r"(?:models:/)?([^@/:\s]+)(?:@([\w-]+)|/([1-9]\d*))?", text)
    if match is None:
        raise RegistryError(f"A model is named as NAME, NAME@ALIAS or NAME/VERSION, but got {text!r}.")
    name, alias, version = match.groups()
    return ModelName(name, None if version else alias or CHAMPION, version)


@dataclass(frozen=True)
class ModelInput:
    """What a model classifies."""

    kind: DataKind
    text_column: str | None = None
    """Name of the column of texts in the table that it was trained on; ``None`` where it had none, or is not known."""


def check_text_column(text_column: str | None, model: ModelName, kind: DataKind) -> None:
    """Refuse the name of a column of texts for a model of images.

    Raises:
        RegistryError: if there is one.
    """
    if text_column is not None and kind == "images":
        raise RegistryError(f"{model} classifies images, which lie in no column: leave --text-column out.")


def verdict_folder(tags: Mapping[str, str]) -> str:
    """Of the trial's run, which a copy in int8 shares with the version that it was quantised from."""
    return "promotion/int8" if QUANTISED_FROM in tags else "promotion"
