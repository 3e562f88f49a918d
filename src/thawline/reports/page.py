"""The report of a study as one self-contained page: for a browser, a phone, or paper."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thawline import backbones
from thawline.data import printable
from thawline.data.contract import NOUNS
from thawline.data.report import measured_lines, problem_titles
from thawline.reports._comparisons import PROBE, Comparison, compared, comparisons_of, deepest_of
from thawline.reports._formats import (
    ORDER,
    cell,
    counted,
    epoch_of,
    number,
    range_of,
    rate_of,
    share_of,
    some,
)
from thawline.reports._templates import template
from thawline.reports.drawing import plain_rate
from thawline.reports.intervals import class_table, metric_intervals, proportion_interval
from thawline.reports.prediction_figures import (
    calibration_sentence,
    confusion_figure,
    precision_recall_curves,
    reliability_diagram,
    roc_curves,
)
from thawline.reports.study_figures import (
    best_trial,
    hyperparameter_importance,
    learning_curves,
    memory_by_depth,
    optimisation_history,
    response_surface,
    thaw_line,
    time_by_depth,
)
from thawline.reports.surface import Surface, fit_surface
from thawline.reports.values import DataSummary, StudyReport, TrialPoint
from thawline.tracking.media import Figure, Predictions
from thawline.training import sign_of

__all__ = ["class_rows", "render", "report_figures", "report_surfaces"]

_SECTIONS = (
    ("thaw-line", "Freeze depth"),
    ("cost", "Time and memory"),
    ("leaderboard", "Leaderboard"),
    ("search", "Search"),
    ("test", "Test results"),
    ("mistakes", "Mistakes"),
    ("labels", "Labels"),
    ("explanations", "Explanations"),
    ("promotion", "Promotion"),
    ("data", "Data"),
    ("reproduce", "Reproduce"),
)
_FEWEST_ON_A_SURFACE = 15
"""Minimum number of completed trials for a surface; with fewer, it would suggest more than is known."""
_NORMAL_95 = 1.96
_NAMED = 10  # problems listed per kind; bad files are all listed
_WIDE_CLASSES = 14
_SPLITS = ("train", "validation", "test")


def render(report: StudyReport, figures: Mapping[str, Figure | None] | None = None) -> str:
    """The page, as HTML.

    It is self-contained: a browser that opens it sends no request. External values, such as names of classes and
    files, are escaped. Sections without values give the reason in a sentence.

    Args:
        report: its values.
        figures: result of :func:`report_figures`, if they are drawn already; drawing takes most of the time.
    """
    drawn = report_figures(report) if figures is None else figures
    tried = _tried(report)
    best = tried[0].best if tried else None
    comparisons = comparisons_of(report, best)
    noun = NOUNS[report.data.kind] if report.data else "example"
    return template("page.html").render(
        report=report,
        sections=_sections(report),
        metric=f"val/{report.metric}",
        words=report.metric.replace("_", " ").replace("f1", "F1"),
        counted=counted(report.trials),
        noun=noun,
        headline=_headline(report, best, comparisons),
        serve=_serve(report),
        cards=_cards(report, best, comparisons),
        compared=compared(comparisons, several=len(tried) > 1),
        notes=_notes(report, best, noun),
        figures=drawn,
        backbones=[_drawn(backbone, drawn, report) for backbone in tried],
        tried=[_outcome(backbone) for backbone in tried] if len(tried) > 1 else [],
        leaderboard=_leaderboard(report),
        test=_test(report.test, noun, report.temperature) if report.test else None,
        data=_data(report.data) if report.data else None,
    )


def report_figures(report: StudyReport) -> dict[str, Figure | None]:
    """All figures of the report by name, such as ``thaw_line``; ``None`` for figures without values.

    Freeze depths of different backbones are not comparable. If a study tries several, ``surface``, ``thaw_line``,
    ``time`` and ``memory`` are drawn for each, and named as in ``thaw_line/resnet18``.
    """
    metric, test, surfaces = report.metric, report.test, report_surfaces(report)
    figures: dict[str, Figure | None] = {}
    for tried in _tried(report):
        trials, deepest, title = tried.trials, tried.deepest, tried.title
        costs = report.costs.get(tried.name, ())
        surface = surfaces.get(tried.figure("surface")) if tried.trained >= _FEWEST_ON_A_SURFACE else None
        figures |= {
            tried.figure("surface"): response_surface(trials, surface, metric, deepest=deepest, backbone=title),
            tried.figure("thaw_line"): thaw_line(
                trials, metric, probes=report.probe_curves.get(tried.name, {}), deepest=deepest, backbone=title
            ),
            tried.figure("time"): time_by_depth(trials, deepest=deepest, backbone=title),
            tried.figure("memory"): memory_by_depth(trials, costs, deepest=deepest, backbone=title),
        }
    return figures | {
        "curves": learning_curves(report.curves, metric),
        "history": optimisation_history(report.trials, metric),
        "importance": hyperparameter_importance(report.importance, report.importance_ranges, metric),
        "confusion": confusion_figure(test) if test else None,
        "precision_recall": precision_recall_curves(test) if test else None,
        "roc": roc_curves(test) if test else None,
        "reliability": reliability_diagram(test, temperature=report.temperature) if test else None,
    }


def report_surfaces(report: StudyReport) -> dict[str, Surface]:
    """The metric over freeze depth and learning rate, fitted to the completed trials of each backbone.

    Keys are the names of the figures, ``surface`` or ``surface/resnet18``. Backbones with too few trials are left out,
    and so are linear probes, which have no learning rate; see :func:`~thawline.reports.fit_surface`.
    """
    found = {tried.figure("surface"): _surface(tried) for tried in _tried(report)}
    return {name: surface for name, surface in found.items() if surface is not None}


@dataclass(frozen=True)
class _Tried:
    """A backbone and its trials, whose freeze depths are comparable."""

    name: str
    trials: tuple[TrialPoint, ...]
    best: TrialPoint | None
    groups: tuple[str, ...]
    """Names of its layer groups, if they are known."""
    alone: bool
    """Whether it is the study's only backbone."""

    @property
    def deepest(self) -> int | None:
        return len(self.groups) or None

    @property
    def trained(self) -> int:
        """Number of completed trials, without linear probes."""
        return sum(trial.state == "complete" and trial.learning_rate is not None for trial in self.trials)

    @property
    def title(self) -> str:
        """Its label; empty if it is the only one."""
        return "" if self.alone else backbones.label(self.name)

    def figure(self, kind: str) -> str:
        """Name of a figure of this backbone."""
        return kind if self.alone else f"{kind}/{backbones.short_name(self.name)}"


