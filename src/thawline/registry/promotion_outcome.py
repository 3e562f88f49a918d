"""The outcome of a challenger's comparison, as JSON and as a page."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from thawline.data import DataKind, markdown_text
from thawline.registry.baselines import Baselines
from thawline.registry.gate import Outcome, Verdict
from thawline.registry.scores import Scores
from thawline.registry.shadowed import Shadowed

__all__ = ["PromotionOutcome"]


@dataclass(frozen=True)
class PromotionOutcome:
    """A decision and its evidence."""

    name: str
    version: str
    """Version of the challenger."""
    verdict: Verdict
    challenger: Scores
    champion_version: str | None
    """Version of the champion that the challenger was compared with."""
    champion: Scores | None
    """Measured now on the same items; ``None`` if there was no champion, or if it could not be scored."""
    run_id: str = ""
    """The run that trained the challenger."""
    calibration: Mapping[str, Any] | None = None
    """Calibration of the challenger's package: temperature, and calibration error on validation before and after."""
    majority: Scores | None = None
    """Scores of the majority class of the training split on the same items."""
    baselines: Baselines | None = None
    """Baselines of the study, on validation; ``None`` if a version is judged without its study."""
    shadowed: Shadowed | None = None
    """Counts of a server in shadow mode, if requested; they do not affect the decision."""

    def declined(self, reason: str) -> "PromotionOutcome":
        """The same after a person declined it."""
        return replace(self, verdict=replace(self.verdict, outcome=Outcome.HOLD, reason=reason))

    def agreed(self, note: str) -> "PromotionOutcome":
        """The same after a person approved it."""
        return replace(self, verdict=replace(self.verdict, reason=f"{self.verdict.reason}; a person approved{note}"))

    def as_dict(self) -> dict[str, Any]:
        """The evidence as JSON."""
        return {
            "model": self.name,
            "version": self.version,
            "judged_against": self.champion_version,
            **self.verdict.as_dict(),
            self.challenger.kind: len(self.challenger.labels),
            "challenger": self.challenger.metrics,
            "challenger_recall": self.challenger.recalls,
            "champion": self.champion.metrics if self.champion else None,
            "champion_recall": self.champion.recalls if self.champion else None,
            "majority_class": self.majority.metrics if self.majority else None,
            "validation": self.baselines.as_dict() if self.baselines else None,
            "calibration": self.calibration,
            "shadow": self.shadowed.as_dict() if self.shadowed else None,
        }

    @property
    def is_champion(self) -> bool:
        """Whether the version already was the champion, so that there was nothing to decide."""
        return self.champion_version == self.version

    def _against(self) -> str:
        if self.is_champion:
            return "is the champion"
        against = f"version {self.champion_version}" if self.champion_version else "no champion"
        return f"against {against}: {self.verdict.outcome.value}"

    def as_markdown(self) -> str:
        """The evidence as a page."""
        parts = [
            f"# {self.name} version {self.version} {self._against()}",
            f"{markdown_text(self.verdict.reason)}.",
            self.verdict.as_markdown() if self.verdict.criteria else "",
            f"{self.baselines.sentence()}." if self.baselines else "",
            f"{markdown_text(self.shadowed.sentence())}." if self.shadowed else "",
            f"## On {len(self.challenger.labels)} test {self.challenger.kind}",
            _table(
                "metric",
                challenger=self.challenger.metrics,
                champion=self.champion.metrics if self.champion else {},
                majority_class=self.majority.metrics if self.majority else {},
            ),
            "## Recall",
            _table(
                "class",
                challenger=self.challenger.recalls,
                champion=self.champion.recalls if self.champion else {},
            ),
        ]
        if self.calibration:
            parts += ["## Calibration", _calibration_text(self.calibration, self.challenger.kind)]
        return "\n\n".join(part for part in parts if part) + "\n"


def _table(what: str, **columns: Mapping[str, float]) -> str:
    """A row for each name in the first column; the other columns may lack it."""
    header = " | ".join([what, *(name.replace("_", " ") for name in columns)])
    rows = [
        " | ".join(
            [markdown_text(name), *(f"{values[name]:.4f}" if name in values else "" for values in columns.values())]
        )
        for name in next(iter(columns.values()))
    ]
    return "\n".join([f"| {header} |", f"|{'---|' * (len(columns) + 1)}", *(f"| {row} |" for row in rows)])


def _calibration_text(calibration: Mapping[str, Any], kind: DataKind) -> str:
    rows = [f"| {row['confidence']} | {row['before']} | {row['after']} |" for row in calibration.get("reliability", ())]
    table = [f"| probability | correct before, of {kind} | correct after, of {kind} |", "|---|---|---|", *rows]
    return f"{_calibration_sentence(calibration, kind)}\n\n" + "\n".join(table)


def _calibration_sentence(calibration: Mapping[str, Any], kind: DataKind) -> str:
    items, temperature = calibration["items"], calibration["temperature"]
    errors = f"{calibration['error_before']:.4f} before, {calibration['error_after']:.4f} after"
    if "helps" not in calibration:  # an older package: measured on the items that the temperature was fitted on
        return f"Logits are divided by {temperature:.3f}, fitted on the {items} validation {kind}: {errors}."
    losses = f"loss {calibration['loss_before']:.4f} before, {calibration['loss_after']:.4f} after"
    on_folds = f"on held-out folds of the {items} validation {kind}: {losses}; calibration error {errors}"
    if calibration["helps"]:
        return f"Logits are divided by {temperature:.3f}, which helps {on_folds}."
    if calibration["error_before"] == calibration["error_after"]:
        return f"Not calibrated: {items} validation {kind} are too few to fit a temperature."
    return f"Not calibrated, because a fitted temperature does not help {on_folds}."
