"""Figures of a search: the thaw line, the cost of trials, the history."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from thawline.backbones import DepthCost
from thawline.reports._axes import DENSE, aside, draw_curve, draw_legend, draw_marks, focus, medians, whole_numbers
from thawline.reports.drawing import (
    ACCENT,
    BAND,
    COLOURS,
    INK,
    MAIN,
    canvas,
    freeze_depth_axis,
    learning_rate_axis,
    plain_rate,
    shorten,
)
from thawline.reports.surface import Surface
from thawline.reports.values import LearningCurve, TrialPoint
from thawline.tracking.media import Figure
from thawline.training import METRIC_DIRECTIONS, sign_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "best_trial",
    "hyperparameter_importance",
    "learning_curves",
    "memory_by_depth",
    "optimisation_history",
    "response_surface",
    "thaw_line",
    "time_by_depth",
]

_COMPLETE: dict[str, Any] = {"marker": "o", "edgecolors": "white", "linewidths": 0.5, "s": 22}
_BEST: dict[str, Any] = {
    "marker": "*",
    "color": ACCENT,
    "edgecolors": "white",
    "linewidths": 0.6,
    "s": 170,
    "zorder": 5,
}
_PROBE = COLOURS[2]
_CURVES = 4


def best_trial(trials: Sequence[TrialPoint], metric: str) -> TrialPoint | None:
    """The complete trial with the best value, the first one in a tie; ``None`` without complete trials."""
    return _best(_complete(trials), metric)


def response_surface(
    trials: Sequence[TrialPoint],
    surface: Surface | None,
    metric: str,
    *,
    deepest: int | None = None,
    backbone: str = "",
) -> Figure | None:
    """The metric over freeze depth and learning rate: the fitted surface, and every trial.

    A linear probe has no learning rate and is not shown.

    Args:
        trials: trials of one backbone.
        surface: result of :func:`~thawline.reports.fit_surface`; without it, only the trials are shown, by colour.
        metric: that the study optimises.
        deepest: number of layer groups, if it is known.
        backbone: its name, if there are figures for several.

    Returns:
        ``None`` if no trial with a learning rate is complete.
    """
    rated = {trial.number: trial.learning_rate for trial in trials if trial.learning_rate is not None}
    shown = [trial for trial in trials if trial.number in rated]
    complete, best = _complete(shown), best_trial(shown, metric)
    if best is None:
        return None
    of_shown = "best" if best == best_trial(trials, metric) else "best except the probe"
    colours = _colours(_values(complete), surface, metric)
    with canvas(f"response-surface{_of(backbone)}", height=3.7) as drawn:
        axes = drawn.axes
        axes.grid(visible=False)
        if surface is not None:
            _draw_surface(axes, surface, colours)
        draw_marks(axes, shown, lambda trial: trial.learning_rate)
        depths, rates = zip(*((trial.freeze_depth, rated[trial.number]) for trial in complete), strict=True)
        green = colours["cmap"](colours["norm"](_values(complete)))[:, 1]
        edges = np.where(green > 0.5, INK, "white")
        style: dict[str, Any] = {**_COMPLETE, **colours, "edgecolors": edges, "rasterized": len(complete) > DENSE}
        cloud = axes.scatter(depths, rates, c=_values(complete), **style)
        label = f"{of_shown}: trial {best.number}"
        axes.scatter([best.freeze_depth], [rated[best.number]], label=label, **_BEST)
        freeze_depth_axis(axes, [trial.freeze_depth for trial in shown], deepest)
        learning_rate_axis(axes, list(rated.values()))
        if len(complete) > 1:
            bar = drawn.drawing.colorbar(cloud, ax=axes, extend="both", pad=0.02, aspect=30)
            bar.set_label(f"val/{metric}")
            bar.outline.set_visible(False)
        draw_legend(axes)
    where = "" if surface is None else _peak(surface, metric)
    return Figure(
        drawn.svg,
        f"Validation {_words(metric)}{_of(backbone)} over freeze depth and learning rate, {_counted(shown)}. "
        f"{of_shown.capitalize()}: {best.value:.4f} at freeze depth {best.freeze_depth} and learning rate "
        f"{plain_rate(rated[best.number])}, trial {best.number}.{where}",
    )


def thaw_line(
    trials: Sequence[TrialPoint],
    metric: str,
    *,
    probes: Mapping[int, float | None] | None = None,
    deepest: int | None = None,
    backbone: str = "",
) -> Figure | None:
    """The best value at each freeze depth, all trials, and the values of linear probes.

    Args:
        trials: trials of one backbone.
        metric: that the study optimises.
        probes: the same metric for linear probes on the frozen features, by freeze depth.
        deepest: number of layer groups, if it is known.
        backbone: its name, if there are figures for several.

    Returns:
        ``None`` if no trial is complete.
    """
    best = best_trial(trials, metric)
    if best is None:
        return None
    at_depth = _best_at_depths(trials, metric)
    curve = {
        depth: value for depth, value in sorted((probes or {}).items()) if value is not None and np.isfinite(value)
    }
    with canvas(f"thaw-line{_of(backbone)}", height=3.7) as drawn:
        axes = drawn.axes
        complete, upright = _complete(trials), {trial.number for trial in at_depth.values()}
        trained = [trial for trial in complete if not trial.is_probe]
        places, dense = _depths(trained) + aside(trained, upright), len(trained) > DENSE
        axes.scatter(places, _values(trained), color=MAIN, alpha=0.45, rasterized=dense, **_COMPLETE)
        line = _values(at_depth.values())
        axes.plot(*_broken(at_depth, line), color=MAIN, label="best at each depth")
        axes.scatter(list(at_depth), line, facecolors="white", edgecolors=MAIN, linewidths=1.4, s=34, zorder=4)
        axes.scatter([best.freeze_depth], _values([best]), label=f"best: trial {best.number}", **_BEST)
        _draw_probes(axes, [trial for trial in complete if trial.is_probe], curve)
        draw_marks(axes, trials, lambda trial: trial.value)
        freeze_depth_axis(axes, [*(trial.freeze_depth for trial in trials), *curve], deepest)
        axes.set_ylabel(f"val/{metric}")
        focus(axes, _values(complete), line, metric, probes=np.array(list(curve.values())))
        draw_legend(axes)
    listed = "; ".join(
        f"depth {depth}: {trial.value:.4f}{' (the linear probe)' if trial.is_probe else ''}"
        for depth, trial in at_depth.items()
    )
    reached = ", ".join(f"{value:.4f} at depth {depth}" for depth, value in curve.items())
    return Figure(
        drawn.svg,
        f"Best validation {_words(metric)}{_of(backbone)} at each freeze depth, {_counted(trials)}. {listed}."
        f"{f' Linear probes on the frozen features reach {reached}.' if reached else ''}",
    )


def _broken(depths: Iterable[int], values: Iterable[float]) -> tuple[list[float], list[float]]:
    """A line through the values, interrupted at freeze depths that were not tried."""
    across: list[float] = []
    up: list[float] = []
    for depth, value in zip(depths, values, strict=True):
        if across and depth > across[-1] + 1:
            across.append(depth - 0.5)
            up.append(np.nan)
        across.append(depth)
        up.append(value)
    return across, up


def time_by_depth(trials: Sequence[TrialPoint], *, deepest: int | None = None, backbone: str = "") -> Figure | None:
    """Measured seconds per epoch at each freeze depth, without linear probes, which have no epochs.

    Args:
        trials: trials of one backbone.
        deepest: number of layer groups, if it is known.
        backbone: its name, if there are figures for several.

    Returns:
        ``None`` if no trial's time is known.
    """
    points = [
        (trial.freeze_depth, trial.seconds / trial.epochs)
        for trial in trials
        if trial.seconds and trial.epochs and not trial.is_probe
    ]
    return _by_depth(
        ("time-by-depth", "seconds per epoch", "median"), medians(points), points, deepest=deepest, backbone=backbone
    )


def memory_by_depth(
    trials: Sequence[TrialPoint],
    costs: Sequence[DepthCost] = (),
    *,
    deepest: int | None = None,
    backbone: str = "",
) -> Figure | None:
    """Training memory at each freeze depth, computed and measured, without linear probes.

    Args:
        trials: trials of one backbone.
        costs: costs of the same backbone.
        deepest: number of layer groups, if it is known.
        backbone: its name, if there are figures for several.

    Returns:
        ``None`` if neither is known.
    """
    points = [
        (trial.freeze_depth, trial.memory_bytes / 1e9) for trial in trials if trial.memory_bytes and not trial.is_probe
    ]
    computed = {cost.freeze_depth: cost.memory_bytes / 1e9 for cost in costs}
    kind = "computed" if computed else "median"
    bars = computed or medians(points)
    return _by_depth(("memory-by-depth", "GB of memory", kind), bars, points, deepest=deepest, backbone=backbone)


def optimisation_history(trials: Sequence[TrialPoint], metric: str) -> Figure | None:
    """The value of every trial in sampling order, and the best so far; ``None`` without a value."""
    complete = sorted(_complete(trials), key=lambda trial: trial.number)
    if not complete:
        return None
    running = [best for i in range(len(complete)) if (best := best_trial(complete[: i + 1], metric)) is not None]
    with canvas("optimisation-history") as drawn:
        axes = drawn.axes
        numbers = [trial.number for trial in complete]
        values, line = _values(complete), _values(running)
        axes.scatter(numbers, values, color=MAIN, label="complete", rasterized=len(complete) > DENSE, **_COMPLETE)
        draw_marks(axes, trials, lambda trial: trial.value, across=lambda trial: trial.number)
        last = max(trial.number for trial in trials)
        axes.step([*numbers, last], np.append(line, line[-1]), where="post", color=ACCENT, label="best so far")
        whole_numbers(axes)
        axes.set_xlabel("trial")
        axes.set_ylabel(f"val/{metric}")
        focus(axes, values, line[-1:], metric)
        draw_legend(axes)
    steps = [trial for i, trial in enumerate(running) if i == 0 or trial.number != running[i - 1].number]
    listed = ", ".join(f"{trial.value:.4f} in trial {trial.number}" for trial in steps[-5:])
    return Figure(drawn.svg, f"Value by trial, {_counted(trials)}. Improvements ({len(steps) - 1}): {listed}.")


def hyperparameter_importance(
    shares: Mapping[str, float], ranges: Mapping[str, tuple[float, float]], metric: str
) -> Figure | None:
    """The importance of each hyperparameter, the largest first, with its uncertainty.

    Args:
        shares: 0 to 1, by name.
        ranges: lower and upper bounds by name, as far as they are known.
        metric: that the study optimises.

    Returns:
        ``None`` without shares.
    """
    if not shares:
        return None
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    spans = [ranges.get(name, (share, share)) for name, share in ranked]
    with canvas("hyperparameter-importance", height=0.75 + 0.32 * len(ranked)) as drawn:
        axes = drawn.axes
        names = [shorten(name.replace("_", " "), 28) for name, _ in ranked]
        axes.barh(range(len(ranked)), [share for _, share in ranked], color=MAIN, height=0.6)
        for place, ((_, share), (low, high)) in enumerate(zip(ranked, spans, strict=True)):
            axes.plot([low, high], [place, place], color=INK, linewidth=1.2, marker="|", markersize=6)
            axes.annotate(
                f"{share:.0%}", (max(share, high), place), xytext=(6, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(range(len(ranked)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, max(0.1, 1.15 * max(ranked[0][1], *(high for _, high in spans))))
        axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"importance (share of the variance of val/{metric})")
    listed = ", ".join(f"{name} {share:.0%}{_between(ranges.get(name))}" for name, share in ranked)
    return Figure(drawn.svg, f"Importance of hyperparameters for validation {_words(metric)}: {listed}.")


def _between(span: tuple[float, float] | None) -> str:
    return f" ({span[0]:.0%} to {span[1]:.0%})" if span else ""


def learning_curves(curves: Sequence[LearningCurve], metric: str) -> Figure | None:
    """Loss and metric by epoch, in training (dashed) and in validation, for the first four of the given trials.

    Returns:
        ``None`` without epochs.
    """
    shown = [curve for curve in curves if any(curve.metrics.values())][:_CURVES]
    kinds = [kind for kind in dict.fromkeys(("loss", metric)) if any(f"val/{kind}" in c.metrics for c in shown)]
    if not kinds:
        return None
    with canvas("learning-curves", height=0.7 + 1.9 * len(kinds)) as drawn:
        all_axes = drawn.drawing.subplots(len(kinds), sharex=True, squeeze=False)[:, 0]
        for axes, kind in zip(all_axes, kinds, strict=True):
            for curve, colour in zip(shown, COLOURS, strict=False):
                draw_curve(
                    axes, curve.metrics.get(f"train/{kind}", ()), color=colour, linestyle=(0, (3, 2)), linewidth=1
                )
                draw_curve(axes, curve.metrics.get(f"val/{kind}", ()), color=colour, label=f"trial {curve.trial}")
            axes.set_title(f"{_words(kind)}")
            whole_numbers(axes)
        all_axes[-1].set_xlabel("epoch (dashed: training, solid: validation)")
        draw_legend(all_axes[0])
    return Figure(drawn.svg, "Learning curves. " + " ".join(_course(curve, metric) for curve in shown))


def _colours(values: np.ndarray, surface: Surface | None, metric: str) -> dict[str, Any]:
    """The colour scale, bright for good values, and robust against a few very bad ones."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    shown = values if surface is None else np.append(values, surface.values[np.isfinite(surface.values)])
    low, high = np.quantile(shown, [0.05, 0.95]) if len(shown) > 20 else (shown.min(), shown.max())
    low, high = (low, high) if high > low else (low - 0.01, high + 0.01)
    return {
        "cmap": colormaps["cividis" if METRIC_DIRECTIONS[metric] == "maximize" else "cividis_r"],
        "norm": Normalize(low, high),
    }


