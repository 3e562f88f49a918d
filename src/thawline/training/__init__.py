"""Fine-tuning one backbone, frozen to one depth."""

from thawline.training.checkpoint import Checkpoint, CheckpointFolder, load_model
from thawline.training.checkpoint import load as load_checkpoint
from thawline.training.hyperparameters import Hyperparameters
from thawline.training.loop import Decision, EpochResult, FitResult, LabelledImages, fit, predict
from thawline.training.metrics import METRIC_DIRECTIONS, classification_metrics, per_class_recall
from thawline.training.runtime import Runtime, is_out_of_memory, runtime_for, set_up_process

__all__ = [
    "METRIC_DIRECTIONS",
    "Checkpoint",
    "CheckpointFolder",
    "Decision",
    "EpochResult",
    "FitResult",
    "Hyperparameters",
    "LabelledImages",
    "Runtime",
    "classification_metrics",
    "fit",
    "is_out_of_memory",
    "load_checkpoint",
    "load_model",
    "per_class_recall",
    "predict",
    "runtime_for",
    "set_up_process",
]
