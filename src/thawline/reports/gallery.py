"""The images that a model gets most wrong, small enough for a page."""

import io
from collections.abc import Callable, Sequence

import numpy as np

from thawline.reports.values import Mistake
from thawline.tracking.media import Predictions

__all__ = ["thumbnail", "worst_mistakes"]

_SIDE = 160
_MOST = 24


def worst_mistakes(
    predictions: Predictions, files: Sequence[str], picture: Callable[[int], np.ndarray], *, most: int = _MOST
) -> tuple[Mistake, ...]:
    """Of the images that were got wrong, those whose true class was given the smallest probability, the worst first.

    Args:
        predictions: of ``N`` images.
        files: ``[N]``, their names.
        picture: gives the uint8 ``[H, W, 3]`` of an image by its number; asked only of those that are shown.
        most: how many, at most.
    """
    predicted, given = predictions.predicted, predictions.given
    wrong = np.flatnonzero(predicted != predictions.labels)
    worst = wrong[np.argsort(given[wrong], kind="stable")][:most]
    return tuple(
        Mistake(
            picture=thumbnail(picture(number)),
            file=files[number],
            label=predictions.classes[predictions.labels[number]],
            predicted=predictions.classes[predicted[number]],
            probability=float(predictions.probabilities[number].max()),
            label_probability=float(given[number]),
        )
        for number in worst.tolist()
    )


def thumbnail(pixels: np.ndarray, *, side: int = _SIDE) -> bytes:
    """A picture, uint8 ``[H, W, 3]``, as JPEG of at most ``side`` pixels each way; a smaller one keeps its size."""
    from PIL import Image

    small = Image.fromarray(pixels)
    small.thumbnail((side, side))
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=80)
    return encoded.getvalue()