def _draw_surface(axes: "Axes", surface: Surface, colours: Mapping[str, Any]) -> None:
    area = np.ma.masked_invalid(surface.values.T)
    levels = np.linspace(colours["norm"].vmin, colours["norm"].vmax, 13)
    axes.contourf(surface.depths, 10**surface.log_rates, area, levels=levels, extend="both", **colours)
    axes.contour(surface.depths, 10**surface.log_rates, area, levels=levels, colors="white", linewidths=0.3)


def _draw_probes(axes: "Axes", probes: Sequence[TrialPoint], curve: Mapping[int, float]) -> None:
    """Draw trials that are linear probes, and probes at the other depths, with one legend entry."""
    style: dict[str, Any] = {"color": _PROBE, "label": "linear probe", "zorder": 4}
    if curve:
        axes.plot(
            list(curve), list(curve.values()), linewidth=0.8, marker="D", markersize=3, markeredgewidth=0, **style
        )
        style["label"] = ""
    if probes:
        axes.scatter(_depths(probes), _values(probes), marker="D", s=14, linewidths=0, **style)


def _complete(trials: Sequence[TrialPoint]) -> list[TrialPoint]:
    return [trial for trial in trials if trial.state == "complete" and trial.value is not None]


def _values(trials: Iterable[TrialPoint]) -> np.ndarray:
    return np.array([trial.value for trial in trials], dtype=float)


