"""The metrics that a study can optimise, and which way."""

from typing import Literal

__all__ = ["METRIC_DIRECTIONS", "sign_of"]

METRIC_DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {
    "accuracy": "maximize",
    "balanced_accuracy": "maximize",
    "macro_f1": "maximize",
    "loss": "minimize",
}
"""Every metric that a study can optimise, with Optuna's word for its better side."""


def sign_of(metric: str) -> Literal[1, -1]:
    """What to multiply a metric's values by so that the larger is the better."""
    return 1 if METRIC_DIRECTIONS[metric] == "maximize" else -1
