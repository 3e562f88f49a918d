"""The metric of a study as a surface over freeze depth and learning rate.

Trials are unevenly spread, and two trials at the same point differ by chance. A Gaussian process estimates how much of
the difference is noise: its length scales and noise level maximise the likelihood of the trials' values, so that no
smoothing parameter has to be chosen. Splines with a fixed smoothing draw valleys between trials that were only unlucky.
"""

import warnings
from dataclasses import dataclass

import numpy as np

from thawline.tracking.media import Mesh

__all__ = ["Surface", "fit_surface", "surface_mesh"]

_FEWEST = 6
"""Minimum number of distinct points: a paraboloid, the simplest surface with an optimum, has six parameters."""
_RATES = 41
"""Number of learning rates at which the surface is evaluated, from the lowest to the highest tried."""
_SHORTEST = 0.2
"""Shortest length scale, as a share of an axis: a few dozen trials cannot resolve more detail."""
_SIZE = np.array([1.4, 0.8, 1.4])
_MOST_MARKS = 5000
"""Mesh viewers use 16-bit vertex indices, and a mark has eight vertices."""
_BLACK = (25, 25, 25)


@dataclass(frozen=True)
class Surface:
    """The smoothed metric between the trials, and the trials themselves."""

    depths: np.ndarray
    """int ``[D]``: every freeze depth from the lowest to the highest tried."""
    log_rates: np.ndarray
    """float ``[R]``: decimal logarithms of learning rates, evenly spaced from the lowest to the highest tried."""
    values: np.ndarray
    """float ``[D, R]``; NaN outside the convex hull of the trials, where nothing was tried."""
    trial_depths: np.ndarray
    """int ``[N]``."""
    trial_log_rates: np.ndarray
    """float ``[N]``."""
    trial_values: np.ndarray
    """float ``[N]``, as measured."""


def fit_surface(depths: np.ndarray, learning_rates: np.ndarray, values: np.ndarray, *, deepest: int) -> Surface | None:
    """Smooth the values of trials over freeze depth and learning rate.

    Args:
        depths: int ``[N]``, between 0 and ``deepest``.
        learning_rates: ``[N]``, positive.
        values: ``[N]``; trials with non-finite values are ignored.
        deepest: number of layer groups of the backbone.

    Returns:
        The surface, without extrapolation; ``None`` with fewer than 6 distinct points, or if they are collinear.
    """
    known = np.isfinite(values)
    depths, log_rates, values = depths[known], np.log10(learning_rates[known]), values[known].astype(float)
    if len(np.unique(np.stack([depths, log_rates]), axis=1).T) < _FEWEST:
        return None
    lowest, span, groups = log_rates.min(), np.ptp(log_rates) or 1.0, max(deepest, 1)
    points = np.stack([depths / groups, (log_rates - lowest) / span], axis=1)
    if np.linalg.matrix_rank(points - points.mean(axis=0), tol=1e-6) < 2:
        return None

    grid_depths, grid_rates = np.arange(depths.min(), depths.max() + 1), np.linspace(0.0, 1.0, _RATES)
    grid = np.stack(np.meshgrid(grid_depths / groups, grid_rates, indexing="ij"), axis=-1).reshape(-1, 2)
    smoothed = np.where(_inside(points, grid), _smooth(*_gathered(points, values), grid), np.nan)
    return Surface(
        depths=grid_depths,
        log_rates=lowest + grid_rates * span,
        values=smoothed.reshape(len(grid_depths), _RATES),
        trial_depths=depths,
        trial_log_rates=log_rates,
        trial_values=values,
    )


