"""A queue for slow trackers: training adds records, and a thread delivers them."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from thawline.tracking._base import RunStatus, TrackingReport
from thawline.tracking._errors import first_line, hold_back_warnings
from thawline.tracking._records import LARGE, Artifact, End, Metrics, Params, Record, Shown, Tags, Text, now_ms
from thawline.tracking.media import Media

__all__ = ["Destination", "QueuedTracker"]

_log = logging.getLogger(__name__)

_LONGEST_PAUSE_AT_END = 1.0
"""Maximum seconds between attempts once the run has ended, when time is limited."""


class Destination(Protocol):
    """The destination of a queue's records; methods except :meth:`keep` are called in its thread, and may be slow."""

    @property
    def together(self) -> int:
        """Maximum number of waiting metric values per delivery; 1 delivers every record separately."""

    def open(self) -> None:
        """Open the destination before the first record; called again if it raises and :meth:`retry_after` allows it."""

    def deliver(self, records: Sequence[Record]) -> None:
        """Deliver one record, or several of metrics; raises on any failure."""

    def retry_after(self, error: Exception, attempt: int) -> float | None:
        """Seconds until the next attempt; ``None`` if retrying is useless.

        Args:
            error: exception of :meth:`open` or :meth:`deliver`.
            attempt: number of failures, from 1.
        """

    def keep(self, left: Sequence[Record]) -> TrackingReport:
        """Store undelivered records, if possible. Must not raise.

        Returns:
            The number of unrecorded records, including those lost by the destination itself, and where they are stored.
        """