def _depths(trials: Sequence[TrialPoint]) -> np.ndarray:
    return np.array([trial.freeze_depth for trial in trials], dtype=float)


def _best(trials: Sequence[TrialPoint], metric: str) -> TrialPoint | None:
    sign = sign_of(metric)
    return min(trials, key=lambda trial: (-sign * (trial.value or 0.0), trial.number), default=None)


def _best_at_depths(trials: Sequence[TrialPoint], metric: str) -> dict[int, TrialPoint]:
    """The best trial by depth, in ascending order."""
    complete = _complete(trials)
    depths = sorted({trial.freeze_depth for trial in complete})
    at_depths = {depth: _best([t for t in complete if t.freeze_depth == depth], metric) for depth in depths}
    return {depth: trial for depth, trial in at_depths.items() if trial is not None}


def _by_depth(
    titles: tuple[str, str, str],
    bars: Mapping[int, float],
    points: Sequence[tuple[int, float]],
    *,
    deepest: int | None,
    backbone: str,
) -> Figure | None:
    """A bar for each depth, and measurements as points; titles are the drawing's name, the unit and the bars' label."""
    if not bars:
        return None
    name, unit, kind = titles
    with canvas(f"{name}{_of(backbone)}", height=2.9) as drawn:
        axes = drawn.axes
        axes.bar(list(bars), list(bars.values()), color=BAND, width=0.7, label=kind)
        if points:
            style = {**_COMPLETE, "rasterized": len(points) > DENSE}
            axes.scatter(*zip(*points, strict=True), color=MAIN, alpha=0.6, label="measured in trials", **style)
        axes.grid(visible=False, axis="x")
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        freeze_depth_axis(axes, [*bars, *(depth for depth, _ in points)], deepest)
        draw_legend(axes)
    listed = ", ".join(f"{value:.3g} at depth {depth}" for depth, value in bars.items())
    measure = f"{unit.capitalize().replace('Gb', 'GB')}{_of(backbone)}"
    return Figure(drawn.svg, f"{measure} by freeze depth, {kind}: {listed}.")


