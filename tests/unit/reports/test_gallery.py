"""The gallery: the worst first, small, and nothing is decoded that is not shown."""

import io

import numpy as np
from PIL import Image

from thawline.reports import thumbnail, worst_mistakes
from thawline.tracking.media import Predictions


def test_the_least_expected_mistakes_come_first_and_only_their_pictures_are_asked_for() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7]])
    predictions = Predictions(np.array([0, 1, 1, 0]), probabilities, ("cat", "dog"))
    asked = []

    def picture(number: int) -> np.ndarray:
        asked.append(number)
        return np.full((20, 30, 3), 10 * number, dtype=np.uint8)

    files = ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    worst = worst_mistakes(predictions, files, picture, most=2)
    assert [(each.file, each.label, each.predicted) for each in worst] == [
        ("2.jpg", "dog", "cat"),
        ("3.jpg", "cat", "dog"),
    ]
    assert [(each.label_probability, each.probability) for each in worst] == [(0.2, 0.8), (0.3, 0.7)]
    assert asked == [2, 3]
    assert len(worst_mistakes(predictions, files, picture)) == 3


def test_thumbnails_are_small_keep_their_shape_and_are_never_blown_up() -> None:
    large = Image.open(io.BytesIO(thumbnail(np.zeros((400, 800, 3), dtype=np.uint8))))
    small = Image.open(io.BytesIO(thumbnail(np.zeros((30, 20, 3), dtype=np.uint8))))
    assert large.size == (160, 80)
    assert small.size == (20, 30)
