"""Names of registered models, and their inputs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from thawline.data import DataKind
from thawline.exceptions import RegistryError

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "COLUMNS",
    "LONGEST_REASON",
    "QUANTISED_FROM",
    "ModelInput",
    "ModelName",
    "check_text_column",
    "parse_model",
    "verdict_folder",
]

CHAMPION, CHALLENGER = "champion", "challenger"
QUANTISED_FROM = "thawline.quantised_from"
"""Tag of a version in int8: the version from which it was quantised."""
LONGEST_REASON = 2000
"""Maximum number of characters of a reason in a description or tag, which MLflow's databases limit to 5,000."""
COLUMNS: Mapping[DataKind, str] = {"images": "image", "texts": "text"}
"""The only input column of a packaged model; also the singular of its kind."""


@dataclass(frozen=True)
class ModelName:
    """A model as named by a user: with either an alias or a version."""

    name: str
    alias: str | None = CHAMPION
    version: str | None = None

    def __str__(self) -> str:
        return f"{self.name}/{self.version}" if self.version else f"{self.name}@{self.alias}"


def parse_model(text: str) -> ModelName:
    """Parse ``name`` (its champion), ``name@alias`` or ``name/3``.

    Raises:
        RegistryError: for anything else.
    """
    match = re.fullmatch(r"(?:models:/)?([^@/:\s]+)(?:@([\w-]+)|/([1-9]\d*))?", text)
    if match is None:
        raise RegistryError(f"A model must be given as NAME, NAME@ALIAS or NAME/VERSION, but got {text!r}.")
    name, alias, version = match.groups()
    return ModelName(name, None if version else alias or CHAMPION, version)


@dataclass(frozen=True)
class ModelInput:
    """The kind of input of a model."""

    kind: DataKind
    text_column: str | None = None
    """Name of the column of texts in its training table; ``None`` if there was none, or if it is not known."""


def check_text_column(text_column: str | None, model: ModelName, kind: DataKind) -> None:
    """Reject the name of a text column for an image model.

    Raises:
        RegistryError: if there is one.
    """
    if text_column is not None and kind == "images":
        raise RegistryError(f"{model} classifies images, which have no column: leave --text-column out.")


def verdict_folder(tags: Mapping[str, str]) -> str:
    """Folder of verdicts in the trial's run, which an int8 copy shares with its original."""
    return "promotion/int8" if QUANTISED_FROM in tags else "promotion"
