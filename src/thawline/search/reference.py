"""A package's reference for detecting unknown items: features of training examples, and a threshold."""

from pathlib import Path

import numpy as np

from thawline.backbones import Backbone, Preprocessing
from thawline.registry import Reference, fit_reference, reference_rows
from thawline.training import Runtime, head_features, open_inputs

__all__ = ["make_reference"]

_FITTED = 2000
"""Maximum number of validation examples for choosing the threshold: with this many, chance moves the share of false
alarms by half a point."""


def make_reference(
    backbone: Backbone,
    data: Path,
    preprocessing: Preprocessing | None,
    runtime: Runtime,
    *,
    false_alarms: float,
    batch_size: int,
    folder: Path,
) -> Reference:
    """Compute the features of some training and validation examples, without augmentation.

    Args:
        backbone: the trained network.
        data: file of the decoded images, or of the tokenized texts.
        preprocessing: preprocessing of images; ``None`` for texts.
        runtime: device and precision.
        false_alarms: share of validation examples that may be called unknown.
        batch_size: examples per batch.
        folder: folder for features that do not fit in memory.
    """
    train, validation = (open_inputs(data, split, preprocessing, runtime) for split in ("train", "validation"))
    fitted = np.unique(np.linspace(0, len(validation) - 1, _FITTED, dtype=np.int64))
    known, others = (
        head_features(backbone, inputs, runtime, batch_size, folder, rows=rows).values
        for inputs, rows in ((train, reference_rows(train.labels)), (validation, fitted))
    )
    return fit_reference(known, others, head=backbone.head.name, false_alarms=false_alarms)
