"""A tracker in a thread of its own: whatever it does, training goes on."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from thawline.tracking._base import RunStatus, Tracker, TrackingReport
from thawline.tracking.media import Media
from thawline.tracking.mlflow import first_line, now_ms

__all__ = ["BackgroundTracker"]

_log = logging.getLogger(__name__)

_MOST_MEDIA = 64
"""Pictures, tables and the like that may wait: a hundred megabytes."""
_MOST_CALLS = 100_000
"""Calls of any kind that may wait: far more than a trial makes, and less than a hundred megabytes."""
_FAILURES = 5
"""Calls that may fail one after the other before a tracker is given up."""


@dataclass(frozen=True)
class _Call:
    to: Callable[[Tracker], None]
    media: bool


class BackgroundTracker:
    """Makes a tracker in a thread of its own, feeds it there, and never waits for it but in :meth:`close`.

    A call that raises is remembered for the report, and the next ones are made all the same; after five failures in a
    row the tracker is given up. What a slow tracker has not taken yet waits: at most 64 pictures, tables and the like,
    the newest of which are left out first, and 100,000 calls of any kind. A tracker that does not finish within
    ``grace_seconds`` after the end is left behind. All that got lost is counted in the report.

    Create it in the process that logs: a thread does not survive a fork.
    """

    def __init__(self, make: Callable[[], Tracker], *, name: str, grace_seconds: float = 30.0) -> None:
        """Begin to make the tracker.

        Args:
            make: returns the tracker; called in the thread, so it may take its time and import what it likes.
            name: of the system that it writes to, for the report.
            grace_seconds: how long :meth:`close` may take.
        """
        self._make = make
        self._name = name
        self._grace_seconds = grace_seconds
        self._queue: deque[_Call] = deque()
        self._media = 0
        """How many of the waiting calls are media."""
        self._changed = threading.Condition()
        self._status: RunStatus | None = None
        """How the run ended; from then on nothing may be logged."""
        self._give_up_at = math.inf
        """When the grace period is over, by the monotonic clock."""
        self._abandoned = False
        """The grace period is over; what is left is not recorded."""
        self._lost = 0
        self._problem: str | None = None
        self._result: TrackingReport | None = None
        """What the tracker itself reports."""
        self._report: TrackingReport | None = None
        # The name keeps what libraries say of its failures off the terminal, as it does for MLflow's thread.
        self._thread = threading.Thread(target=self._run, name=f"thawline-tracking-{name}", daemon=True)
        self._thread.start()

    def log_params(self, params: Mapping[str, str]) -> None:
        """See :class:`Tracker`."""
        kept = dict(params)
        self._put(lambda tracker: tracker.log_params(kept))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """See :class:`Tracker`."""
        kept = dict(tags)
        self._put(lambda tracker: tracker.log_tags(kept))

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, timestamp_ms: int | None = None) -> None:
        """See :class:`Tracker`."""
        kept = dict(metrics)
        timestamp = now_ms() if timestamp_ms is None else timestamp_ms
        self._put(lambda tracker: tracker.log_metrics(kept, step=step, timestamp_ms=timestamp))

    def log_media(self, name: str, media: Media, *, step: int) -> None:
        """See :class:`Tracker`."""
        self._put(lambda tracker: tracker.log_media(name, media, step=step), media=True)

    def log_text(self, text: str, file: str) -> None:
        """See :class:`Tracker`."""
        self._put(lambda tracker: tracker.log_text(text, file))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """See :class:`Tracker`. The file is read when its turn comes, so it must stay until :meth:`close`."""
        self._put(lambda tracker: tracker.log_artifact(path, folder))

    def begin_close(self, status: RunStatus) -> None:
        """Say how the run ended and that nothing more comes; the grace period begins."""
        with self._changed:
            if self._status is None:
                self._status = status
                self._give_up_at = time.monotonic() + self._grace_seconds
                self._changed.notify_all()

    def close(self, status: RunStatus) -> TrackingReport:
        """See :class:`Tracker`. Waits until the grace period is over at most."""
        self.begin_close(status)
        if self._report is None:
            self._thread.join(max(0.0, self._give_up_at - time.monotonic()))
            with self._changed:
                self._abandoned = True
                self._report = self._sum_up()
        return self._report

    def _put(self, to: Callable[[Tracker], None], media: bool = False) -> None:
        with self._changed:
            if self._status is not None:
                raise RuntimeError("This tracker is closed; nothing may be logged any more.")
            if len(self._queue) >= _MOST_CALLS or (media and self._media >= _MOST_MEDIA):
                self._lost += 1
                self._problem = self._problem or f"{self._name} is too slow; not all was recorded"
                return
            self._queue.append(_Call(to, media))
            self._media += media
            self._changed.notify_all()

    def _run(self) -> None:
        tracker = self._made()
        failures = 0
        while (call := self._next()) is not None:
            recorded = False
            if tracker is not None and failures < _FAILURES:
                recorded = self._attempt(partial(call.to, tracker))
                failures = 0 if recorded else failures + 1
            self._done(call, recorded)
        ended = tracker is not None and self._attempt(partial(self._finish, tracker))
        with self._changed:
            self._lost += not ended

    def _made(self) -> Tracker | None:
        made: list[Tracker] = []
        self._attempt(lambda: made.append(self._make()))
        return made[0] if made else None

    def _finish(self, tracker: Tracker) -> None:
        assert self._status is not None  # noqa: S101  it is what ended the loop
        self._result = tracker.close(self._status)

    def _attempt(self, action: Callable[[], None]) -> bool:
        """Whether it could be done; why not is remembered."""
        try:
            action()
        except Exception as error:  # whatever a tracker's library raises
            _log.debug("recording with %s failed", self._name, exc_info=True)
            self._problem = self._problem or f"{self._name}: {first_line(error)}"
            return False
        return True

    def _next(self) -> _Call | None:
        """The call whose turn it is, which waits on until it is done; ``None`` after the last."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._status is not None)
            return self._queue[0] if self._queue and not self._abandoned else None

    def _done(self, call: _Call, recorded: bool) -> None:
        with self._changed:
            self._queue.popleft()
            self._media -= call.media
            self._lost += not recorded

    def _sum_up(self) -> TrackingReport:
        own = self._result or TrackingReport()
        unfinished = self._thread.is_alive()
        problem = self._problem
        if unfinished:
            problem = problem or f"{self._name} did not finish within {self._grace_seconds:g} s"
        # How the run ended is a record, too.
        return TrackingReport(
            self._lost + len(self._queue) + unfinished + own.unsent, own.where, problem or own.problem
        )
