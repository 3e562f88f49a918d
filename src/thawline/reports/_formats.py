"""Formats of numbers and names in the report."""

import base64
from collections import Counter
from collections.abc import Sequence
from typing import Any

from thawline.data import printable
from thawline.reports.drawing import plain_rate
from thawline.reports.values import TrialPoint

__all__ = [
    "ORDER",
    "cell",
    "counted",
    "data_uri",
    "epoch_of",
    "number",
    "percent",
    "range_of",
    "rate_of",
    "share_of",
    "some",
]

ORDER = ("complete", "pruned", "paused", "running", "failed")


def counted(trials: Sequence[TrialPoint]) -> str:
    states = Counter[str](trial.state for trial in trials)
    listed = ", ".join(f"{states[state]} {state}" for state in ORDER if states[state])
    return f"{some(len(trials))}{f' ({listed})' if listed else ''}"


def some(trials: int) -> str:
    return f"{trials} trial{'' if trials == 1 else 's'}"


def epoch_of(trial: TrialPoint) -> str:
    if trial.best_epoch is None or trial.epochs is None or trial.is_probe:
        return ""
    return f"epoch {trial.best_epoch} of {trial.epochs}"


def data_uri(picture: bytes) -> str:
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def percent(share: float) -> str:
    return f"{share:.0%}"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def rate_of(trial: TrialPoint) -> str:
    return "probe" if trial.learning_rate is None else plain_rate(trial.learning_rate)


def share_of(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"


def range_of(low: Any, high: Any) -> str:
    return "-" if low is None else f"{low:.3f} to {high:.3f}"


def cell(value: str | int | float | None) -> str:
    return "-" if value is None else f"{value:.2g}" if isinstance(value, float) else printable(str(value))
