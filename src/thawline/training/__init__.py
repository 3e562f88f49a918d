"""Fine-tuning one backbone, frozen to one depth."""

from thawline.training.augmentation import Augmentation
from thawline.training.checkpoint import Checkpoint, CheckpointFolder, load_model
from thawline.training.checkpoint import load as load_checkpoint
from thawline.training.heads import HeadTrial, fit_heads
from thawline.training.hyperparameters import Hyperparameters
from thawline.training.inputs import ImageInputs, Inputs, batches
from thawline.training.loop import fit, predict
from thawline.training.metrics import METRIC_DIRECTIONS, classification_metrics, per_class_recall
from thawline.training.results import Decision, EpochResult, FitResult, Interrupted
from thawline.training.runtime import Runtime, is_out_of_memory, runtime_for, set_up_process

__all__ = [
    "METRIC_DIRECTIONS",
    "Augmentation",
    "Checkpoint",
    "CheckpointFolder",
    "Decision",
    "EpochResult",
    "FitResult",
    "HeadTrial",
    "Hyperparameters",
    "ImageInputs",
    "Inputs",
    "Interrupted",
    "Runtime",
    "batches",
    "classification_metrics",
    "fit",
    "fit_heads",
    "is_out_of_memory",
    "load_checkpoint",
    "load_model",
    "per_class_recall",
    "predict",
    "runtime_for",
    "set_up_process",
]
