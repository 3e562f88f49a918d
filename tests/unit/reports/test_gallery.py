"""The gallery: the worst first, small, and nothing is decoded that is not shown."""

import io

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from thawline.reports import Mistake, excerpt, thumbnail, worst_mistakes
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


def test_a_mistaken_text_is_shown_by_its_beginning_and_has_no_picture() -> None:
    predictions = Predictions(np.array([0, 1]), np.array([[0.9, 0.1], [0.6, 0.4]]), ("ham", "spam"))
    texts = ["never asked for", "  Free!\r\n\tCall   now " + "and again " * 100]
    (mistake,) = worst_mistakes(predictions, ["sms.tsv:1", "sms.tsv:2"], texts.__getitem__)
    assert mistake.picture is None
    assert mistake.text is not None
    assert mistake.text.startswith("Free! Call now and again")
    assert mistake.text.endswith("…")
    assert len(mistake.text) <= 280
    assert (mistake.file, mistake.label, mistake.predicted) == ("sms.tsv:2", "spam", "ham")


def test_a_short_text_is_whole_and_what_would_turn_or_break_the_line_is_written_out() -> None:
    assert excerpt("See you\nat 8") == "See you at 8"
    assert excerpt("abc", most=3) == "abc"
    assert excerpt("abcd", most=3) == "ab…"
    assert excerpt("字" * 50, most=10) == "字" * 9 + "…", "a script without spaces is cut too"
    assert excerpt("a\u202eb\x1b[31m\x00") == "a\\u202eb\\x1b[31m\\x00"
    assert excerpt("می‌خواهم 👨‍👩‍👧") == "می‌خواهم 👨‍👩‍👧"
    assert excerpt(" \n" * 5000 + "end", most=20) == "…"


@pytest.mark.parametrize("shown", [{}, {"picture": b"x", "text": "x"}])
def test_a_mistake_holds_a_picture_or_a_text(shown: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="either a picture or a text"):
        Mistake(file="1", label="a", predicted="b", probability=0.9, label_probability=0.1, **shown)
