"""MLflow's tracker of one run, behind a queue."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from thawline.tracking._base import RunStatus, TrackingReport
from thawline.tracking._queue import QueuedTracker
from thawline.tracking._records import Checkpoint, Dataset, Record, now_ms
from thawline.tracking._system import SystemSampler
from thawline.tracking._turns import Turns
from thawline.tracking.media import Media
from thawline.tracking.mlflow.files import file_of
from thawline.tracking.mlflow.runs import RunAddress, open_run
from thawline.tracking.mlflow.store import MlflowStore
from thawline.tracking.mlflow.unsent import keep_unsent
from thawline.tracking.mlflow.writer import RunWriter, is_permanent, metric_key

__all__ = ["MlflowTracker"]

_WRITERS = Turns(4)
"""Threads of this process that write to a database at the same time.

MLflow opens up to two connections per call, and has fifteen for all threads: when thirty trials ended together, each
thread held one and waited half a minute for the second. Four avoid that, and one slow upload does not block the others.
Trackers in their grace period have priority, because that of the others has not started.
"""


class MlflowTracker(QueuedTracker):
    """Records one run in MLflow.

    A failed record is retried with exponential backoff from 0.5 s to 15 s, while later records wait. Only records that
    MLflow refuses permanently (a deleted run, a missing file) are dropped and reported. Records that are undelivered at
    the end of :meth:`close` are written to ``<home>/unsent`` for :func:`~thawline.tracking.replay_unsent`.
    """

    def __init__(
        self,
        store: MlflowStore,
        address: RunAddress,
        *,
        grace_seconds: float = 20.0,
        system_metrics: bool = False,
        pauses: tuple[float, float] = (0.5, 15.0),
        most_large: int = 64,
    ) -> None:
        """Start opening the run.

        Args:
            store: the run's store.
            address: address of the run.
            grace_seconds: how long delivery may continue after the end of the run.
            system_metrics: whether to record system metrics.
            pauses: seconds before the second attempt, and the maximum before later ones.
            most_large: maximum number of waiting pictures and tables.
        """
        self._sampler: SystemSampler | None = None
        self._run_of_mlflow = _MlflowRun(store, address, self._measure if system_metrics else lambda _: None, pauses)
        super().__init__(self._run_of_mlflow, name="MLflow", grace_seconds=grace_seconds, most_large=most_large)

    @classmethod
    def for_trial(
        cls,
        store: MlflowStore,
        *,
        parent_run_id: str,
        study: str,
        number: int,
        run_name: str,
        system_metrics: bool = True,
        grace_seconds: float = 20.0,
    ) -> "MlflowTracker":
        """The tracker of a trial, whose run is a child of the study's; a resumed trial continues its run."""
        address = RunAddress(
            study, number, run_id=None, parent_run_id=parent_run_id, run_name=run_name, started_at=now_ms()
        )
        return cls(store, address, system_metrics=system_metrics, grace_seconds=grace_seconds)

    @classmethod
    def for_study(cls, store: MlflowStore, *, run_id: str, study: str, grace_seconds: float = 20.0) -> "MlflowTracker":
        """The tracker of the study's own run, which :func:`~thawline.tracking.start_study_run` has started."""
        address = RunAddress(study, None, run_id=run_id, parent_run_id=None, run_name=study)
        return cls(store, address, grace_seconds=grace_seconds)

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run; ``None`` until the server is first reached."""
        return self._run_of_mlflow.run_id

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, timestamp_ms: int | None = None) -> None:
        """See :class:`Tracker`. NaN and infinite values, which break MLflow's charts, become a tag instead."""
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        super().log_metrics(finite, step=step, timestamp_ms=timestamp_ms)
        broken = [f"{name} = {value} at step {step}" for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            self.log_tags({"thawline.not_finite": "; ".join(broken)})

    def log_media(self, name: str, media: Media, *, step: int) -> None:
        """See :class:`Tracker`: pictures for the slider over steps, tables, and figures as files.

        A table or a figure replaces that of an earlier step.
        """
        record = file_of(metric_key(name), media, step=step, at=now_ms())
        if record is not None:
            self._put(record)

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
        """See :meth:`CompositeTracker.log_checkpoint`: a logged model, which MLflow's models page can compare.

        Name and digest of the dataset are those of :meth:`log_dataset`; non-finite metrics are dropped.
        """
        finite = {metric_key(key): float(value) for key, value in metrics.items() if math.isfinite(value)}
        self._put(
            Checkpoint(
                now_ms(),
                path.absolute(),
                name,
                epoch,
                finite,
                None if dataset is None else (dataset[0][:500], dataset[1][:36]),
                {metric_key(key): str(value) for key, value in (params or {}).items()},
            )
        )

    def log_dataset(
        self, *, name: str, digest: str, source: Path, profile: Mapping[str, int] | None = None, context: str = "train"
    ) -> None:
        """Record the data as a dataset input in MLflow.

        Args:
            name: name in the UI.
            digest: digest of the manifest, of which MLflow keeps 36 characters.
            source: the data folder.
            profile: counts for the UI, such as examples per split.
            context: purpose of the data in the run.
        """
        self._put(
            Dataset(
                now_ms(),
                name[:500],
                digest[:36],
                source=json.dumps({"uri": source.absolute().as_uri()}),
                profile=json.dumps(dict(profile or {})),
                context=context,
            )
        )

    def begin_close(self, status: RunStatus) -> None:
        """Set the run's status and the end of its records, and start the grace period."""
        super().begin_close(status)
        _WRITERS.hurry(self._run_of_mlflow)
        with self._changed:
            sampler, self._sampler = self._sampler, None
        if sampler is not None:
            sampler.stop()

    def close(self, status: RunStatus) -> TrackingReport:
        """See :class:`QueuedTracker`."""
        try:
            return super().close(status)
        finally:
            _WRITERS.finished(self._run_of_mlflow)

    def _measure(self, started_at: int) -> None:
        with self._changed:
            if not self._closing.is_set():
                self._sampler = SystemSampler(self._log_system_metrics, started_at=started_at / 1000)

    def _log_system_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        with self._changed:
            if not self._closing.is_set():  # the sampler's thread may be measuring now
                self.log_metrics(metrics, step=step)


class _MlflowRun:
    """A run as the destination of a queue."""

    together = 1000
    """The limit of one call of MLflow's REST API."""

    def __init__(
        self, store: MlflowStore, address: RunAddress, opened: Callable[[int], None], pauses: tuple[float, float]
    ) -> None:
        self._store, self._address, self._opened = store, address, opened
        self._first_pause, self._longest_pause = pauses
        self._writer: RunWriter | None = None
        self.run_id = address.run_id

    def open(self) -> None:
        with self._turn():
            if self.run_id is None:
                self.run_id = open_run(self._store, self._address)
            self._writer = RunWriter(self._store.client, self.run_id)
        self._opened(self._writer.started_at)

    def deliver(self, records: Sequence[Record]) -> None:
        assert self._writer is not None  # noqa: S101  opening is tried until it succeeds
        with self._turn():
            self._writer.write(records)

    def _turn(self) -> AbstractContextManager[object]:
        return _WRITERS.turn(self) if self._store.is_database else nullcontext()

    def retry_after(self, error: Exception, attempt: int) -> float | None:
        if self._writer is not None and is_permanent(error):
            return None
        return float(min(self._first_pause * 2 ** min(attempt - 1, 10), self._longest_pause))

    def keep(self, left: Sequence[Record]) -> TrackingReport:
        return keep_unsent(self._store, replace(self._address, run_id=self.run_id), left)
