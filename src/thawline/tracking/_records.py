"""The records that trackers are sent, as values with the time at which they happened."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from thawline.tracking._base import RunStatus
from thawline.tracking.media import Image, Media

__all__ = [
    "LARGE",
    "Artifact",
    "Checkpoint",
    "Dataset",
    "End",
    "ImageFile",
    "Metrics",
    "Params",
    "Record",
    "Shown",
    "TableFile",
    "Tags",
    "Text",
    "now_ms",
]


def now_ms() -> int:
    """Milliseconds since 1970, the unit of every record's time and MLflow's."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class Params:
    """Hyperparameters and settings."""

    at: int
    """When it happened, in milliseconds since 1970; so in every record."""
    params: Mapping[str, str]


@dataclass(frozen=True)
class Tags:
    """Texts that may change later."""

    at: int
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Metrics:
    """Values of one step, at least one; the time is that of the measurement."""

    at: int
    values: Mapping[str, float]
    step: int


@dataclass(frozen=True)
class Shown:
    """A picture, distribution, table, figure or shape."""

    at: int
    name: str
    media: Media
    step: int


@dataclass(frozen=True)
class Text:
    """A text that becomes a file."""

    at: int
    text: str
    file: str


@dataclass(frozen=True)
class Artifact:
    """A file, or a folder of files; read when it is delivered."""

    at: int
    path: Path
    """Absolute."""
    folder: str
    """Among the run's artifacts; empty for their root."""


@dataclass(frozen=True)
class ImageFile:
    """A picture under the name by which MLflow's UI finds it; encoded when it is delivered."""

    at: int
    image: Image
    file: str
    """Without its extension."""


@dataclass(frozen=True)
class TableFile:
    """A table as MLflow's UI reads it."""

    at: int
    text: str
    """JSON."""
    file: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that becomes one of MLflow's logged models; read when it is delivered."""

    at: int
    path: Path
    """Absolute."""
    name: str
    epoch: int
    metrics: Mapping[str, float]
    """Only finite ones."""
    dataset: tuple[str, str] | None
    """Name and digest of what the metrics were measured on, as MLflow has them."""
    params: Mapping[str, str]


@dataclass(frozen=True)
class Dataset:
    """One of MLflow's dataset inputs."""

    at: int
    name: str
    digest: str
    source: str
    """JSON."""
    profile: str
    """JSON."""
    context: str


@dataclass(frozen=True)
class End:
    """How the run ended; the last record of a tracker."""

    at: int
    status: RunStatus


Record: TypeAlias = (
    Params | Tags | Metrics | Shown | Text | Artifact | ImageFile | TableFile | Checkpoint | Dataset | End
)

LARGE = Shown | ImageFile | TableFile
"""Large records, of which only some may wait: a hundred megabytes of pictures and tables."""