def surface_mesh(surface: Surface) -> Mesh:
    """The surface in three dimensions, coloured from blue (low) to yellow (high), with a black mark for every trial.

    x (red axis) is the freeze depth, y (green axis, upwards) the value, z (blue axis) the logarithm of the learning
    rate. Each is scaled to about one unit, because only the shape matters.
    """
    lowest = np.array([surface.depths[0], np.min(surface.trial_values), surface.log_rates[0]])
    highest = np.array([surface.depths[-1], np.max(surface.trial_values), surface.log_rates[-1]])
    size = np.where(highest > lowest, highest - lowest, 1.0)

    def scaled(depths: np.ndarray, values: np.ndarray, log_rates: np.ndarray) -> np.ndarray:
        places: np.ndarray = (np.stack([depths, values, log_rates], axis=-1) - lowest) / size * _SIZE
        return places

    depths, log_rates = np.meshgrid(surface.depths, surface.log_rates, indexing="ij")
    vertices = scaled(depths, surface.values, log_rates).reshape(-1, 3)
    trials = scaled(surface.trial_depths, surface.trial_values, surface.trial_log_rates)
    axes = zip(np.diag(_SIZE) + 0.1 * np.eye(3), np.eye(3, dtype=int) * 200, strict=True)
    return _joined(
        [
            _sheet(vertices, _colours(surface.values), surface.values.shape),
            *(_box(trial - 0.01, trial + 0.01, np.array(_BLACK)) for trial in trials[-_MOST_MARKS:]),
            *(_box(np.full(3, -0.005), end + 0.005, colour) for end, colour in axes),
        ]
    )


# ----------------------------------------------------------------------------------------------------------------------


def _gathered(points: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average trials of the same depth and nearly the same rate: the cost is cubic in the number of points."""
    cells = np.stack([points[:, 0], np.round(points[:, 1] * _RATES)])
    _, cell, counts = np.unique(cells, axis=1, return_inverse=True, return_counts=True)
    sums = [np.bincount(cell, column) for column in (points[:, 0], points[:, 1], values)]
    x, y, z = (column / counts for column in sums)
    return np.stack([x, y], axis=1), z


def _smooth(points: np.ndarray, values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The mean of a Gaussian process through ``points`` ``[N, 2]`` at ``grid`` ``[G, 2]``."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    smooth = ConstantKernel(1.0, (0.1, 100.0)) * RBF([0.5, 0.5], (_SHORTEST, 10.0))
    process = GaussianProcessRegressor(smooth + WhiteKernel(0.1, (1e-4, 1.0)), normalize_y=True)
    with warnings.catch_warnings():
        # A parameter at its bound is a valid result: the metric does not depend on this axis, or there is no noise.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(points, values)
    predicted: np.ndarray = process.predict(grid)
    return predicted


def _inside(points: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Whether each point of ``grid`` is inside the convex hull of ``points`` or on its edge."""
    from scipy.spatial import Delaunay

    inside: np.ndarray = Delaunay(points).find_simplex(grid, tol=1e-6) >= 0
    return inside


def _colours(values: np.ndarray) -> np.ndarray:
    """uint8 ``[V, 3]``: matplotlib's viridis, perceptually uniform and suitable for the colour-blind."""
    from matplotlib import colormaps

    low, high = np.nanmin(values), np.nanmax(values)
    shares = np.nan_to_num((values.reshape(-1) - low) / (high - low if high > low else 1.0))
    colours: np.ndarray = colormaps["viridis"](shares, bytes=True)[:, :3]
    return colours


def _sheet(vertices: np.ndarray, colours: np.ndarray, shape: tuple[int, ...]) -> Mesh:
    """A grid of vertices with two triangles per cell, without triangles that touch a non-finite vertex."""
    index = np.arange(shape[0] * shape[1]).reshape(shape)
    corners = [part.reshape(-1) for part in (index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1])]
    faces = np.concatenate([np.stack([corners[i] for i in three], axis=1) for three in ((0, 1, 2), (0, 2, 3))])
    known = np.isfinite(vertices).all(axis=1)
    renumbered = np.cumsum(known) - 1
    return Mesh(vertices[known], colours[known], renumbered[faces[known[faces].all(axis=1)]])


def _box(low: np.ndarray, high: np.ndarray, colour: np.ndarray) -> Mesh:
    """An axis-aligned box between two corners, in one colour."""
    corners = np.array([[(low, high)[bit][axis] for axis, bit in enumerate(bits)] for bits in np.ndindex(2, 2, 2)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.array([face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))])
    return Mesh(corners, np.tile(colour, (8, 1)), faces)


def _joined(parts: list[Mesh]) -> Mesh:
    """Several meshes as one."""
    starts = np.cumsum([0, *(len(part.vertices) for part in parts[:-1])])
    return Mesh(
        np.concatenate([part.vertices for part in parts]).astype(np.float32),
        np.concatenate([part.colours for part in parts]).astype(np.uint8),
        np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=True)]),
    )
