"""Events of a search, for watchers such as a live table, a log or a test.

Events are log records of the logger ``thawline.search``: the text is the plain log line, and the attribute ``event`` is
the event itself. The progress of a phase is only reported to :func:`watching`, as it would flood a log. Watching is
optional.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from thawline.data.contract import counted
from thawline.durations import roughly
from thawline.search.trial_result import TrialResult, trial_name
from thawline.training import Hyperparameters

__all__ = [
    "EpochEnded",
    "Event",
    "Note",
    "Phase",
    "SearchStarted",
    "TrialEnded",
    "TrialStarted",
    "counting",
    "emit",
    "tell_driver",
    "watching",
]

_log = logging.getLogger("thawline.search")
_watchers: list[Callable[["Phase"], None]] = []
_driver: Callable[["Event"], None] | None = None
"""In a worker: sends emitted events to the driver."""
_COUNT_SECONDS = 0.5
"""Minimum interval between progress reports of a phase: from a worker each is a message."""


@dataclass(frozen=True)
class SearchStarted:
    """The data is read and the study is open."""

    study: str
    trials: int | None
    """Total number; ``None`` if only the time is limited."""
    finished: int
    epochs: int
    metric: str
    unfinished: tuple[tuple[int, int], ...] = ()
    """Unfinished trials, each with its next epoch."""
    seconds: float | None = None
    """Remaining time; ``None`` without a limit."""

    @property
    def resumes(self) -> bool:
        """Whether some of the study is already done."""
        return bool(self.finished or self.unfinished)

    def __str__(self) -> str:
        left = "" if self.seconds is None else f", {roughly(self.seconds)} left"
        if not self.resumes:
            trials = "trials" if self.trials is None else counted(self.trials, "trial")
            return f"study {self.study}: {trials} of up to {counted(self.epochs, 'epoch')}{left}"
        begun = "".join(f", trial {number} from epoch {epoch}" for number, epoch in self.unfinished)
        of = "" if self.trials is None else f"{self.finished} of "
        done = of + counted(self.finished if self.trials is None else self.trials, "trial")
        return f"resuming study {self.study}: {done} done{left}{begun}"


@dataclass(frozen=True)
class TrialStarted:
    """A trial's process was started."""

    number: int
    hyperparameters: Hyperparameters
    epochs: int = 0
    """Epochs that it finished before."""

    def __str__(self) -> str:
        name = trial_name(self.number, self.hyperparameters)
        return f"{name} resumes after epoch {self.epochs}" if self.epochs else name


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
    """A trial ended, in whatever state, or was paused."""

    result: TrialResult

    def __str__(self) -> str:
        value = "" if self.result.value is None else f", best value {self.result.value:.4f}"
        if self.result.state == "paused":
            return f"trial-{self.result.number:02d} {self.result.reason}{value}"
        return f"trial-{self.result.number:02d} ended after {self.result.seconds:.1f} s{value}: {self.result.ending}"


@dataclass(frozen=True)
class Note:
    """Anything else worth logging."""

    text: str
    level: Literal["info", "warning"] = "info"

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Phase:
    """A phase of the search starts or progresses."""

    name: str
    """Such as ``reading images``."""
    done: int = 0
    total: int = 0
    """Number of items; 0 if nothing is counted."""

    def __str__(self) -> str:
        return f"{self.name} {self.done:,} / {self.total:,}" if self.total else self.name


Event = SearchStarted | TrialStarted | EpochEnded | TrialEnded | Note | Phase


@contextmanager
def watching(watcher: Callable[[Phase], None]) -> Iterator[None]:
    """Report the progress of phases to ``watcher`` within the block."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def tell_driver(send: Callable[[Event], None]) -> None:
    """In a worker: from now on, events emitted here are emitted by the driver."""
    global _driver  # noqa: PLW0603  of the process
    _driver = send


def counting(name: str) -> Callable[[int, int], None]:
    """Report the start of a phase; returns a function to call with (done, total) as it progresses."""
    last = time.monotonic()
    emit(Phase(name))

    def count(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _COUNT_SECONDS:
            last = time.monotonic()
            emit(Phase(name, done, total))

    return count


def emit(event: Event) -> None:
    """Notify the watchers; in a worker, those of the driver."""
    if _driver is not None:
        _driver(event)
        return
    if isinstance(event, Phase) and event.done:
        for watcher in _watchers:
            watcher(event)
        return
    level = logging.WARNING if isinstance(event, Note) and event.level == "warning" else logging.INFO
    _log.log(level, "%s", event, extra={"event": event})