def _tried(report: StudyReport) -> list[_Tried]:
    """The backbones of all trials, that of the best trial first."""
    names = sorted({trial.backbone for trial in report.trials})
    found = []
    for name in names:
        trials = tuple(trial for trial in report.trials if trial.backbone == name)
        best = best_trial(trials, report.metric)
        found.append(_Tried(name, trials, best, report.layer_groups.get(name, ()), len(names) == 1))
    sign = -sign_of(report.metric)
    return sorted(
        found, key=lambda each: (0, sign * (each.best.value or 0.0), each.best.number) if each.best else (1, 0.0, 0)
    )


def _surface(tried: _Tried) -> Surface | None:
    points = [
        (trial.freeze_depth, trial.learning_rate, trial.value)
        for trial in tried.trials
        if trial.state == "complete" and trial.learning_rate is not None and trial.value is not None
    ]
    if not points:
        return None
    depths, rates, values = map(np.array, zip(*points, strict=True))
    return fit_surface(depths, rates, values, deepest=tried.deepest or int(depths.max()))


def _sections(report: StudyReport) -> list[tuple[str, str]]:
    """The sections of the page; explanations exist only for images, and labels are not always judged."""
    of_texts = report.data is not None and report.data.kind == "texts"
    absent = {"explanations"} if of_texts else set()
    return [each for each in _SECTIONS if each[0] not in (absent if report.labels else absent | {"labels"})]


@dataclass(frozen=True)
class _Card:
    name: str
    value: str
    note: str = ""


def _headline(report: StudyReport, best: TrialPoint | None, comparisons: Sequence[Comparison]) -> str:
    if best is None:
        reasons = Counter(trial.reason for trial in report.trials if trial.state == "failed" and trial.reason)
        why = [f"{some(count)} failed: {reason.rstrip('.')}." for reason, count in reasons.most_common(3)]
        return " ".join(["No trial is complete, so there is no result yet.", *why])
    backbone = f" of {backbones.label(best.backbone)}" if best.backbone else ""
    what = (
        f"The linear probe{backbone}"
        if best.learning_rate is None
        else f"Freeze depth {best.freeze_depth}{backbone} with learning rate {plain_rate(best.learning_rate)}"
    )
    frozen = (
        "All layer groups are frozen, and a linear head on their features is fitted to convergence."
        if best.is_probe
        else _frozen(report.layer_groups.get(best.backbone), best.freeze_depth)
    )
    return (
        f"{what} is best: {number(best.value)} validation {report.metric.replace('_', ' ')} in trial {best.number}. "
        f"{_chance(report, best, comparisons)}{frozen}"
    )


