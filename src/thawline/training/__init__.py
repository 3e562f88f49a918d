"""Fine-tuning one backbone, frozen to one depth."""

from thawline.training.augmentation import Augmentation, check_augmentation
from thawline.training.checkpoint import Checkpoint, CheckpointFolder, load_model
from thawline.training.checkpoint import load as load_checkpoint
from thawline.training.heads import SHARED_BY_HEADS, HeadTrial, fit_heads
from thawline.training.hyperparameters import Hyperparameters
from thawline.training.inputs import ImageInputs, Inputs, TextInputs, batches, evaluation_order, open_inputs, padded
from thawline.training.loop import class_weights, fit, predict
from thawline.training.metrics import METRIC_DIRECTIONS, classification_metrics, confusion, per_class_scores, sign_of
from thawline.training.mixing import depths_without_places
from thawline.training.observation import Observation, Observer
from thawline.training.probe import (
    PENALTIES,
    Features,
    Probe,
    Probes,
    features_at,
    fit_probes,
    head_features,
    keep_probe,
    probes_of_head,
    softened,
)
from thawline.training.results import Decision, EpochResult, FitResult, Interrupted
from thawline.training.runtime import (
    Runtime,
    forget_peak_memory,
    is_out_of_memory,
    peak_memory,
    runtime_for,
    set_up_process,
)
from thawline.training.thawing import Thawing

__all__ = [
    "METRIC_DIRECTIONS",
    "PENALTIES",
    "SHARED_BY_HEADS",
    "Augmentation",
    "Checkpoint",
    "CheckpointFolder",
    "Decision",
    "EpochResult",
    "Features",
    "FitResult",
    "HeadTrial",
    "Hyperparameters",
    "ImageInputs",
    "Inputs",
    "Interrupted",
    "Observation",
    "Observer",
    "Probe",
    "Probes",
    "Runtime",
    "TextInputs",
    "Thawing",
    "batches",
    "check_augmentation",
    "class_weights",
    "classification_metrics",
    "confusion",
    "depths_without_places",
    "evaluation_order",
    "features_at",
    "fit",
    "fit_heads",
    "fit_probes",
    "forget_peak_memory",
    "head_features",
    "is_out_of_memory",
    "keep_probe",
    "load_checkpoint",
    "load_model",
    "open_inputs",
    "padded",
    "peak_memory",
    "per_class_scores",
    "predict",
    "probes_of_head",
    "runtime_for",
    "set_up_process",
    "sign_of",
    "softened",
]
