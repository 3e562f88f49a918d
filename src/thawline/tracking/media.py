"""Records besides numbers and texts: pictures, distributions, tables, figures, shapes.

Plain values: a tracker writes those that its system can show, and ignores others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from thawline.backbones import Graph, GraphNode

__all__ = ["Embedding", "Figure", "Graph", "GraphNode", "Histogram", "Image", "Media", "Mesh", "Predictions", "Table"]


@dataclass(frozen=True)
class Image:
    """A picture."""

    pixels: np.ndarray
    """uint8 ``[H, W, 3]``."""
    caption: str = ""


@dataclass(frozen=True)
class Histogram:
    """A binned distribution, because the values may be many and on a GPU."""

    counts: np.ndarray
    """``[B]``: number of values per bin."""
    edges: np.ndarray
    """``[B + 1]``, increasing."""


@dataclass(frozen=True)
class Table:
    """Columns of the same length, by name."""

    columns: Mapping[str, Sequence[str | int | float | None]]


@dataclass(frozen=True)
class Figure:
    """A drawing."""

    svg: str
    """A complete SVG document without external resources."""
    alt: str
    """Alternative text that describes the figure in a sentence or two."""


@dataclass(frozen=True)
class Predictions:
    """A classifier's predictions for labelled examples, for drawing curves."""

    labels: np.ndarray
    """int64 ``[N]``: index of the true class."""
    probabilities: np.ndarray
    """float ``[N, C]``."""
    classes: tuple[str, ...]

    @property
    def predicted(self) -> np.ndarray:
        """int64 ``[N]``: index of the class with the largest probability."""
        found: np.ndarray = self.probabilities.argmax(1)
        return found

    @property
    def given(self) -> np.ndarray:
        """float ``[N]``: the probability of each true class."""
        found: np.ndarray = self.probabilities[np.arange(len(self.labels)), self.labels]
        return found


@dataclass(frozen=True)
class Embedding:
    """Points of a feature space."""

    vectors: np.ndarray
    """float ``[N, D]``."""
    labels: tuple[str, ...]
    """Class of each point."""
    thumbnails: np.ndarray | None = None
    """uint8 ``[N, S, S, 3]``: the picture of each point, if any."""
    texts: tuple[str, ...] | None = None
    """The text of each point, possibly shortened, if any."""


@dataclass(frozen=True)
class Mesh:
    """A coloured surface in three dimensions, or points if it has no faces."""

    vertices: np.ndarray
    """float ``[V, 3]``."""
    colours: np.ndarray
    """uint8 ``[V, 3]``."""
    faces: np.ndarray
    """int ``[F, 3]``: triangles of vertices; ``[0, 3]`` for points."""


Media = Image | Histogram | Table | Figure | Predictions | Embedding | Mesh | Graph
