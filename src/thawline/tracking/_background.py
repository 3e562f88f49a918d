"""Any tracker behind a queue of its own: whatever it does, training continues."""

from collections.abc import Callable, Sequence

from thawline.tracking._base import Tracker, TrackingReport
from thawline.tracking._queue import QueuedTracker
from thawline.tracking._records import Artifact, End, Metrics, Params, Record, Shown, Tags, Text

__all__ = ["BackgroundTracker"]

_FAILURES = 5
"""Consecutive calls that may fail before a tracker is given up."""


class BackgroundTracker(QueuedTracker):
    """Makes a tracker in a thread of its own, and calls it there.

    A call that raises is kept for the report, and the next ones are still made; after five failures in a
    row the tracker is only closed. One that does not finish within ``grace_seconds`` after the end is left behind.
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
        """Begin to make the tracker.

        Args:
            make: returns the tracker; called in the thread, so it may be slow and import anything.
            name: see :class:`QueuedTracker`; so are the others.
            grace_seconds: how long :meth:`close` may take.
            most_large: how many large records, such as pictures, may wait.
            most_records: how many calls of any kind may wait.
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
        """In a row."""
        self._report = TrackingReport()

    def open(self) -> None:
        self._tracker = self._make()

    def deliver(self, records: Sequence[Record]) -> None:
        (record,) = records
        if self._tracker is None:
            raise RuntimeError("it could not be made")
        if isinstance(record, End):
            self._report = self._tracker.close(record.status)
        elif self._failures < _FAILURES:
            self._failures += 1
            _call(self._tracker, record)
            self._failures = 0
        else:
            raise RuntimeError("it was given up")

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
            raise TypeError(f"{type(record).__name__} is MLflow's alone")
