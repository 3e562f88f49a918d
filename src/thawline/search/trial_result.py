"""A trial's result, name and folder. Does not import torch, so that it loads fast."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from thawline.training import Hyperparameters

__all__ = ["TrialEnding", "TrialResult", "trial_folder", "trial_name"]

TrialEnding = Literal["complete", "pruned", "failed", "paused"]
"""How a trial left its process. A paused trial may be resumed; otherwise it ends as pruned."""


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial."""

    number: int
    state: TrialEnding
    value: float | None
    """Best validation value of the study's metric; ``None`` if no epoch was finished."""
    best_epoch: int | None
    epochs: int
    """Number of trained epochs, over all restarts."""
    seconds: float
    """Wall time of the process that ended the trial, and of earlier ones in which it was paused."""
    reason: str
    """Why it ended before its last epoch, or failed; empty otherwise."""
    run_id: str | None
    """Id of its MLflow run; ``None`` if the tracking server was never reached."""
    checkpoint: str | None
    """File of the best checkpoint, relative to Thawline's home."""
    memory_bytes: int | None = None
    """Peak memory of its tensors on the GPU; ``None`` on a CPU, where it is not measured."""
    unsent: int = 0
    """Number of records that could not be sent to the tracking server and are kept in Thawline's home."""
    unkept: str = ""
    """What was lost, and why: checkpoints that are not on disk, or records that could not be delivered; else empty."""

    @property
    def ending(self) -> str:
        """State and reason in words, such as ``pruned after epoch 2`` or ``failed: out of memory``."""
        if not self.reason or self.reason.startswith(self.state):
            return self.reason or self.state
        return f"{self.state}: {self.reason}"

    @classmethod
    def without_result(
        cls, number: int, *, reason: str, epochs: int = 0, seconds: float = 0.0, run_id: str | None = None
    ) -> "TrialResult":
        """The result of a trial whose process died without reporting."""
        return cls(number, "failed", None, None, epochs, seconds, reason, run_id, None)


def trial_name(number: int, hyperparameters: Hyperparameters) -> str:
    """``trial-07 depth=3 lr=1.2e-3``, or ``trial-00 linear probe``, as shown in Prefect, MLflow and logs."""
    if hyperparameters.is_probe:
        return f"trial-{number:02d} linear probe"
    mantissa, _, exponent = f"{hyperparameters.learning_rate:.1e}".partition("e")
    return f"trial-{number:02d} depth={hyperparameters.freeze_depth} lr={mantissa}e{int(exponent)}"


def trial_folder(home: Path, study: str, number: int) -> Path:
    """Where a trial's checkpoints are stored."""
    return home / "studies" / study / f"trial-{number:03d}"
