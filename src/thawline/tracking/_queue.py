"""One queue for slow trackers: training puts records into it, a thread delivers them."""

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
"""Seconds between two attempts once the run has ended: time is short then."""


class Destination(Protocol):
    """Where the records of a queue go; all but :meth:`keep` is called in the queue's thread, and may be slow."""

    @property
    def together(self) -> int:
        """How many values of metrics that wait are delivered at once; 1 delivers every record alone."""

    def open(self) -> None:
        """Make ready, before the first record; called again if it raises and :meth:`retry_after` says so."""

    def deliver(self, records: Sequence[Record]) -> None:
        """Record one record, or several of metrics; raises whatever keeps that from being done."""

    def retry_after(self, error: Exception, attempt: int) -> float | None:
        """Seconds after which the same is tried again; ``None`` if retrying is useless.

        Args:
            error: what :meth:`open` or :meth:`deliver` raised.
            attempt: how often it has raised, from 1.
        """

    def keep(self, left: Sequence[Record]) -> TrackingReport:
        """Store what could not be delivered, if that is possible. Raises nothing.

        Returns:
            How many of ``left`` are not recorded, with what the destination itself has lost; where they are kept.
        """


class QueuedTracker:
    """A tracker that delivers in order, from a thread of its own, and never waits for it but in :meth:`close`.

    A record that a destination refuses permanently is lost by itself, not the others sent with it. Until a slow one
    takes them, at most ``most_large`` pictures, tables and the like wait, of which the newest are dropped first, and
    ``most_records`` records of any kind. All that is lost is counted in the report. A value that a metric already has
    at a step is not recorded again.

    Create it in the process that logs: a thread does not survive a fork.
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
        """Begin to open the destination.

        Args:
            destination: where the records go.
            name: of the system, for the report.
            grace_seconds: how long delivery may continue after the run has ended.
            most_large: pictures, tables and the like that may wait: by default a hundred megabytes.
            most_records: by default far more than a trial makes, and less than a hundred megabytes.
        """
        self._destination = destination
        self._name = name
        self._grace_seconds = grace_seconds
        self._most_large, self._most_records = most_large, most_records
        self._queue: deque[Record] = deque()
        self._large = 0
        """How many of the waiting records are large."""
        self._values: dict[tuple[str, int], float] = {}
        """What was logged last, by name and step."""
        self._changed = threading.Condition()
        self._closing = threading.Event()
        """The end is in the queue; nothing may be logged any more."""
        self._abandoned = threading.Event()
        """The grace period is over; what is left is the destination's to keep."""
        self._give_up_at = math.inf
        """When the grace period is over, by the monotonic clock."""
        self._lost = 0
        self._problem: str | None = None
        self._report: TrackingReport | None = None
        # By the thread's name, libraries' failure messages are kept off the terminal.
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
        """See :class:`Tracker`. The file is read when its turn comes, so it must stay until :meth:`close`."""
        self._put(Artifact(now_ms(), path.absolute(), folder))

    def begin_close(self, status: RunStatus) -> None:
        """Say how the run ended and that nothing more comes; the grace period begins."""
        with self._changed:
            if not self._closing.is_set():
                self._queue.append(End(now_ms(), status))
                self._give_up_at = time.monotonic() + self._grace_seconds
                self._closing.set()
                self._changed.notify_all()

    def close(self, status: RunStatus) -> TrackingReport:
        """See :class:`Tracker`. Waits until the grace period is over at most; what is left then is kept if possible."""
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
            raise RuntimeError("This tracker is closed; nothing may be logged any more.")

    def _put(self, record: Record) -> bool:
        """Enqueue a record; False if there is no room for it."""
        with self._changed:
            self._check_open()
            large = isinstance(record, LARGE)
            if len(self._queue) >= self._most_records or (large and self._large >= self._most_large):
                self._lost += 1
                self._problem = self._problem or f"{self._name} is too slow; not all was recorded"
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
            else:  # one of them is refused, which must not cost the others
                alone = True

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Whether it could be delivered, at once or late; the reason for a delay is kept."""
        attempt = 0
        while not self._abandoned.is_set():
            try:
                action()
            except Exception as error:  # the network, a server, the disk, a library: training continues
                _log.debug("recording with %s failed", self._name, exc_info=True)
                self._problem = self._problem or f"{self._name}: {first_line(error)}"
                attempt += 1
                pause = self._destination.retry_after(error, attempt)
                if pause is None:
                    return False
                if self._closing.is_set():
                    self._abandoned.wait(min(pause, _LONGEST_PAUSE_AT_END))
                else:
                    self._closing.wait(pause)  # the end of the run ends a long pause at once
            else:
                return True
        return False

    def _next(self, alone: bool) -> tuple[Record, ...]:
        """The next records, which stay queued until they are delivered; none after the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing.is_set())
            if self._abandoned.is_set():
                return ()
            return _head(self._queue, 1 if alone else self._destination.together)

    def _done(self, count: int, *, lost: bool = False) -> None:
        with self._changed:
            if self._abandoned.is_set():  # `close` has counted them
                return
            for _ in range(count):
                self._large -= isinstance(self._queue.popleft(), LARGE)
            self._lost += lost


def _head(queue: Iterable[Record], most: int) -> tuple[Record, ...]:
    """From the front: metrics up to a number of values, or one other record."""
    taken: list[Record] = []
    values = 0
    for record in queue:
        values += len(record.values) if isinstance(record, Metrics) else most
        if taken and values > most:
            break
        taken.append(record)
    return tuple(taken)
