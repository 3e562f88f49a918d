from .baselines import Baselines, majority_class
from .calibration import Calibration, calibrate
from .exports import check_exports, described, exported_classifier, graphs_of, graphs_tried, write_onnx
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
    force,
    judge,
    record,
    register_challenger,
    roll_back,
    settle,
)
from .promotion_outcome import PromotionOutcome
from .quantising import quantise
from .reigns import Reign
from .scores import Scores, score
from .servable import Answer
from .shadowed import Shadowed, read_shadow
from .unknown import Reference, fit_reference, reference_rows

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
    "graphs_of",
    "graphs_tried",
    "judge",
    "log_packaged_model",
    "majority_class",
    "package",
    "parse_model",
    "quantise",
    "read_shadow",
    "record",
    "reference_rows",
    "register_challenger",
    "roll_back",
    "score",
    "settle",
    "write_onnx",
]
