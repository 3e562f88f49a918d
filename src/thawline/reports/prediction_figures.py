"""Figures of a classifier's predictions: confusions, ranking, calibration."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from thawline.reports.drawing import ACCENT, BAND, COLOURS, FAINT, INK, MAIN, canvas, shorten
from thawline.tracking.media import Figure, Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["calibration_sentence", "confusion_figure", "precision_recall_curves", "reliability_diagram", "roc_curves"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_READABLE_CLASSES = 40
_PAIRS = 20
_NAMED_CLASSES = 5
_CURVE_POINTS = 101
_BINS = 15
"""As in the calibration error of Guo et al., On Calibration of Modern Neural Networks, 2017."""


def confusion_figure(predictions: Predictions) -> Figure:
    """The confusion matrix, as counts and fractions.

    Up to 40 classes as a matrix, in the order of the classes; above that, the 20 most frequently confused pairs.

    Args:
        predictions: predictions for at least one example.
    """
    from sklearn.metrics import confusion_matrix

    names = [shorten(name) for name in predictions.classes]
    predicted = predictions.predicted
    counts = confusion_matrix(predictions.labels, predicted, labels=range(len(names)))
    pairs = _confused(counts)
    with canvas("confusion", *_confusion_size(len(names), len(pairs))) as drawn:
        if len(names) <= _READABLE_CLASSES:
            _draw_matrix(drawn.axes, counts, names)
        else:
            _draw_pairs(drawn.axes, counts, pairs[:_PAIRS], names)
    right, examples = int(np.trace(counts)), int(counts.sum())
    listed = "; ".join(
        f"{names[true]} predicted as {names[said]}, {counts[true, said]} of {counts[true].sum()}"
        for true, said in pairs[:5]
    )
    most = f" Most often confused: {listed}." if pairs else ""
    return Figure(drawn.svg, f"Confusion of {examples} examples in {len(names)} classes: {right} are correct.{most}")


def precision_recall_curves(predictions: Predictions) -> Figure | None:
    """Precision against recall for each class that occurs (one against all others), and their mean.

    ``None`` unless at least two classes occur.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    def curve(right: npt.NDArray[np.bool_], score: Floats) -> Floats:
        precision, recall, _ = precision_recall_curve(right, score)
        # The best precision at that recall or above, which some threshold reaches.
        envelope = np.maximum.accumulate(precision)
        line: Floats = np.interp(_grid(), recall[::-1], envelope[::-1])
        return line

    def area(right: npt.NDArray[np.bool_], score: Floats) -> float:
        return float(average_precision_score(right, score))

    return _class_curves(predictions, "precision-recall", ("recall", "precision"), "average precision", curve, area)


