"""When a search that only time limits ends before its time: when its trials bring nothing new."""

from thawline.search.events import Note, emit
from thawline.search.study import Study

__all__ = ["MOST_FRUITLESS", "Fruitless"]

MOST_FRUITLESS = 10
"""Trials in a row without anything new after which no other is drawn: a number of trials would have bounded them."""


class Fruitless:
    """The trials of this run that failed, or that repeated hyperparameters that were tried before.

    Trials of earlier runs do not count: whoever resumes a search whose trials failed has removed the cause.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._since = study.drawn()
        self._ended = False

    def ends(self) -> bool:
        """Whether the latest trials of this run brought nothing new; says so once, in the log."""
        if not self._ended and self._in_a_row() >= MOST_FRUITLESS:
            self._ended = True
            emit(
                Note(
                    f"no further trial starts, though there is time left: the latest {MOST_FRUITLESS} trials failed "
                    "or repeated what had been tried. Remove the cause of the failures, or open more of the space.",
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
