"""The epochs of a training so far, and its checkpoints."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from thawline.backbones import Backbone
from thawline.config import NOT_COMPARED, TrainConfig
from thawline.exceptions import CheckpointError, TrainingError
from thawline.training.checkpoint import Checkpoint, CheckpointFolder, Stepper, pack_model, pack_optimizer
from thawline.training.hyperparameters import Hyperparameters
from thawline.training.results import Decision, EpochResult, FitResult, best_epoch
from thawline.training.runtime import Runtime, random_states

__all__ = ["History", "check_finite", "fingerprint_of"]


@dataclass
class History:
    """The epochs of one training so far, and its checkpoints."""

    checkpoints: CheckpointFolder
    fingerprint: dict[str, Any]
    """See :func:`fingerprint_of`."""
    metric: str
    """Validation metric that decides which epoch is best, a key of ``METRIC_DIRECTIONS``."""
    epochs: list[EpochResult] = field(default_factory=list)

    def resume(self) -> Checkpoint | None:
        """Load the epochs of the last checkpoint, and return it; ``None`` if there is none.

        Raises:
            CheckpointError: if it has another configuration.
        """
        checkpoint = self.checkpoints.last()
        if checkpoint is None:
            return None
        if checkpoint.state["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"{self.checkpoints.path} has checkpoints of another configuration. "
                "Give the study another name, or remove that folder."
            )
        self.epochs = [EpochResult(**entry) for entry in checkpoint.state["history"]]
        return checkpoint

    def within(self) -> Checkpoint | None:
        """The saved state of the next epoch; ``None`` without one, or if its configuration differs."""
        checkpoint = self.checkpoints.within(len(self.epochs))
        return checkpoint if checkpoint is not None and checkpoint.state["fingerprint"] == self.fingerprint else None

    def checkpoint(
        self,
        backbone: Backbone,
        stepper: Stepper | None,
        runtime: Runtime,
        *,
        trained: Mapping[str, Tensor] | None = None,
        within: dict[str, float] | None = None,
    ) -> Checkpoint:
        """A checkpoint after the last epoch, or, with ``within``, in the middle of the next one.

        If the backbone currently has averaged weights, ``trained`` are the optimizer's. Without a stepper, the
        checkpoint cannot be resumed.
        """
        tensors, plain = pack_optimizer(stepper) if stepper is not None else ({}, {})
        depth = self.fingerprint["hyperparameters"]["freeze_depth"]
        last = self.epochs[-1].metrics if self.epochs else None
        state = plain | {
            "fingerprint": self.fingerprint,
            "freeze_depth": depth,
            "weights_digest": backbone.weights_digest,
            "value": last[f"val/{self.metric}"] if last else None,
            "loss": last["train/loss"] if last else None,
            "history": [asdict(result) for result in self.epochs],
            "within": within,
        }
        # Everything that the trial may thaw, so that it can be loaded over any of its epochs.
        model = pack_model(backbone, depth)
        return Checkpoint(len(self.epochs), model, tensors, random_states(runtime.device), state, dict(trained or {}))

    def result(self, decision: Decision, *, stopped_early: bool = False) -> FitResult:
        """The result of the training."""
        best = best_epoch(self.epochs, self.metric)
        value = best.metrics[f"val/{self.metric}"]
        return FitResult(decision, value, best.epoch, tuple(self.epochs), stopped_early)


def check_finite(loss: float, epoch: int, optimizer: Optimizer, *, of: str = "training") -> None:
    """Raise if a loss is not finite.

    Raises:
        TrainingError: with the settings to change.
    """
    if not math.isfinite(loss):
        rate = max(group["initial_lr"] for group in optimizer.param_groups)
        raise TrainingError(
            f"The {of} loss became {loss} in epoch {epoch + 1} at learning rate {rate:.2g}. "
            "Lower the upper end of space.learning_rate, or set train.gradient_clip."
        )


def fingerprint_of(hyperparameters: Hyperparameters, config: TrainConfig, seed: int) -> dict[str, Any]:
    """The settings that must match for a checkpoint to be resumed."""
    train = config.model_dump(mode="json", exclude=NOT_COMPARED)  # may differ, for example on another machine
    return {"hyperparameters": hyperparameters.as_dict(), "train": train, "seed": seed}
