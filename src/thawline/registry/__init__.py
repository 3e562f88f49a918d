"""From a trained network to a served champion: packaging, the gate, and MLflow's model registry."""

from thawline.registry.baselines import Baselines, majority_class
from thawline.registry.calibration import Calibration, calibrate
from thawline.registry.exports import check_exports, described, exported_classifier, write_onnx
from thawline.registry.gate import Criterion, Outcome, Verdict, decide
from thawline.registry.mlflow import MlflowRegistry, check_kind
from thawline.registry.names import (
    CHALLENGER,
    CHAMPION,
    ModelInput,
    ModelName,
    check_text_column,
    parse_model,
)
from thawline.registry.packaged import PackagedModel, Prediction
from thawline.registry.packaging import log_packaged_model, package
from thawline.registry.prediction_sets import PredictionSets, fit_prediction_sets
from thawline.registry.promotion import (
    LabelledData,
    PromotionOutcome,
    force,
    judge,
    record,
    register_challenger,
    roll_back,
    settle,
)
from thawline.registry.reigns import Reign
from thawline.registry.scores import Scores, score
from thawline.registry.servable import Answer
from thawline.registry.shadowed import Shadowed, read_shadow
from thawline.registry.unknown import Reference, fit_reference, reference_rows

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "Answer",
    "Baselines",
    "Calibration",
    "Criterion",
    "LabelledData",
    "MlflowRegistry",
    "ModelInput",
    "ModelName",
    "Outcome",
    "PackagedModel",
    "Prediction",
    "PredictionSets",
    "PromotionOutcome",
    "Reference",
    "Reign",
    "Scores",
    "Shadowed",
    "Verdict",
    "calibrate",
    "check_exports",
    "check_kind",
    "check_text_column",
    "decide",
    "described",
    "exported_classifier",
    "fit_prediction_sets",
    "fit_reference",
    "force",
    "judge",
    "log_packaged_model",
    "majority_class",
    "package",
    "parse_model",
    "read_shadow",
    "record",
    "reference_rows",
    "register_challenger",
    "roll_back",
    "score",
    "settle",
    "write_onnx",
]
