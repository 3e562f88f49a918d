"""Run any tracker behind its own queue, so that it cannot affect training."""

from collections.abc import Callable, Sequence

from thawline.tracking._base import Tracker, TrackingReport
from thawline.tracking._queue import QueuedTracker
from thawline.tracking._records import Artifact, End, Metrics, Params, Record, Shown, Tags, Text

__all__ = ["BackgroundTracker"]

_FAILURES = 5
"""Consecutive failures after which a tracker is disabled."""


class BackgroundTracker(QueuedTracker):
    """Creates a tracker in its own thread, and calls it there.

    Exceptions are kept for the report, and further calls are still made; after five consecutive failures the tracker is
    only closed. One that does not finish within ``grace_seconds`` after the end is abandoned.
    """

    def __init__(
        self,
        make: Callable[[], Tracker],
        *,
        name: str,
        grace_seconds: float = 30.0,
        most_large: int = 64,
        most_records: int = 100_000,
    ) -> None:
        """Start creating the tracker.

        Args:
            make: returns the tracker; called in the thread, so it may be slow and import anything.
            name: see :class:`QueuedTracker`, also for the other arguments.
            grace_seconds: maximum duration of :meth:`close`.
            most_large: maximum number of waiting large records, such as pictures.
            most_records: maximum number of waiting calls of any kind.
        """
        super().__init__(
            _Called(make), name=name, grace_seconds=grace_seconds, most_large=most_large, most_records=most_records
        )


class _Called:
    """A tracker as the destination of a queue. A record is never delivered twice."""

    together = 1

    def __init__(self, make: Callable[[], Tracker]) -> None:
        self._make = make
        self._tracker: Tracker | None = None
        self._failures = 0
        """Number of consecutive failures."""
        self._report = TrackingReport()

    def open(self) -> None:
        self._tracker = self._make()

    def deliver(self, records: Sequence[Record]) -> None:
        (record,) = records
        if self._tracker is None:
            raise RuntimeError("it could not be created")
        if isinstance(record, End):
            self._report = self._tracker.close(record.status)
        elif self._failures < _FAILURES:
            self._failures += 1
            _call(self._tracker, record)
            self._failures = 0
        else:
            raise RuntimeError("it was disabled")

    def retry_after(self, error: Exception, attempt: int) -> float | None:
        return None

    def keep(self, left: Sequence[Record]) -> TrackingReport:
        own = self._report
        return TrackingReport(len(left) + own.unsent, own.where, own.problem)


def _call(tracker: Tracker, record: Record) -> None:
    match record:
        case Params(_, params):
            tracker.log_params(params)
        case Tags(_, tags):
            tracker.log_tags(tags)
        case Metrics(at, values, step):
            tracker.log_metrics(values, step=step, timestamp_ms=at)
        case Shown(_, name, media, step):
            tracker.log_media(name, media, step=step)
        case Text(_, text, file):
            tracker.log_text(text, file)
        case Artifact(_, path, folder):
            tracker.log_artifact(path, folder)
        case _:
            raise TypeError(f"{type(record).__name__} is only for MLflow")
