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
"""Maximum width and height of an image on a page (pixels)."""
_CHARACTERS = 280
"""About six lines on a phone."""
_MOST = 24
_JOINERS = "\u200c\u200d"
"""Invisible, but they change the letters or emoji around them; spelling in many scripts needs them."""


def worst_mistakes(
    predictions: Predictions, files: Sequence[str], show: Callable[[int], np.ndarray | str], *, most: int = _MOST
) -> tuple[Mistake, ...]:
    """Misclassified examples, those with the smallest probability of the true class first.

    Args:
        predictions: predictions for ``N`` images or texts.
        files: ``[N]``, their names.
        show: returns an image as uint8 ``[H, W, 3]``, or a text, by number; called only for the examples shown.
        most: maximum number of examples.
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
    """The beginning of a text on one line: white space collapsed, cut with an ellipsis.

    Other control characters, including those that change the writing direction, are escaped.

    Args:
        text: any length; only the beginning is processed.
        most: characters, at least 1.
    """
    # Enough to leave some text after collapsing white space, and never a whole book.
    line = " ".join(text[: 8 * most].split())
    shown = "".join(character if character in _JOINERS else printable(character) for character in line)
    return shown if len(shown) <= most and len(text) <= 8 * most else f"{shown[: most - 1].rstrip()}…"


def shown_example(example: np.ndarray | str) -> dict[str, Any]:
    """``picture`` for an image, uint8 ``[H, W, 3]``, or ``text``, small enough for a page."""
    return {"text": excerpt(example)} if isinstance(example, str) else {"picture": thumbnail(example)}
