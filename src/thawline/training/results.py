"""What epochs and trainings come to, and the checkpoint that keeps it."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from thawline.backbones import Backbone
from thawline.config import TrainConfig
from thawline.exceptions import TrainingError
from thawline.training.checkpoint import Checkpoint, pack_model, pack_optimizer
from thawline.training.hyperparameters import Hyperparameters
from thawline.training.metrics import sign_of
from thawline.training.runtime import Runtime, random_states

__all__ = [
    "Decision",
    "EpochResult",
    "FitResult",
    "Interrupted",
    "check_finite",
    "checkpoint_of",
    "epoch_result",
    "fingerprint_of",
    "fit_result",
    "no_longer_improves",
]


class Decision(Enum):
    """The caller's answer to an epoch's result."""

    CONTINUE = "continue"
    PRUNE = "prune"
    STOP = "stop"


@dataclass(frozen=True)
class EpochResult:
    """What one epoch brought."""

    epoch: int
    """Epochs finished, from 1."""
    metrics: dict[str, float]
    """``train/loss``, ``val/accuracy``, …; rates, times and norms too."""
    finished_at: int
    """Milliseconds since 1970; kept over a resume, so that a record sent twice is the same record."""


@dataclass(frozen=True)
class FitResult:
    """What training came to."""

    decision: Decision
    """CONTINUE if all epochs were trained (or training stopped improving), else why it ended early."""
    value: float
    """Best validation value of the chosen metric."""
    best_epoch: int
    history: tuple[EpochResult, ...]
    """All epochs, those before a resume included."""
    stopped_early: bool
    """Whether early stopping ended it."""


class Interrupted(Exception):
    """Training was asked to leave. What it reached is in its checkpoints, and the same call goes on from there."""


def check_finite(loss: float, epoch: int, optimizer: Optimizer, *, of: str = "training") -> None:
    """Refuse to go on with a loss that is not finite, and to judge weights by one.

    Raises:
        TrainingError: saying what to change.
    """
    if not math.isfinite(loss):
        rate = max(group["initial_lr"] for group in optimizer.param_groups)
        raise TrainingError(
            f"The {of} loss became {loss} in epoch {epoch + 1} at learning rate {rate:.2g}. "
            "Lower the upper end of space.learning_rate, or set train.gradient_clip."
        )


def epoch_result(
    epoch: int,
    training: dict[str, float],
    validation: dict[str, float],
    freeze_depth: int,
    learning_rate: float,
    rows: int,
    training_seconds: float,
    started: float,
) -> EpochResult:
    """What one epoch (from 0) brought.

    The learning rate is the head's when the epoch began; ``started`` is in seconds of :func:`time.perf_counter`.
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


def fit_result(decision: Decision, history: list[EpochResult], metric: str, stopped_early: bool) -> FitResult:
    """Sum up a training."""
    best = _best(history, metric)
    return FitResult(decision, best.metrics[f"val/{metric}"], best.epoch, tuple(history), stopped_early)


def _best(history: Sequence[EpochResult], metric: str) -> EpochResult:
    """The epoch with the best validation value, the first of equals."""
    sign = sign_of(metric)
    return max(history, key=lambda result: sign * result.metrics[f"val/{metric}"])


def no_longer_improves(history: Sequence[EpochResult], metric: str, patience: int | None, *, since: int = 0) -> bool:
    """Whether the best value is ``patience`` epochs old, counted from epoch ``since`` at the earliest.

    Never without a patience.
    """
    if patience is None or not history:
        return False
    return history[-1].epoch - max(since, _best(history, metric).epoch) >= patience


def fingerprint_of(hyperparameters: Hyperparameters, config: TrainConfig, seed: int) -> dict[str, Any]:
    """What a checkpoint must have been made with to be gone on with."""
    train = config.model_dump(mode="json", exclude={"device", "keep_checkpoints"})  # it may go on elsewhere
    return {"hyperparameters": hyperparameters.as_dict(), "train": train, "seed": seed}


def checkpoint_of(
    backbone: Backbone,
    optimizer: Optimizer,
    schedule: LambdaLR,
    scaler: GradScaler,
    runtime: Runtime,
    fingerprint: dict[str, Any],
    history: list[EpochResult],
    metric: str,
    within: dict[str, float] | None = None,
    trained: Mapping[str, Tensor] | None = None,
) -> Checkpoint:
    """Everything to go on from after the last epoch of ``history``; with ``within``, from the middle of the next.

    If the backbone has averaged weights now, ``trained`` are those that the optimizer goes on from.
    """
    tensors, plain = pack_optimizer(optimizer, schedule, scaler)
    depth = fingerprint["hyperparameters"]["freeze_depth"]
    state = plain | {
        "fingerprint": fingerprint,
        "freeze_depth": depth,
        "weights_digest": backbone.weights_digest,
        "value": history[-1].metrics[f"val/{metric}"] if history else None,
        "loss": history[-1].metrics["train/loss"] if history else None,
        "history": [asdict(result) for result in history],
        "within": within,
    }
    # All that the trial may thaw, whatever is thawed by now: it can be loaded over the weights of any of its epochs.
    model = pack_model(backbone, depth)
    return Checkpoint(len(history), model, tensors, random_states(runtime.device), state, dict(trained or {}))