def _chance(report: StudyReport, best: TrialPoint, comparisons: Sequence[Comparison]) -> str:
    """A sentence on whether the lead over other freeze depths is larger than chance explains.

    Accuracies are compared as if measured on independent examples. They are measured on the same ones, so that the test
    is conservative.
    """
    other = next((each for each in comparisons if each.name == "other freeze depths"), None)
    size = report.data.size("validation") if report.data else 0
    if other is None or other.trial is None or best.value is None or report.metric != "accuracy" or not size:
        return ""
    noun = NOUNS[report.data.kind] if report.data else "example"
    variance = sum(share * (1 - share) / size for share in (best.value, other.value))
    if other.gain <= _NORMAL_95 * variance**0.5:
        depths = " and ".join(str(depth) for depth in sorted({best.freeze_depth, other.trial.freeze_depth}))
        return f"Freeze depths {depths} cannot be told apart on {size} validation {noun}s. "
    return f"It leads all other freeze depths by {other.gain:.4f}, more than chance explains. "


def _frozen(groups: Sequence[str] | None, depth: int) -> str:
    """A sentence that explains a freeze depth; empty if the layer groups are not known."""
    if groups is None:
        return ""
    if depth == 0:
        return "Nothing is frozen."
    if depth >= len(groups):
        return "All layer groups are frozen; only the head is trained."
    return f"Frozen: {', '.join(groups[:depth])}. Trained: {', '.join(groups[depth:])} and the head."


def _cards(report: StudyReport, best: TrialPoint | None, comparisons: list[Comparison]) -> list[_Card]:
    if best is None:
        return []
    deepest, metric = deepest_of(report, best), report.metric.replace("_", " ")
    cards = [
        _Card(
            "Freeze depth", f"{best.freeze_depth}{f' of {deepest}' if deepest else ''}", backbones.label(best.backbone)
        ),
        _Card("Head", "linear probe", f"trial {best.number}")
        if best.is_probe
        else _Card("Learning rate", rate_of(best), f"trial {best.number}"),
        _Card(f"Validation {metric}", number(best.value), epoch_of(best)),
    ]
    cards += [
        _Card("Linear probe", number(each.value), f"validation {metric}") for each in comparisons if each.name == PROBE
    ]
    if report.test:
        labels, predicted = report.test.labels, report.test.predicted
        accuracy = proportion_interval(int((labels == predicted).sum()), len(labels))
        note = f"95 %: {accuracy.low:.3f} to {accuracy.high:.3f}"
        if report.promotion and report.promotion.majority_class:
            note += f"; majority class {number(report.promotion.majority_class.get('accuracy'))}"
        cards.append(_Card("Test accuracy", number(accuracy.value), note))
    if report.promotion:
        verdict = {"promote": "promoted", "hold": "not promoted", "reject": "rejected"}
        name = f"{report.promotion.model} version {report.promotion.version}"
        cards.append(_Card("Model", verdict.get(report.promotion.outcome, report.promotion.outcome), name))
    return cards


def _serve(report: StudyReport) -> str:
    """The command that serves the model; empty without a model, or if it was rejected."""
    promotion = report.promotion
    if promotion is None or promotion.outcome == "reject":
        return ""
    return f"thawline serve {promotion.model}{'' if promotion.outcome == 'promote' else f'/{promotion.version}'}"


def _notes(report: StudyReport, best: TrialPoint | None, noun: str) -> list[str]:
    """Sentences with caveats of the comparison."""
    notes = []
    size = report.data.size("validation") if report.data else 0
    if best and best.value is not None and report.metric == "accuracy" and size:
        interval = proportion_interval(round(best.value * size), size)
        notes.append(
            f"On {size} validation {noun}s, an accuracy of {best.value:.3f} has a 95 % interval of {interval.low:.3f} "
            f"to {interval.high:.3f}: much smaller differences may be due to chance."
        )
    names = sorted({trial.backbone for trial in report.trials})
    shortened = [f"{backbones.label(name)} is {name}." for name in names if backbones.label(name) != name]
    return [*notes, *shortened]


def _outcome(tried: _Tried) -> list[str]:
    """A backbone as a row."""
    counted, best = str(len(tried.trials)), tried.best
    if best is None:
        return [tried.title, counted, "-", "-", "-", "-"]
    depth = f"{best.freeze_depth}{f' of {tried.deepest}' if tried.deepest else ''}"
    return [tried.title, counted, number(best.value), depth, rate_of(best), str(best.number)]


def _drawn(tried: _Tried, figures: Mapping[str, Figure | None], report: StudyReport) -> dict[str, Any]:
    """A backbone with its figures, and the facts for their captions."""
    probes = [trial for trial in tried.trials if trial.is_probe]
    mark = "star" if tried.best in probes else "diamond"
    curve = [value for value in report.probe_curves.get(tried.name, {}).values() if value is not None]
    drawings = {kind: figures.get(tried.figure(kind)) for kind in ("surface", "thaw_line", "time", "memory")}
    return {
        "title": tried.title,
        "groups": tried.groups,
        "probed": bool(probes),
        "probe_mark": mark if best_trial(probes, report.metric) else "",
        "probe_curve": len(curve) > 1,  # a single point is the trial itself
        **drawings,
    }