def roc_curves(predictions: Predictions) -> Figure | None:
    """True against false positive rate for each class that occurs (one against all others), and their mean.

    ``None`` unless at least two classes occur.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    def curve(right: npt.NDArray[np.bool_], score: Floats) -> Floats:
        false, true, _ = roc_curve(right, score)
        line: Floats = np.interp(_grid(), false, true)
        return line

    def area(right: npt.NDArray[np.bool_], score: Floats) -> float:
        return float(roc_auc_score(right, score))

    labels = ("false positive rate", "true positive rate (recall)")
    return _class_curves(predictions, "roc", labels, "area under the curve", curve, area)


def reliability_diagram(predictions: Predictions, *, temperature: float | None = None) -> Figure:
    """Accuracy by confidence, and a histogram of the confidence.

    Args:
        predictions: predictions for at least one example, calibrated if the model is.
        temperature: by which the logits were divided; with it, the diagram also shows the uncalibrated predictions.
    """
    labels, probabilities = predictions.labels, predictions.probabilities
    right = probabilities.argmax(1) == labels
    name = "as predicted" if temperature is None else "calibrated"
    series = [(name, probabilities.max(1), MAIN, BAND)]
    if temperature is not None:
        series.insert(0, ("before calibration", _uncalibrated(probabilities, temperature).max(1), ACCENT, "none"))
    errors = {}
    with canvas("reliability", height=3.9) as drawn:
        upper, lower = drawn.drawing.subplots(2, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=(0, (3, 2)))
        for name, confidence, line, fill in series:
            sure, share, count = _bins(confidence, right)
            errors[name] = _calibration_error(sure, share, count)
            upper.plot(sure, share, color=line, label=f"{name}: error {errors[name]:.3f}")
            upper.scatter(
                sure,
                share,
                s=8 + 60 * count / count.max(),
                edgecolors=line,
                facecolors="white" if fill == "none" else line,
                zorder=3,
            )
            lower.hist(confidence, np.linspace(0, 1, _BINS + 1), edgecolor=line, facecolor=fill, histtype="stepfilled")
        upper.set_ylabel("accuracy")
        upper.set_ylim(-0.03, 1.06)
        upper.legend(loc="upper left")
        lower.set_ylabel("examples")
        lower.set_xlabel("confidence (probability of the predicted class)")
    listed = ", ".join(f"{name} {error:.3f}" for name, error in errors.items())
    sure = probabilities.max(1).mean()
    return Figure(
        drawn.svg,
        f"Reliability on {len(labels)} examples: mean confidence {sure:.1%}, accuracy "
        f"{right.mean():.1%}. Expected calibration error: {listed}.",
    )


def calibration_sentence(predictions: Predictions, *, temperature: float | None, noun: str) -> str:
    """A sentence on the effect of calibration on the test split; empty for a model without calibration.

    Args:
        predictions: predictions for at least one example, calibrated.
        temperature: by which the logits were divided; ``None`` if they were not.
        noun: for the classified examples.
    """
    if temperature is None:
        return ""
    right = predictions.probabilities.argmax(1) == predictions.labels
    before, after = (
        _calibration_error(*_bins(each.max(1), right))
        for each in (_uncalibrated(predictions.probabilities, temperature), predictions.probabilities)
    )
    errors = f"expected calibration error {before:.3f} before, {after:.3f} after"
    if after > before:
        return (
            f"Calibration, fitted on validation, worsened the probabilities of the test {noun}s: {errors}. "
            "Rely on their order rather than on their values."
        )
    return f"Calibration, fitted on validation, holds on the test {noun}s: {errors}."


def _class_curves(
    predictions: Predictions,
    name: str,
    labels: tuple[str, str],
    area_name: str,
    curve: Callable[[npt.NDArray[np.bool_], Floats], Floats],
    area: Callable[[npt.NDArray[np.bool_], Floats], float],
) -> Figure | None:
    """Curves of all classes, with the names of the five with the smallest areas, and their mean.

    With two classes, there is one curve, for the rarer class: the other would be its mirror image.
    """
    occurring, counts = np.unique(predictions.labels, return_counts=True)
    if len(occurring) < 2:
        return None
    if len(predictions.classes) == 2:
        occurring = occurring[[int(counts.argmin())]] if counts[0] != counts[1] else occurring[1:]
    sides = [(predictions.labels == number, predictions.probabilities[:, number]) for number in occurring]
    curves, areas = [curve(*side) for side in sides], np.array([area(*side) for side in sides])
    worst = np.argsort(areas, kind="stable")[:_NAMED_CLASSES]
    with canvas(name, height=4.1) as drawn:
        axes = drawn.axes
        for line in curves:
            axes.plot(_grid(), line, color=BAND, linewidth=0.8)
        for place, colour in zip(worst, COLOURS, strict=False):
            label = f"{shorten(predictions.classes[occurring[place]], 26)}: {areas[place]:.3f}"
            axes.plot(_grid(), curves[place], color=colour, linewidth=1.1, label=label)
        if len(curves) > 1:
            label = f"mean of {len(curves)} classes: {areas.mean():.3f}"
            axes.plot(_grid(), np.mean(curves, axis=0), color=INK, linewidth=2, label=label)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.02, 1.02)
        title = f"{area_name}, lowest classes" if len(curves) > 1 else area_name
        drawn.drawing.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, title=title)
    listed = ", ".join(f"{shorten(predictions.classes[occurring[place]])} {areas[place]:.3f}" for place in worst)
    across, up = labels
    if len(curves) == 1:
        return Figure(drawn.svg, f"{up.capitalize()} against {across}. {area_name.capitalize()}: {listed}.")
    return Figure(
        drawn.svg,
        f"{up.capitalize()} against {across} of {len(curves)} classes. Mean {area_name}: {areas.mean():.3f}. "
        f"Lowest: {listed}.",
    )


def _grid() -> Floats:
    return np.linspace(0, 1, _CURVE_POINTS)


def _confused(counts: Ints) -> list[tuple[int, int]]:
    """Pairs of (true, predicted) class, the most often confused first."""
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
    return [(int(place // len(counts)), int(place % len(counts))) for place in order]


def _confusion_size(classes: int, pairs: int) -> tuple[float, float]:
    if classes > _READABLE_CLASSES:
        return 4.4, 0.9 + 0.24 * max(1, min(pairs, _PAIRS))
    side = max(3.1, 0.24 * classes)
    return side + 1.3, side + 1.1


def _draw_matrix(axes: "Axes", counts: Ints, names: Sequence[str]) -> None:
    support = counts.sum(1, keepdims=True)
    shares = np.divide(counts, support, out=np.zeros(counts.shape), where=support > 0)
    edges = np.arange(len(names) + 1) - 0.5
    axes.pcolor(edges, edges, np.ma.masked_equal(shares, 0), cmap="Blues", vmin=0, vmax=1)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    few = len(names) <= 12
    for (true, said), count in np.ndenumerate(counts):
        if count:
            share = shares[true, said]
            text = f"{count}\n{share:.0%}" if few else str(count)
            axes.text(
                said,
                true,
                text,
                ha="center",
                va="center",
                fontsize=6.5 if few else 5.5,
                color="white" if share > 0.7 else INK,
                linespacing=1.0,
            )
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7.5)
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.grid(which="minor")
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true class")


def _draw_pairs(axes: "Axes", counts: Ints, pairs: Sequence[tuple[int, int]], names: Sequence[str]) -> None:
    values = [int(counts[pair]) for pair in pairs]
    bars = axes.barh(range(len(pairs)), values, color=MAIN, height=0.65)
    axes.bar_label(
        bars, [f"{counts[true, said]} of {counts[true].sum()}" for true, said in pairs], padding=3, fontsize=7.5
    )
    axes.set_yticks(range(len(pairs)), [f"{names[true]} → {names[said]}" for true, said in pairs], fontsize=7.5)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set_xlim(0, 1.25 * max(values, default=1))
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("examples (true class → predicted)")


def _uncalibrated(probabilities: Floats, temperature: float) -> Floats:
    """The probabilities before the logits were divided by the temperature."""
    from scipy.special import softmax

    undone: Floats = softmax(np.log(np.maximum(probabilities, 1e-30)) * temperature, axis=1)
    return undone


def _bins(confidence: Floats, right: npt.NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """Mean confidence, accuracy and number of examples of each non-empty bin."""
    places = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    count = np.bincount(places, minlength=_BINS)
    filled = count > 0
    sure, share = (np.bincount(places, each, minlength=_BINS)[filled] / count[filled] for each in (confidence, right))
    return sure, share, count[filled].astype(float)


def _calibration_error(sure: Floats, share: Floats, count: Floats) -> float:
    """The expected calibration error, from the results of :func:`_bins`."""
    return float((count * np.abs(sure - share)).sum() / count.sum())
