"""From a trained network to a served champion: packaging, the gate, and MLflow's model registry."""

from thawline.registry.gate import Outcome, Verdict, decide
from thawline.registry.mlflow import (
    CHALLENGER,
    CHAMPION,
    MlflowRegistry,
    ModelName,
    PackagedModel,
    Prediction,
    parse_model,
)
from thawline.registry.packaging import log_packaged_model, package
from thawline.registry.promotion import PromotionOutcome, Scores, promote_if_better, score

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "MlflowRegistry",
    "ModelName",
    "Outcome",
    "PackagedModel",
    "Prediction",
    "PromotionOutcome",
    "Scores",
    "Verdict",
    "decide",
    "log_packaged_model",
    "package",
    "parse_model",
    "promote_if_better",
    "score",
]
