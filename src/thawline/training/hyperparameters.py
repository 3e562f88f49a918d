"""What a trial is told apart by."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Hyperparameters"]


@dataclass(frozen=True)
class Hyperparameters:
    """What Optuna sampled, completed by the configuration's values for what the search space leaves fixed."""

    backbone: str
    freeze_depth: int
    """Layer groups frozen, counted from the input; the number of layer groups trains the head alone."""
    learning_rate: float
    weight_decay: float
    head_learning_rate_factor: float
    optimizer: Literal["adamw", "sgd"]

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, in the order of declaration."""
        return asdict(self)
