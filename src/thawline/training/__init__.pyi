from .augmentation import Augmentation, check_augmentation
from .checkpoint import Checkpoint, CheckpointFolder, load_checkpoint, load_model
from .directions import METRIC_DIRECTIONS, sign_of
from .evaluation import predict
from .heads import SHARED_BY_HEADS, HeadTrial, fit_heads
from .hyperparameters import Hyperparameters
from .inputs import ImageInputs, Inputs, TextInputs, batches, evaluation_order, open_inputs, padded
from .loop import class_weights, fit
from .metrics import classification_metrics, confusion, per_class_scores
from .mixing import depths_without_places
from .observation import Observation, Observer
from .probe import (
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
from .results import Decision, EpochResult, FitResult, Interrupted
from .runtime import (
    Runtime,
    forget_peak_memory,
    is_device_lost,
    is_out_of_memory,
    peak_memory,
    runtime_for,
    set_up_process,
)
from .thawing import Thawing

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
    "is_device_lost",
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