class QueuedTracker:
    """A tracker that delivers in order in its own thread, and only waits for it in :meth:`close`.

    A permanently refused record is lost without affecting others sent with it. At most ``most_large`` pictures, tables
    and similar records, and ``most_records`` records of any kind, wait for a slow destination; further ones are
    dropped. Losses are counted in the report. A value that a metric already has at a step is not recorded again.

    Create it in the process that logs, because threads do not survive a fork.
    """

    def __init__(
        self,
        destination: Destination,
        *,
        name: str,
        grace_seconds: float,
        most_large: int = 64,
        most_records: int = 100_000,
    ) -> None:
        """Start opening the destination.

        Args:
            destination: destination of the records.
            name: name of the system, for the report.
            grace_seconds: how long delivery may continue after the end of the run.
            most_large: maximum number of waiting pictures, tables and similar records: by default a hundred megabytes.
            most_records: by default far more than a trial has, and less than a hundred megabytes.
        """
        self._destination = destination
        self._name = name
        self._grace_seconds = grace_seconds
        self._most_large, self._most_records = most_large, most_records
        self._queue: deque[Record] = deque()
        self._large = 0
        """Number of waiting large records."""
        self._values: dict[tuple[str, int], float] = {}
        """The last logged values, by name and step."""
        self._changed = threading.Condition()
        self._closing = threading.Event()
        """Set once the end is in the queue; nothing more may be logged."""
        self._abandoned = threading.Event()
        """Set when the grace period is over; the destination stores the remaining records."""
        self._give_up_at = math.inf
        """End of the grace period, by the monotonic clock."""
        self._lost = 0
        self._problem: str | None = None
        self._report: TrackingReport | None = None
        # The thread's name identifies failure messages of libraries to keep off the terminal.
        self._thread = threading.Thread(target=self._run, name=f"thawline-tracking-{name}", daemon=True)
        self._thread.start()

    def log_params(self, params: Mapping[str, str]) -> None:
        """See :class:`Tracker`."""
        self._put(Params(now_ms(), dict(params)))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """See :class:`Tracker`."""
        self._put(Tags(now_ms(), dict(tags)))

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, timestamp_ms: int | None = None) -> None:
        """See :class:`Tracker`."""
        with self._changed:
            self._check_open()
            new = {name: value for name, value in metrics.items() if self._values.get((name, step)) != value}
            record = Metrics(now_ms() if timestamp_ms is None else timestamp_ms, new, step)
            if new and self._put(record):
                self._values |= {(name, step): value for name, value in new.items()}

    def log_media(self, name: str, media: Media, *, step: int) -> None:
        """See :class:`Tracker`."""
        self._put(Shown(now_ms(), name, media, step))

    def log_text(self, text: str, file: str) -> None:
        """See :class:`Tracker`."""
        self._put(Text(now_ms(), text, file))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """See :class:`Tracker`. The file is read on delivery, so it must exist until :meth:`close`."""
        self._put(Artifact(now_ms(), path.absolute(), folder))

    def begin_close(self, status: RunStatus) -> None:
        """Set the run's status and the end of its records, and start the grace period."""
        with self._changed:
            if not self._closing.is_set():
                self._queue.append(End(now_ms(), status))
                self._give_up_at = time.monotonic() + self._grace_seconds
                self._closing.set()
                self._changed.notify_all()

    def close(self, status: RunStatus) -> TrackingReport:
        """See :class:`Tracker`. Waits at most for the grace period; remaining records are stored if possible."""
        self.begin_close(status)
        if self._report is None:
            self._thread.join(max(0.0, self._give_up_at - time.monotonic()))
            with self._changed:
                self._abandoned.set()
                left, lost, problem = tuple(self._queue), self._lost, self._problem
            if left:
                problem = problem or f"{self._name} did not finish within {self._grace_seconds:g} s"
            kept = self._destination.keep(left)
            problems = [each for each in (problem, kept.problem) if each]
            self._report = TrackingReport(lost + kept.unsent, kept.where, "; and ".join(problems) or None)
        return self._report

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise RuntimeError("This tracker is closed; nothing more can be logged.")

    def _put(self, record: Record) -> bool:
        """Enqueue a record; False if the queue is full."""
        with self._changed:
            self._check_open()
            large = isinstance(record, LARGE)
            if len(self._queue) >= self._most_records or (large and self._large >= self._most_large):
                self._lost += 1
                self._problem = self._problem or f"{self._name} is too slow; some records were dropped"
                return False
            self._queue.append(record)
            self._large += large
            self._changed.notify_all()
            return True

    def _run(self) -> None:
        hold_back_warnings()
        self._attempt(self._destination.open)
        alone = False
        while records := self._next(alone):
            if self._attempt(partial(self._destination.deliver, records)):
                self._done(len(records))
                alone = False
            elif len(records) == 1:
                self._done(1, lost=True)
            else:  # one of them is refused, which must not affect the others
                alone = True

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Whether delivery succeeded, possibly late; remembers the reason of a delay."""
        attempt = 0
        while not self._abandoned.is_set():
            try:
                action()
            except Exception as error:  # any failure of network, server, disk or library: training continues
                _log.debug("recording with %s failed", self._name, exc_info=True)
                self._problem = self._problem or f"{self._name}: {first_line(error)}"
                attempt += 1
                pause = self._destination.retry_after(error, attempt)
                if pause is None:
                    return False
                if self._closing.is_set():
                    self._abandoned.wait(min(pause, _LONGEST_PAUSE_AT_END))
                else:
                    self._closing.wait(pause)  # the end of the run interrupts a long pause
            else:
                return True
        return False

    def _next(self, alone: bool) -> tuple[Record, ...]:
        """The next records, which stay queued until delivered; empty after the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing.is_set())
            if self._abandoned.is_set():
                return ()
            return _head(self._queue, 1 if alone else self._destination.together)

    def _done(self, count: int, *, lost: bool = False) -> None:
        with self._changed:
            if self._abandoned.is_set():  # already counted by `close`
                return
            for _ in range(count):
                self._large -= isinstance(self._queue.popleft(), LARGE)
            self._lost += lost


def _head(queue: Iterable[Record], most: int) -> tuple[Record, ...]:
    """The front of the queue: metrics up to a number of values, or one other record."""
    taken: list[Record] = []
    values = 0
    for record in queue:
        values += len(record.values) if isinstance(record, Metrics) else most
        if taken and values > most:
            break
        taken.append(record)
    return tuple(taken)
