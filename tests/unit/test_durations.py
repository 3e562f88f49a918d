"""Durations are worded the same everywhere."""

import pytest

from thawline.durations import clock, roughly


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "1 s"), (89.4, "89 s"), (90, "2 min"), (89 * 60, "89 min"), (90 * 60, "1.5 h"), (36_000, "10.0 h")],
)
def test_an_estimate_has_one_unit(seconds: float, words: str) -> None:
    assert roughly(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.6, "1 min 0 s"), (75, "1 min 15 s"), (3600, "1 h 0 min"), (5430, "1 h 30 min")],
)
def test_a_clock_tells_two_units(seconds: float, words: str) -> None:
    assert clock(seconds) == words
