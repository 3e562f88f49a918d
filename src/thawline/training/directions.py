"""The metrics that a study can optimise, and their directions."""

from typing import Literal

__all__ = ["METRIC_DIRECTIONS", "sign_of"]

METRIC_DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {
    "accuracy": "maximize",
    "balanced_accuracy": "maximize",
    "macro_f1": "maximize",
    "loss": "minimize",
}
"""Every metric that a study can optimise, with Optuna's direction."""


def sign_of(metric: str) -> Literal[1, -1]:
    """Factor for a metric's values after which larger is better."""
    return 1 if METRIC_DIRECTIONS[metric] == "maximize" else -1
