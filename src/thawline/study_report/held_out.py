"""The packaged model's predictions on the test split."""

from dataclasses import dataclass

import numpy as np

from thawline.data import DecodedImages, StreamedImages, as_text, texts_of
from thawline.search import Prepared, SearchOutcome, TrialRecord
from thawline.tracking.media import Predictions

__all__ = ["HeldOut", "held_out"]


@dataclass(frozen=True)
class HeldOut:
    """The held-out examples, and the packaged model's predictions."""

    files: list[str]
    examples: np.ndarray | StreamedImages | list[str]
    """uint8 images ``[N, S, S, 3]``, or texts."""
    predictions: Predictions


def held_out(prepared: Prepared, outcome: SearchOutcome, best: TrialRecord) -> HeldOut:
    """The packaged model's predictions, as scored for the promotion."""
    scores, rows = outcome.promotion.challenger, prepared.manifest.of("test")
    numbers = {name: number for number, name in enumerate(scores.classes)}
    labels = np.array([numbers[label] for label in scores.labels])
    examples = (
        texts_of(prepared.manifest, rows)
        if prepared.manifest.kind == "texts"
        else DecodedImages.open(prepared.inputs[best.hyperparameters.backbone]).split("test")[0]
    )
    return HeldOut(
        [as_text(row.path) for row in rows], examples, Predictions(labels, scores.probabilities, scores.classes)
    )
