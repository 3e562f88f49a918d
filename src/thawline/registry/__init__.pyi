from .baselines import Baselines, majority_class
from .calibration import Calibration, calibrate
from .exports import check_exports, described, exported_classifier, graphs_of, write_onnx
from .gate import Criterion, Outcome, Verdict, decide
from .mlflow import MlflowRegistry, check_kind
from .names import (
    CHALLENGER,
    CHAMPION,
    ModelInput,
    ModelName,
    check_text_column,
    parse_model,
)
from .packaged import PackagedModel, Prediction
from .packaging import log_packaged_model, package
from .prediction_sets import PredictionSets, fit_prediction_sets
from .promotion import (
    LabelledData,
    PromotionOutcome,
    force,
    judge,
    record,
    register_challenger,
    roll_back,
    settle,
)
from .quantising import quantise
from .reigns import Reign
from .scores import Scores, score
from .shadowed import Shadowed, read_shadow

__all__ = [
    "CHALLENGER",
    "CHAMPION",
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
    "force",
    "graphs_of",
    "judge",
    "log_packaged_model",
    "majority_class",
    "package",
    "parse_model",
    "quantise",
    "read_shadow",
    "record",
    "register_challenger",
    "roll_back",
    "score",
    "settle",
    "write_onnx",
]
