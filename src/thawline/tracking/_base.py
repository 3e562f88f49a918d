"""The interface of all trackers."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from thawline.tracking.media import Media

__all__ = [
    "CheckpointKeeper",
    "CompositeTracker",
    "Delivering",
    "RunStatus",
    "Tracker",
    "TrackerRun",
    "TrackingReport",
    "run_status",
]

_log = logging.getLogger(__name__)

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class TrackerRun:
    """The run that a tracker records: a trial, or the study itself."""

    home: Path
    """Thawline's home, below which files may be written."""
    study: str
    trial: int | None
    """Number of the trial; ``None`` for the study's own run."""
    run_name: str
    """Display name, such as ``trial-07 depth=3 lr=1.2e-3``."""
    study_run_id: str
    """MLflow run of the study, unique across machines. Together with the trial's number it identifies the run that a
    resumed trial must find again."""
    metric: str
    """The metric that the study optimises, such as ``accuracy``, recorded as ``val/accuracy``."""


@dataclass(frozen=True)
class TrackingReport:
    """The delivery of all records."""

    unsent: int = 0
    """Number of records that could not be delivered."""
    where: Path | None = None
    """File that stores them until the next start; ``None`` if there are none, or if it could not be written."""
    problem: str | None = None
    """The first failure, as one sentence; ``None`` if nothing failed. Late delivery is a problem without unsent
    records."""


class Tracker(Protocol):
    """Records one trial (or the study as a whole).

    Failures: no method raises if a server, disk or network fails; :meth:`close` reports what was lost. Thread safety:
    the methods of one tracker are called from one thread. After :meth:`close` nothing may be logged; closing twice
    returns the same report.
    """

    def log_params(self, params: Mapping[str, str]) -> None:
        """Record hyperparameters and settings: the same keys for every trial, so that the UI can compare them."""

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Record free text that may change later."""

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, timestamp_ms: int | None = None) -> None:
        """Record values by name, such as ``val/accuracy``, at a step (the epoch, counted from 1).

        ``timestamp_ms`` is when they were measured, in milliseconds since 1970; by default now. The same values with
        the same timestamp are the same record; behind a queue, also the same values at the same step.
        """

    def log_media(self, name: str, media: Media, *, step: int) -> None:
        """Record a picture, distribution, table, figure or shape under a name such as ``val/pictures``.

        A tracker ignores media that its system cannot show. Arrays must not be modified afterwards: another thread may
        write them later.
        """

    def log_text(self, text: str, file: str) -> None:
        """Record a text as the file ``file``, such as ``config.yaml``."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Record a file, or the content of a directory, in a folder of the run's artifacts."""

    def close(self, status: RunStatus) -> TrackingReport:
        """Deliver waiting records, set the run's status, and report what could not be delivered."""


@runtime_checkable
class CheckpointKeeper(Protocol):
    """A tracker that handles checkpoints specially, not just as files."""

    def log_checkpoint(
        self,
        path: Path,
        *,
        name: str,
        epoch: int,
        metrics: Mapping[str, float],
        dataset: tuple[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> None:
        """See :meth:`CompositeTracker.log_checkpoint`."""


@runtime_checkable
class Delivering(Protocol):
    """A tracker that delivers in its own thread."""

    def begin_close(self, status: RunStatus) -> None:
        """Announce the run's status and that no more records follow; ``close`` then waits for delivery."""


def run_status(state: Literal["complete", "pruned", "failed", "paused"]) -> RunStatus:
    """MLflow's status for the state of a trial: killed if it was stopped on purpose, even temporarily."""
    words: dict[str, RunStatus] = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "paused": "KILLED"}
    return words[state]


class CompositeTracker:
    """Several trackers as one; a failure of one is in the report and never affects training or the others."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)
        self._problem: str | None = None
        self._report: TrackingReport | None = None

    def log_params(self, params: Mapping[str, str]) -> None:
        """See :class:`Tracker`."""
        self._each(lambda tracker: tracker.log_params(params))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """See :class:`Tracker`."""
        self._each(lambda tracker: tracker.log_tags(tags))

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, timestamp_ms: int | None = None) -> None:
        """See :class:`Tracker`."""
        self._each(lambda tracker: tracker.log_metrics(metrics, step=step, timestamp_ms=timestamp_ms))

    def log_media(self, name: str, media: Media, *, step: int) -> None:
        """See :class:`Tracker`."""
        self._each(lambda tracker: tracker.log_media(name, media, step=step))

    def log_text(self, text: str, file: str) -> None:
        """See :class:`Tracker`."""
        self._each(lambda tracker: tracker.log_text(text, file))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """See :class:`Tracker`."""
        self._each(lambda tracker: tracker.log_artifact(path, folder))

    def log_checkpoint(
        self,
        path: Path,
        *,
        name: str,
        epoch: int,
        metrics: Mapping[str, float],
        dataset: tuple[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> None:
        """Record a checkpoint: in MLflow as a model that can be compared, elsewhere as a file in ``checkpoints``.

        Args:
            path: the file; it is read when it is sent, so it must exist until :meth:`close`.
            name: name in MLflow's UI.
            epoch: epoch after which it was written; a run has one checkpoint per epoch.
            metrics: its metrics, named as in the run.
            dataset: name and digest of the data for the metrics.
            params: hyperparameters and settings, as in the run.
        """

        def log(tracker: Tracker) -> None:
            if isinstance(tracker, CheckpointKeeper):
                tracker.log_checkpoint(path, name=name, epoch=epoch, metrics=metrics, dataset=dataset, params=params)
            else:
                tracker.log_artifact(path, "checkpoints")

        self._each(log)

    def close(self, status: RunStatus) -> TrackingReport:
        """Close all; the report has the sum of unsent records, the first problem and the first file.

        Those with their own thread finish concurrently, in the time of the slowest.
        """
        if self._report is None:
            reports: list[TrackingReport] = []
            self._each(lambda tracker: tracker.begin_close(status) if isinstance(tracker, Delivering) else None)
            self._each(lambda tracker: reports.append(tracker.close(status)))
            self._report = TrackingReport(
                unsent=sum(report.unsent for report in reports),
                where=next((report.where for report in reports if report.where is not None), None),
                problem=next((report.problem for report in reports if report.problem), self._problem),
            )
        return self._report

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in self._trackers:
            try:
                call(tracker)
            except Exception as error:  # any exception of a tracker's library: the trial continues
                _log.debug("a tracker failed", exc_info=True)
                self._problem = self._problem or f"{type(tracker).__name__}: {type(error).__name__}: {error}"
