"""Select trials of a large study to fit a Gaussian process to, as its time grows with the cube of their number."""

from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["best_and_latest"]

_T = TypeVar("_T")


def best_and_latest(trials: Sequence[_T], most: int, value: Callable[[_T], float]) -> list[_T]:
    """All trials, or, if there are more than ``most``, the best and the latest, half of each, in the order given.

    Args:
        trials: in the order of their numbers.
        most: maximum number, even.
        value: returns a trial's value; larger is better.
    """
    if len(trials) <= most:
        return list(trials)
    latest = len(trials) - most // 2
    best = sorted(range(latest), key=lambda place: -value(trials[place]))[: most // 2]
    return [trials[place] for place in (*sorted(best), *range(latest, len(trials)))]
