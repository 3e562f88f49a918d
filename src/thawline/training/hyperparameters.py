"""The hyperparameters of a trial."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from thawline.config import AugmentationKind, BatchNorm, Policy

__all__ = ["Hyperparameters", "TrialPolicy"]

TrialPolicy = Policy | Literal["probe"]
"""How a trial trains: by a thawing policy, or as a linear probe that is fitted to convergence."""


@dataclass(frozen=True)
class Hyperparameters:
    """Values sampled by Optuna, completed by the configuration's values for settings outside the search space."""

    backbone: str
    freeze_depth: int
    """Layer groups frozen, counted from the input; the number of layer groups trains the head only."""
    learning_rate: float
    """0 for a linear probe, which has none."""
    weight_decay: float
    head_learning_rate_factor: float
    optimizer: Literal["adamw", "sgd"]
    # The defaults match trials of earlier versions, whose records lack these fields.
    policy: TrialPolicy = "static"
    layer_decay: float = 1.0
    batch_norm: BatchNorm = "train_all"
    augmentation: AugmentationKind = "none"

    @property
    def is_probe(self) -> bool:
        """Whether the trial is a linear probe, fitted to convergence."""
        return self.policy == "probe"

    def as_dict(self) -> dict[str, Any]:
        """Values by name, in the order of declaration."""
        return asdict(self)
