"""Elements shared by several figures of a study."""

from collections.abc import Callable, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np

from thawline.reports.drawing import (
    FAINT,
    INK,
)
from thawline.reports.values import TrialPoint
from thawline.training import METRIC_DIRECTIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["DENSE", "aside", "draw_curve", "draw_legend", "draw_marks", "focus", "medians", "whole_numbers"]

_HOLLOW: dict[str, dict[str, Any]] = {
    "pruned": {"marker": "o", "facecolors": "white", "edgecolors": INK, "linewidths": 0.8, "s": 18},
    "paused": {"marker": "s", "facecolors": "white", "edgecolors": INK, "linewidths": 0.8, "s": 16},
    "running": {"marker": "^", "facecolors": "white", "edgecolors": INK, "linewidths": 0.8, "s": 20},
    "failed": {"marker": "x", "color": INK, "linewidths": 0.9, "s": 16},
}
DENSE = 400
"""Number of points above which a cloud is rasterised, so that the file size no longer grows with them."""


def medians(points: Sequence[tuple[int, float]]) -> dict[int, float]:
    depths = sorted({depth for depth, _ in points})
    return {depth: float(np.median([value for at, value in points if at == depth])) for depth in depths}


def aside(trials: Sequence[TrialPoint], upright: Set[int]) -> np.ndarray:
    """``[N]``: horizontal jitter, so that trials of the same depth do not overlap; 0 for those in ``upright``."""
    numbers = np.array([trial.number for trial in trials])
    return np.where(np.isin(numbers, list(upright)), 0.0, 0.3 * ((0.618 * numbers) % 1 - 0.5))


def draw_marks(
    axes: "Axes",
    trials: Sequence[TrialPoint],
    height: Callable[[TrialPoint], float | None],
    across: Callable[[TrialPoint], float] = lambda trial: trial.freeze_depth,
) -> None:
    """Draw incomplete trials: hollow at their value, or at the bottom of the plot if they have none."""
    from matplotlib.patheffects import AbstractPathEffect, withStroke

    # A cross has no white interior, so it needs a halo to stand out.
    halo: list[AbstractPathEffect] = [withStroke(linewidth=2.4, foreground="white")]
    for state, style in _HOLLOW.items():
        points = [(across(trial), height(trial)) for trial in trials if trial.state == state]
        standing = [(x, y) for x, y in points if y is not None]
        lying = [(x, 0.015) for x, y in points if y is None]
        label = state
        for where, transform in ((standing, axes.transData), (lying, axes.get_xaxis_transform())):
            if where:
                marks = axes.scatter(*zip(*where, strict=True), label=label, transform=transform, zorder=3, **style)
                marks.set_rasterized(len(where) > DENSE)
                marks.set_path_effects(halo if state == "failed" else [])
                label = ""


def focus(
    axes: "Axes", values: np.ndarray, always: np.ndarray, metric: str, *, probes: np.ndarray | None = None
) -> None:
    """Clip very bad values (Tukey's fence), with a note, so that differences between good ones stay visible.

    Args:
        axes: to set.
        values: values of trials, at least one.
        always: values that are always shown.
        metric: name of the metric.
        probes: values of the linear probes, some of which may be far from any trial.
    """
    everything = values if probes is None else np.append(values, probes)
    first, third = np.quantile(everything, [0.25, 0.75])
    fence = max(3 * (third - first), 0.05 * abs(third))  # most values may be the same
    keep = np.append(everything[(everything >= first - fence) & (everything <= third + fence)], always)
    low, high = float(keep.min()), float(keep.max())
    margin = 0.06 * (high - low) or 0.01
    axes.set_ylim(low - 1.5 * margin, high + margin)
    kinds = {"trial": values, "probe": np.empty(0) if probes is None else probes}
    outside = {kind: int(((of < low) | (of > high)).sum()) for kind, of in kinds.items()}
    if any(outside.values()):
        side = "lower" if METRIC_DIRECTIONS[metric] == "maximize" else "higher"
        counted = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in outside.items() if count)
        axes.set_title(f"{counted} {side}, not shown", loc="right", weight="normal", color=FAINT)


def whole_numbers(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_legend(axes: "Axes") -> None:
    """Draw the legend below the plot, where it hides no point."""
    handles, labels = axes.get_legend_handles_labels()
    drawing = axes.get_figure()
    if handles and drawing is not None:
        drawing.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=len(handles) if len(handles) < 5 else 3,
            columnspacing=1.2,
        )


def draw_curve(axes: "Axes", values: Sequence[float | None], **style: Any) -> None:
    if values:
        marker = "o" if len(values) == 1 else None  # a line of one point cannot be seen
        axes.plot(
            range(1, len(values) + 1),
            [np.nan if v is None else v for v in values],
            marker=marker,
            markersize=4,
            **style,
        )
