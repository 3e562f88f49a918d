"""The worst mistakes of a model, as images or texts small enough for a page."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from thawline.data import printable
from thawline.reports.values import Mistake
from thawline.tracking.media import Predictions

__all__ = ["excerpt", "shown_example", "thumbnail", "worst_mistakes"]

SIDE = 160
"""Pixels of a picture on a page, each way."""
_CHARACTERS = 280
"""About six lines on a telephone."""
_MOST = 24
_JOINERS = "\u200c\u200d"
"""Seen by what they do to the letters or emoji around them; in many scripts a word is not spelt without."""


def worst_mistakes(
    predictions: Predictions, files: Sequence[str], show: Callable[[int], np.ndarray | str], *, most: int = _MOST
) -> tuple[Mistake, ...]:
    """Misclassified examples, those with the smallest probability of the true class first.

    Args:
        predictions: of ``N`` images or texts.
        files: ``[N]``, their names.
        show: gives the uint8 ``[H, W, 3]`` of an image, or a text, by its number; called only for those that are shown.
        most: how many, at most.
    """
    predicted, given = predictions.predicted, predictions.given
    wrong = np.flatnonzero(predicted != predictions.labels)
    worst = wrong[np.argsort(given[wrong], kind="stable")][:most]
    return tuple(
        Mistake(
            **shown_example(show(number)),
            file=files[number],
            label=predictions.classes[predictions.labels[number]],
            predicted=predictions.classes[predicted[number]],
            probability=float(predictions.probabilities[number].max()),
            label_probability=float(given[number]),
        )
        for number in worst.tolist()
    )


def thumbnail(pixels: np.ndarray, *, side: int = SIDE) -> bytes:
    """A picture, uint8 ``[H, W, 3]``, as JPEG of at most ``side`` pixels each way; a smaller one keeps its size."""
    from PIL import Image

    small = Image.fromarray(pixels)
    small.thumbnail((side, side))
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=80)
    return encoded.getvalue()


def excerpt(text: str, *, most: int = _CHARACTERS) -> str:
    """The beginning of a text in one line: spaces and line breaks as one space, cut with an ellipsis.

    Other control characters, also those that turn the direction of writing, are written out.

    Args:
        text: of any length, which only the part that is shown takes time for.
        most: characters, at least 1.
    """
    # Enough that something is left when runs of spaces have become one, and never a whole book.
    line = " ".join(text[: 8 * most].split())
    shown = "".join(character if character in _JOINERS else printable(character) for character in line)
    return shown if len(shown) <= most and len(text) <= 8 * most else f"{shown[: most - 1].rstrip()}…"


def shown_example(example: np.ndarray | str) -> dict[str, Any]:
    """``picture`` of an image, uint8 ``[H, W, 3]``, or ``text``, small enough for a page."""
    return {"text": excerpt(example)} if isinstance(example, str) else {"picture": thumbnail(example)}