def _leaderboard(report: StudyReport) -> dict[str, Any]:
    """Columns, and rows of a trial with its cells after the number; further hyperparameters only if they differ.

    Linear probes, which have few hyperparameters, are ignored in this comparison.
    """
    sign = -sign_of(report.metric)
    ranked = sorted(
        report.trials,
        key=lambda trial: (ORDER.index(trial.state), sign * (trial.value or 0.0), trial.number),
    )
    everything = [_settings(trial) for trial in report.trials]
    trained = [each for each, trial in zip(everything, report.trials, strict=True) if not trial.is_probe]
    names = dict.fromkeys(name for each in everything for name in each)
    varied = [
        name for name in names if len({each.get(name) for each in (everything if name == "backbone" else trained)}) > 1
    ]
    fixed = [("trial", True), ("state", False), (f"val/{report.metric}", True), ("freeze depth", True)]
    columns = [*fixed, ("learning rate", True), *((name.replace("_", " "), False) for name in varied)]
    rows = [
        [
            trial.state,
            number(trial.value),
            str(trial.freeze_depth),
            rate_of(trial),
            *(cell(_settings(trial).get(name)) for name in varied),
            "-" if trial.epochs is None else str(trial.epochs),
            "-" if trial.seconds is None else f"{trial.seconds:.1f}",
        ]
        for trial in ranked
    ]
    return {
        "columns": [
            {"name": name, "number": number} for name, number in [*columns, ("epochs", True), ("seconds", True)]
        ],
        "reasons": any(trial.reason for trial in ranked),
        "links": any(trial.link for trial in ranked),
        "rows": list(zip(ranked, rows, strict=True)),
    }


def _settings(trial: TrialPoint) -> dict[str, str | int | float]:
    return {"backbone": backbones.label(trial.backbone), **trial.others}


def _test(predictions: Predictions, noun: str, temperature: float | None) -> dict[str, Any]:
    size, classes = len(predictions.labels), len(predictions.classes)
    intervals = metric_intervals(predictions)
    wrong = size - round(intervals["accuracy"].value * size)
    columns = class_table(predictions).columns
    by_class = sorted(zip(*columns.values(), strict=True), key=lambda row: (row[2] is None, row[2] or 0.0))
    return {
        "sentence": f"The best trial's model classified {size - wrong} of {size} {noun}s correctly; no trial saw them.",
        "metrics": [
            [name, f"{each.value:.4f}", f"{each.low:.3f} to {each.high:.3f}"] for name, each in intervals.items()
        ],
        "class_columns": ["class", f"{noun}s", "recall", "95 % interval", "precision", "F1"],
        "classes": [
            [printable(str(name)), examples, share_of(recall), range_of(low, high), share_of(precision), share_of(f1)]
            for name, examples, recall, low, high, precision, f1 in by_class
        ],
        "confusion_caption": "Rows are true classes, columns are predicted classes; colours are fractions of the row."
        if classes <= 40
        else "The most frequently confused pairs of classes.",
        "calibration": calibration_sentence(predictions, temperature=temperature, noun=noun),
        "wide": _WIDE_CLASSES < classes <= 40,
        "wrong": wrong,
    }


def class_rows(data: DataSummary) -> list[list[str]]:
    """A table of the classes: counts by split, total and share; the last row contains the sums."""
    total = sum(data.size(split) for split in _SPLITS)
    sums = {name: sum(counts.values()) for name, counts in data.classes.items()}
    rows = [
        [
            printable(name),
            *(f"{counts.get(split, 0):,}" for split in _SPLITS),
            f"{sums[name]:,}",
            f"{sums[name] / max(total, 1):.1%}",
        ]
        for name, counts in data.classes.items()
    ]
    return [*rows, ["all", *(f"{data.size(split):,}" for split in _SPLITS), f"{total:,}", ""]]


def _data(data: DataSummary) -> dict[str, Any]:
    titles = problem_titles(data.kind)
    kinds = [kind for kind in {**titles, **data.problems} if data.problems.get(kind)]
    shown = {kind: data.problems[kind][: None if kind == "bad" else _NAMED] for kind in kinds}
    problems = [(titles.get(kind, kind), shown[kind], len(data.problems[kind]) - len(shown[kind])) for kind in kinds]
    return {
        "classes": class_rows(data),
        "measured": measured_lines(data.table, data.shapes),
        "problems": problems,
    }
