"""Comparison of the champion, the baselines and the best trial."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thawline import backbones
from thawline.reports._formats import number, rate_of
from thawline.reports.study_figures import (
    best_trial,
)
from thawline.reports.values import StudyReport, TrialPoint
from thawline.training import sign_of

__all__ = ["PROBE", "Comparison", "compared", "comparisons_of", "deepest_of"]

PROBE = "the linear probe"


@dataclass(frozen=True)
class Comparison:
    """A comparison of the best trial with another result."""

    name: str
    trial: TrialPoint | None
    """``None`` for baselines that need no training."""
    value: float
    gain: float
    """Lead of the best trial."""


def deepest_of(report: StudyReport, best: TrialPoint | None) -> int | None:
    groups = report.layer_groups.get(best.backbone) if best else None
    return len(groups) if groups else None


def comparisons_of(report: StudyReport, best: TrialPoint | None) -> list[Comparison]:
    """Comparisons with other trials, as far as they were tried, and with the majority class, if it is known."""
    if best is None:
        return []
    deepest, others = deepest_of(report, best), [trial for trial in report.trials if trial is not best]
    same = [trial for trial in others if trial.backbone == best.backbone]
    alone = (
        [trial for trial in same if trial.freeze_depth == deepest and not trial.is_probe]
        if best.is_probe or best.freeze_depth != deepest
        else []
    )
    candidates = [
        ("all other trials", others),
        ("other freeze depths", [trial for trial in same if trial.freeze_depth != best.freeze_depth]),
        ("head only", alone),
        ("full fine-tuning", [trial for trial in same if trial.freeze_depth == 0 != best.freeze_depth]),
        ("other backbones", [trial for trial in others if trial.backbone != best.backbone]),
        (PROBE, [trial for trial in others if trial.is_probe]),
    ]
    found = [(name, best_trial(trials, report.metric)) for name, trials in candidates]
    values: list[tuple[str, TrialPoint | None, float | None]] = [
        (name, trial, trial.value) for name, trial in found if trial is not None
    ]
    if report.promotion and report.promotion.validation:
        values.append(("the majority class", None, report.promotion.validation.majority_class))
    sign = sign_of(report.metric)
    return [
        Comparison(name, trial, value, sign * ((best.value or 0.0) - value))
        for name, trial, value in values
        if value is not None
    ]


def compared(comparisons: Sequence[Comparison], *, several: bool) -> dict[str, Any]:
    """The same as a table, with backbones if there are several."""
    columns = ["best of", "trial", *(["backbone"] if several else []), "freeze depth", "learning rate"]
    rows = [
        [
            each.name,
            str(trial.number) if trial else "-",
            *([backbones.label(trial.backbone) if trial else "-"] if several else []),
            str(trial.freeze_depth) if trial else "-",
            rate_of(trial) if trial else "-",
            number(each.value),
            number(each.gain),
        ]
        for each in comparisons
        for trial in [each.trial]
    ]
    return {"columns": columns, "rows": rows}