def _course(curve: LearningCurve, metric: str) -> str:
    """A sentence that describes a curve."""
    ends = {
        name: [value for value in curve.metrics.get(name, ()) if value is not None]
        for name in dict.fromkeys(("train/loss", "val/loss", f"val/{metric}"))
    }
    listed = ", ".join(f"{name} {values[0]:.3f} to {values[-1]:.3f}" for name, values in ends.items() if values)
    return f"Trial {curve.trial}, {max(map(len, curve.metrics.values()))} epochs: {listed}."


def _counted(trials: Sequence[TrialPoint]) -> str:
    states = ", ".join(f"{count} {state}" for state, count in Counter(trial.state for trial in trials).most_common())
    return f"{len(trials)} trial{'s' if len(trials) > 1 else ''} ({states})"


def _of(backbone: str) -> str:
    return f" of {backbone}" if backbone else ""


def _words(metric: str) -> str:
    return metric.replace("_", " ").replace("f1", "F1")


def _peak(surface: Surface, metric: str) -> str:
    """A sentence on the optimum of the fitted surface."""
    take = np.nanargmax if METRIC_DIRECTIONS[metric] == "maximize" else np.nanargmin
    depth, rate = np.unravel_index(take(surface.values), surface.values.shape)
    return (
        f" The fitted surface is best, {surface.values[depth, rate]:.4f}, at freeze depth {surface.depths[depth]} and "
        f"learning rate {plain_rate(float(10 ** surface.log_rates[rate]))}."
    )
