"""What happens during a search, as values for whoever watches: a live table, a log, a test.

Events travel as log records of the logger ``thawline.search``: their text is the plain log line, the event itself is
the record's attribute ``event``. Nobody needs to watch, and a watcher that fails stops nothing.
"""

import logging
from dataclasses import dataclass
from typing import Literal

from thawline.search.spec import TrialResult, trial_name
from thawline.training import Hyperparameters

__all__ = ["EpochEnded", "Event", "Note", "SearchStarted", "TrialEnded", "TrialStarted", "emit"]

_log = logging.getLogger("thawline.search")


@dataclass(frozen=True)
class SearchStarted:
    """The data is read and the study is open."""

    study: str
    trials: int
    finished: int
    epochs: int
    metric: str

    def __str__(self) -> str:
        already = f", {self.finished} of them done already" if self.finished else ""
        return f"study {self.study}: {self.trials} trials of up to {self.epochs} epochs{already}"


@dataclass(frozen=True)
class TrialStarted:
    """A trial's process was started."""

    number: int
    hyperparameters: Hyperparameters
    resumed: bool

    def __str__(self) -> str:
        return trial_name(self.number, self.hyperparameters) + (" goes on where it stopped" if self.resumed else "")


@dataclass(frozen=True)
class EpochEnded:
    """A trial finished an epoch."""

    number: int
    epoch: int
    epochs: int
    metric: str
    value: float
    loss: float

    def __str__(self) -> str:
        return (
            f"trial-{self.number:02d} epoch {self.epoch}/{self.epochs}: "
            f"train/loss {self.loss:.4f}, val/{self.metric} {self.value:.4f}"
        )


@dataclass(frozen=True)
class TrialEnded:
    """A trial ended, however it did."""

    result: TrialResult

    def __str__(self) -> str:
        value = "" if self.result.value is None else f", best value {self.result.value:.4f}"
        return f"trial-{self.result.number:02d} ended after {self.result.seconds:.1f} s{value}: {self.result.ending}"


@dataclass(frozen=True)
class Note:
    """A step of the search that is worth a line."""

    text: str
    level: Literal["info", "warning"] = "info"

    def __str__(self) -> str:
        return self.text


Event = SearchStarted | TrialStarted | EpochEnded | TrialEnded | Note


def emit(event: Event) -> None:
    """Tell whoever watches."""
    level = logging.WARNING if isinstance(event, Note) and event.level == "warning" else logging.INFO
    _log.log(level, "%s", event, extra={"event": event})
