"""The records for trackers, as values with timestamps."""

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
    """Milliseconds since 1970, the unit of timestamps, as in MLflow."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class Params:
    """Hyperparameters and settings."""

    at: int
    """Timestamp in milliseconds since 1970, as in every record."""
    params: Mapping[str, str]


@dataclass(frozen=True)
class Tags:
    """Free text that may change later."""

    at: int
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Metrics:
    """At least one value of one step, with the time of measurement."""

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
    """A text to be stored as a file."""

    at: int
    text: str
    file: str


@dataclass(frozen=True)
class Artifact:
    """A file, or a folder of files; read on delivery."""

    at: int
    path: Path
    """Absolute path."""
    folder: str
    """Folder in the run's artifacts; empty for the root."""


@dataclass(frozen=True)
class ImageFile:
    """A picture with the file name expected by MLflow's UI; encoded on delivery."""

    at: int
    image: Image
    file: str
    """Name without extension."""


@dataclass(frozen=True)
class TableFile:
    """A table in the format of MLflow's UI."""

    at: int
    text: str
    """JSON."""
    file: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to be stored as a logged model in MLflow; read on delivery."""

    at: int
    path: Path
    """Absolute path."""
    name: str
    epoch: int
    metrics: Mapping[str, float]
    """Finite metrics only."""
    dataset: tuple[str, str] | None
    """Name and digest of the data for the metrics, as in MLflow."""
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
    """The status of the run; the last record of a tracker."""

    at: int
    status: RunStatus


Record: TypeAlias = (
    Params | Tags | Metrics | Shown | Text | Artifact | ImageFile | TableFile | Checkpoint | Dataset | End
)

LARGE = Shown | ImageFile | TableFile
"""Large records, of which only a limited number may wait: a hundred megabytes of pictures and tables."""
