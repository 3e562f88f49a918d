"""End a search that only has a time limit early if its trials bring nothing new."""

from thawline.search.events import Note, emit
from thawline.search.study import Study

__all__ = ["MOST_FRUITLESS", "Fruitless"]

MOST_FRUITLESS = 10
"""Consecutive trials without anything new after which no more are drawn, as there is no limit on their number."""


class Fruitless:
    """The trials of this run that failed or repeated hyperparameters tried before.

    Trials of earlier runs do not count: a resumed search is assumed to have the cause of the failures removed.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._since = study.drawn()
        self._ended = False

    def ends(self) -> bool:
        """Whether the latest trials of this run brought nothing new; logged once."""
        if not self._ended and self._in_a_row() >= MOST_FRUITLESS:
            self._ended = True
            emit(
                Note(
                    f"no further trial starts, although there is time left: the latest {MOST_FRUITLESS} trials failed "
                    "or repeated earlier ones. Remove the cause of the failures, or open more of the space.",
                    "warning",
                )
            )
        return self._ended

    def _in_a_row(self) -> int:
        seen, in_a_row = set(), 0
        for record in sorted(self._study.records(), key=lambda record: record.number):
            if not record.ended:
                continue
            brings_nothing = record.state == "failed" or record.hyperparameters in seen
            seen.add(record.hyperparameters)
            if record.number >= self._since:
                in_a_row = in_a_row + 1 if brings_nothing else 0
        return in_a_row
