"""Results of epochs and trainings, as values."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from thawline.training.directions import sign_of

__all__ = [
    "Decision",
    "EpochResult",
    "FitResult",
    "Interrupted",
    "best_epoch",
    "epoch_result",
    "no_longer_improves",
]


class Decision(Enum):
    """The caller's decision after an epoch."""

    CONTINUE = "continue"
    PAUSE = "pause"
    """Leave now; the same call may resume from the last checkpoint."""
    PRUNE = "prune"
    STOP = "stop"


@dataclass(frozen=True)
class EpochResult:
    """The result of one epoch."""

    epoch: int
    """Number of finished epochs, from 1."""
    metrics: dict[str, float]
    """``train/loss``, ``val/accuracy``, …; also learning rates, times and norms."""
    finished_at: int
    """Milliseconds since 1970; unchanged by a resume, so that a record sent twice is the same record."""


@dataclass(frozen=True)
class FitResult:
    """The result of training."""

    decision: Decision
    """CONTINUE if all epochs were trained, or after early stopping; otherwise the decision that ended training."""
    value: float
    """Best validation value of the chosen metric."""
    best_epoch: int
    history: tuple[EpochResult, ...]
    """All epochs, including those before a resume."""
    stopped_early: bool
    """Whether early stopping ended it."""


class Interrupted(Exception):
    """Training was asked to leave. Its state is in its checkpoints, and the same call resumes from there."""


def epoch_result(
    epoch: int,
    training: dict[str, float],
    validation: dict[str, float],
    *,
    freeze_depth: int,
    learning_rate: float,
    rows: int,
    training_seconds: float,
    started: float,
) -> EpochResult:
    """The result of one epoch (from 0).

    The learning rate is the head's at the start of the epoch; ``started`` is in seconds of :func:`time.perf_counter`.
    """
    return EpochResult(
        epoch + 1,
        training
        | {f"val/{name}": value for name, value in validation.items()}
        | {
            "train/freeze_depth": float(freeze_depth),
            "train/learning_rate": learning_rate,
            "train/rows_per_second": rows / training_seconds,
            "time/epoch_seconds": time.perf_counter() - started,
        },
        time.time_ns() // 1_000_000,
    )


def best_epoch(history: Sequence[EpochResult], metric: str) -> EpochResult:
    """The epoch with the best validation value; the first among equals."""
    sign = sign_of(metric)
    return max(history, key=lambda result: sign * result.metrics[f"val/{metric}"])


def no_longer_improves(history: Sequence[EpochResult], metric: str, patience: int | None, *, since: int = 0) -> bool:
    """Whether the best value is ``patience`` epochs old, counted from epoch ``since`` at the earliest.

    Always False without a patience.
    """
    if patience is None or not history:
        return False
    return history[-1].epoch - max(since, best_epoch(history, metric).epoch) >= patience
