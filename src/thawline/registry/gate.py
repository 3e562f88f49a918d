"""The gate: a pure function from measurements of challenger and champion to a verdict with all criteria."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from thawline.config import GateRules
from thawline.data import few, markdown_text
from thawline.registry.baselines import majority_class
from thawline.registry.names import COLUMNS
from thawline.registry.scores import Scores, compare, compare_calibration, compare_quantised, compare_recalls
from thawline.registry.statistics import Gain
from thawline.training import METRIC_DIRECTIONS

__all__ = [
    "PARITY_TOLERANCE",
    "QUANTISED_SECONDS",
    "RECALL_BY_CHANCE",
    "Criterion",
    "Outcome",
    "Verdict",
    "decide",
    "decide_quantised",
]

PARITY_TOLERANCE = 1e-3
"""Maximum difference of a probability between the packaged model and the trained network. Networks of more than a
hundred layers differ by some 1e-5 between batch sizes; a wrong resize or class order causes far more."""
RECALL_BY_CHANCE = 0.2
"""Probability that chance stops a challenger whose recall has not fallen in any class. It is higher than for a false
promotion, because such a challenger can be judged again with more images, whereas users suffer from a lost class. With
100 images per class, it detects a fall of 20 points among 300 classes in nine of ten cases (ADR 9)."""
QUANTISED_SECONDS = 0.9
"""Maximum time of an int8 copy, relative to its original with the fastest engine here: it is less precise, and
measured times vary by chance."""
_GAIN, _EVIDENCE = "gain", "evidence of the gain"
_LOSS, _RECALL, _SECONDS = "loss by quantisation", "recall of every class", "seconds for one"


class Outcome(StrEnum):
    """What happens to the challenger."""

    PROMOTE = "promote"
    """It becomes the champion."""
    HOLD = "hold"
    """It stays the challenger: it works, but is not shown to be better."""
    REJECT = "reject"
    """It cannot replace the champion, however good it is."""


@dataclass(frozen=True)
class Criterion:
    """One criterion with its value and threshold."""

    name: str
    passed: bool
    value: str
    threshold: str

    def __str__(self) -> str:
        return f"{self.name} {self.value}, required: {self.threshold}"


@dataclass(frozen=True)
class Verdict:
    """The decision, its reason as a sentence, and every criterion that led to it."""

    outcome: Outcome
    reason: str
    criteria: tuple[Criterion, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        criteria = [
            {"name": each.name, "passed": each.passed, "value": each.value, "threshold": each.threshold}
            for each in self.criteria
        ]
        return {"outcome": self.outcome.value, "reason": self.reason, "criteria": criteria}

    def as_markdown(self) -> str:
        """The criteria as a table."""
        rows = [
            f"| {markdown_text(each.name)} | {markdown_text(each.value)} | {markdown_text(each.threshold)} "
            f"| {'pass' if each.passed else '**fail**'} |"
            for each in self.criteria
        ]
        return "\n".join(["| criterion | value | required | |", "|---|---|---|---|", *rows])


def decide(
    rules: GateRules,
    challenger: Scores,
    champion: Scores | None,
    *,
    majority: Scores | None = None,
    champion_error: str | None = None,
    further: Sequence[tuple[str, Scores, Scores | None]] = (),
    by_force: str = "thawline promote NAME --version N --force --reason TEXT",
) -> Verdict:
    """Promote the challenger if it is better than the champion on the same items, and worse in no criterion.

    The first champion must beat the majority class.

    Args:
        rules: thresholds.
        challenger: measured now on the test split.
        champion: measured now on the same; ``None`` if there is none or if it could not be measured.
        majority: scores of the training split's most frequent class; by default of that of the test labels.
        champion_error: why the champion could not be measured; then the challenger is held, because a broken champion
            needs a person.
        further: scores of both on each further folder or table, with its name.
        by_force: the command that promotes the challenger without a comparison.
    """
    usable = list(_usable(rules, challenger, champion))
    if failed := [each for each in usable if not each.passed]:
        return Verdict(Outcome.REJECT, f"the challenger cannot be used: {_listed(failed)}", tuple(usable))
    if champion_error is not None:
        reason = f"the champion could not be scored ({champion_error}); roll back with `thawline rollback`"
        return Verdict(Outcome.HOLD, f"{reason}, or promote by force: `{by_force}`", tuple(usable))
    value, metric = challenger.metrics[rules.metric], rules.metric
    if champion is None:
        majority = majority or majority_class(Counter(challenger.labels), challenger.labels, kind=challenger.kind)
        return _first(rules, challenger, majority, usable, by_force)
    before = champion.metrics[metric]
    if not math.isfinite(before):
        return Verdict(
            Outcome.HOLD, f"the champion's {metric} is {before}, so no comparison is possible", tuple(usable)
        )
    gain, p_value = compare(metric, challenger, champion)
    criteria = (
        *usable,
        *_better(rules, gain, p_value),
        *_no_worse(rules, challenger, champion, further, seconds=rules.max_latency_ratio),
    )
    values = f"{metric} {value:.4f} against {before:.4f} on the same {len(challenger.labels)} test {challenger.kind}"
    failed = [each for each in criteria if not each.passed]
    difference = _difference(gain, metric, challenger, champion)
    if not failed:
        return Verdict(Outcome.PROMOTE, f"the challenger is better: {values}; {difference}", criteria)
    held = f"{_held(failed, gain)}: {difference}; {values}; not met: {_listed(failed)}"
    return Verdict(Outcome.HOLD, held, criteria)


def decide_quantised(
    rules: GateRules, quantised: Scores, twin: Scores, *, further: Sequence[tuple[str, Scores, Scores | None]] = ()
) -> Verdict:
    """Replace the champion with its int8 copy if the copy is faster and no worse.

    Quantisation saves only time, so no gain is required. The burden of proof is reversed: the copy must be shown to
    lose less than ``rules.max_quantisation_loss``. A copy that measurably loses more, or recall of a class beyond
    chance, is rejected; one that is not shown to lose less, or is not faster, is held.

    Args:
        rules: thresholds.
        quantised: measured now on the test split.
        twin: the champion, measured now on the same; its seconds are those of its fastest engine.
        further: scores of both on each further folder.
    """
    usable = list(_usable(rules, quantised, twin))
    if failed := [each for each in usable if not each.passed]:
        return Verdict(Outcome.REJECT, f"the int8 copy cannot be used: {_listed(failed)}", tuple(usable))
    gain, _ = compare(rules.metric, quantised, twin)
    margin, lower = rules.max_quantisation_loss, compare_quantised(rules.metric, quantised, twin).lower
    shown = Criterion(
        f"evidence that it is below {margin:g}",
        lower(rules.significance) > -margin or rules.significance == 1,
        f"{max(-lower(rules.significance), 0):.4f} at most, with {1 - rules.significance:.1%} confidence",
        f"less than {margin:g}",
    )
    criteria = (
        *usable,
        Criterion(_LOSS, -gain.value <= margin + 1e-9, f"{-gain.value:+.4f}", f"at most {margin:g}"),
        shown,
        *_no_worse(rules, quantised, twin, further, seconds=QUANTISED_SECONDS),
    )
    failed = [each for each in criteria if not each.passed]
    values = (
        f"{rules.metric} {quantised.metrics[rules.metric]:.4f} against {twin.metrics[rules.metric]:.4f} of the version "
        f"that it was quantised from, on the same {len(twin.labels)} test {twin.kind}"
    )
    if not failed:
        return Verdict(Outcome.PROMOTE, f"the int8 copy is faster and no worse: {values}", criteria)
    names = {each.name for each in failed}
    if names & {_LOSS, _RECALL}:
        return Verdict(Outcome.REJECT, f"the network quantises badly: {values}; {_listed(failed)}", criteria)
    if not shown.passed:
        perfect = compare_quantised(rules.metric, twin, twin).lower(rules.significance) > -margin
        few = "" if perfect else f"; {len(twin.labels)} test {twin.kind} are too few to show it for any copy"
        held = f"not shown to be as good as its original{few}"
    else:
        slower = any(name.startswith(_SECONDS) for name in names)
        held = "not faster" if slower else "as good, but worse in another criterion"
    return Verdict(Outcome.HOLD, f"{held}: {values}; not met: {_listed(failed)}", criteria)


def _held(failed: Sequence[Criterion], gain: Gain) -> str:
    """The main reason why the challenger is held, in a few words."""
    names = {each.name for each in failed}
    if _GAIN in names:
        return "gain too small" if gain.value > 0 else "not better"
    return "not significant" if _EVIDENCE in names else "better, but worse in another criterion"


def _difference(gain: Gain, metric: str, challenger: Scores, champion: Scores) -> str:
    """``1 image of 38 better, 95% interval -0.05 to +0.11``; for other metrics than accuracy, their difference."""
    interval = f"95% interval {gain.lower(0.025):+.2g} to {gain.upper(0.025):+.2g}"
    better = "better" if gain.value > 0 else "worse"
    if metric != "accuracy":
        return f"{metric} {abs(gain.value):.4f} {better}, {interval}"
    ours, theirs = (
        sum(label == answer for label, answer in zip(each.labels, each.predicted, strict=True))
        for each in (challenger, champion)
    )
    count, of = abs(ours - theirs), len(challenger.labels)
    if not count:
        return f"equally many of {of} {challenger.kind} correct, {interval}"
    return f"{count} {COLUMNS[challenger.kind] if count == 1 else challenger.kind} of {of} {better}, {interval}"


def _first(
    rules: GateRules, challenger: Scores, majority: Scores, usable: Sequence[Criterion], by_force: str
) -> Verdict:
    """Whether the first champion has learned anything: whether it beats the majority class beyond chance.

    The comparison uses balanced accuracy, whatever the metric: a majority class with nine tenths of the items has an
    accuracy of 0.9.
    """
    metric, counted = rules.metric, f"{len(challenger.labels)} test {challenger.kind}"
    ours, theirs = (each.metrics["balanced_accuracy"] for each in (challenger, majority))
    lower = _gain_at_least(rules, challenger, majority)
    better = Criterion(
        "better than the majority class",
        ours > theirs and (lower > 0 or rules.significance == 1),
        f"balanced accuracy {ours:.4f} against {theirs:.4f}; {lower:+.4f} at least, "
        f"with {1 - rules.significance:.1%} confidence",
        "more than 0",
    )
    criteria = (*usable, better)
    if better.passed:
        compared = f"{metric} is {challenger.metrics[metric]:.4f}, the majority class's {majority.metrics[metric]:.4f}"
        return Verdict(Outcome.PROMOTE, f"first champion; its {compared}", criteria)
    perfect = replace(challenger, predicted=challenger.labels)
    too_few = "" if _gain_at_least(rules, perfect, majority) > 0 else ", too few for any model to show it"
    return Verdict(
        Outcome.HOLD,
        "there is no champion yet, but the challenger does not beat the majority class beyond chance: balanced "
        f"accuracy {ours:.4f} against {theirs:.4f} on {counted}{too_few}. It stays the challenger; `{by_force}` makes "
        "it champion by force",
        criteria,
    )


def _gain_at_least(rules: GateRules, challenger: Scores, majority: Scores) -> float:
    """Lower bound of the gain in balanced accuracy."""
    return compare("balanced_accuracy", challenger, majority)[0].lower(rules.significance)


def _usable(rules: GateRules, challenger: Scores, champion: Scores | None) -> Iterator[Criterion]:
    """Criteria that every champion must meet."""
    value = challenger.metrics[rules.metric]
    yield Criterion(rules.metric, math.isfinite(value), f"{value:.4f}", "a number")
    needed = set(champion.classes if champion is not None else ()) | set(challenger.labels)
    missing = sorted(needed - set(challenger.classes))
    yield Criterion(
        "classes",
        not missing,
        f"lacks {few(missing)}" if missing else f"knows {len(challenger.classes)}",
        f"every class of the test {challenger.kind} and of the champion",
    )
    if challenger.parity is not None:
        yield Criterion(
            "parity of package and trained network",
            challenger.parity <= PARITY_TOLERANCE,
            f"{challenger.parity:.1e}",
            f"at most {PARITY_TOLERANCE:.0e}",
        )


def _better(rules: GateRules, gain: Gain, p_value: float) -> Iterator[Criterion]:
    least = f"at least {rules.minimum_gain:g} and more than 0" if rules.minimum_gain else "more than 0"
    sign = " (lower is better)" if METRIC_DIRECTIONS[rules.metric] == "minimize" else ""
    enough = gain.value > 0 and gain.value >= rules.minimum_gain - 1e-9  # 0.9 - 0.8 is a little less than 0.1
    yield Criterion(_GAIN, enough, f"{gain.value:+.4f}{sign}", least)
    lower = gain.lower(rules.significance)
    yield Criterion(
        _EVIDENCE,
        lower > 0 or rules.significance == 1,
        f"{lower:+.4f} at least, with {1 - rules.significance:.1%} confidence; McNemar's p is {p_value:.2g}",
        "more than 0",
    )


def _no_worse(
    rules: GateRules,
    challenger: Scores,
    champion: Scores,
    further: Sequence[tuple[str, Scores, Scores | None]],
    *,
    seconds: float,
) -> Iterator[Criterion]:
    chance = min(rules.significance, 0.5)  # 1 requires no evidence of a gain; for a loss, the measured value suffices
    word, classes = COLUMNS[challenger.kind], len(challenger.recalls)
    name, fallen = compare_recalls(challenger, champion, tolerated=rules.max_recall_loss)
    yield Criterion(
        _RECALL,
        fallen.p_value > max(RECALL_BY_CHANCE, chance),
        f"{name} {-fallen.loss:+.3f}; p = {fallen.p_value:.2g}, corrected for {classes} classes",
        f"no class loses more than {rules.max_recall_loss:g} and one {word}, beyond chance over all classes",
    )
    yield Criterion(
        "calibration error",
        compare_calibration(challenger, champion).upper(chance) >= -rules.max_calibration_loss,
        f"{challenger.metrics['calibration_error']:.3f} against {champion.metrics['calibration_error']:.3f}",
        f"at most {rules.max_calibration_loss:g} more, beyond chance",
    )
    if challenger.seconds_per_item and champion.seconds_per_item:
        yield Criterion(
            f"{_SECONDS} {word}",
            challenger.seconds_per_item <= seconds * champion.seconds_per_item,
            f"{challenger.seconds_per_item:.4f} against {champion.seconds_per_item:.4f}",
            f"at most {seconds:g} times",
        )
    if challenger.bytes and champion.bytes:
        yield Criterion(
            "size",
            challenger.bytes <= rules.max_size_ratio * champion.bytes,
            f"{challenger.bytes / 1e6:.1f} MB against {champion.bytes / 1e6:.1f} MB",
            f"at most {rules.max_size_ratio:g} times",
        )
    for name, ours, theirs in further:
        if theirs is None:
            continue
        gain, _ = compare(rules.metric, ours, theirs)
        yield Criterion(
            f"{rules.metric} on {name}",
            gain.upper(chance) >= 0,
            f"{ours.metrics[rules.metric]:.4f} against {theirs.metrics[rules.metric]:.4f}",
            "not worse beyond chance",
        )


def _listed(criteria: Sequence[Criterion]) -> str:
    return "; ".join(map(str, criteria))
