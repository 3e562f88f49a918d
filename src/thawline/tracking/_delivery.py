"""The tracker of one run: training puts records into a queue, a thread sends them, nothing waits for a server."""

import json
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from thawline.tracking._base import RunStatus, TrackingReport
from thawline.tracking._mlflow_files import MEDIA_KINDS, as_json, media_record
from thawline.tracking._system import SystemSampler
from thawline.tracking.media import Media
from thawline.tracking.mlflow import (
    MlflowStore,
    Record,
    RunAddress,
    first_line,
    hold_back_connection_warnings,
    is_permanent,
    metric_key,
    now_ms,
    open_run,
    send,
    uri_digest,
)

__all__ = ["MlflowTracker", "replay_unsent", "unsent_records"]

_log = logging.getLogger(__name__)

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 15.0
_BATCH = 1000
"""Metrics that MLflow's REST API takes at once."""
_MOST_MEDIA = 64
"""Pictures and tables that may wait: a hundred megabytes."""


class MlflowTracker:
    """Sends one run's records to MLflow in order, from one thread of its own.

    A send that fails is tried again after 0.5 s, then after twice as long each time up to 15 s, and everything behind
    it waits; only what MLflow refuses for good (a run that somebody deleted, a file that is gone) is given up, and
    said. What cannot be delivered before :meth:`close` gives up is written to ``<home>/unsent`` for
    :func:`replay_unsent`.

    Create it in the process that logs: a thread does not survive a fork.
    """

    def __init__(
        self, store: MlflowStore, address: RunAddress, *, grace_seconds: float = 20.0, system_metrics: bool = False
    ) -> None:
        self._store = store
        self._address = address
        self._grace_seconds = grace_seconds
        self._system_metrics = system_metrics
        self._run_id = address.run_id
        self._queue: deque[Record] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        """Nothing may be logged any more."""
        self._complete = False
        """The last record, the status, is in the queue."""
        self._abandoned = threading.Event()
        """The grace period is over; what is left goes to disk."""
        self._give_up_at = math.inf
        """When the grace period is over, by the monotonic clock."""
        self._refused = 0
        self._problem: str | None = None
        self._sampler: SystemSampler | None = None
        self._report: TrackingReport | None = None
        self._thread = threading.Thread(target=self._deliver, name="thawline-tracking", daemon=True)
        self._thread.start()

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
        """The tracker of a trial, whose run is a child of the study's; a resumed trial goes on in the run it had."""
        address = RunAddress(study, number, run_id=None, parent_run_id=parent_run_id, run_name=run_name)
        return cls(store, address, system_metrics=system_metrics, grace_seconds=grace_seconds)

    @classmethod
    def for_study(cls, store: MlflowStore, *, run_id: str, study: str, grace_seconds: float = 20.0) -> "MlflowTracker":
        """The tracker of the study's own run, which :func:`~thawline.tracking.mlflow.start_study_run` has started."""
        address = RunAddress(study, None, run_id=run_id, parent_run_id=None, run_name=study)
        return cls(store, address, grace_seconds=grace_seconds)

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run; ``None`` until the server has been reached for the first time."""
        return self._run_id

    def log_params(self, params: Mapping[str, str]) -> None:
        """See :class:`Tracker`. A parameter that has another value already keeps it; the new one becomes a tag."""
        self._put({"kind": "params", "params": dict(params)})

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """See :class:`Tracker`. ``mlflow.note.content`` is the description that the UI shows, in Markdown."""
        self._put({"kind": "tags", "tags": dict(tags)})

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, timestamp_ms: int | None = None) -> None:
        """See :class:`Tracker`. NaN and infinite values, which break MLflow's charts, become a tag instead."""
        timestamp = now_ms() if timestamp_ms is None else timestamp_ms
        finite = [
            [metric_key(name), float(value), timestamp, step] for name, value in metrics.items() if math.isfinite(value)
        ]
        if finite:
            self._put({"kind": "metrics", "metrics": finite})
        broken = [f"{name} = {value} at step {step}" for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            self._put({"kind": "tags", "tags": {"thawline.not_finite": "; ".join(broken)}})

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """See :class:`Tracker`. The file is read when it is sent, so it must stay until :meth:`close`."""
        self._put({"kind": "artifact", "path": str(path.absolute()), "folder": folder})

    def log_text(self, text: str, file: str) -> None:
        """Record a text as the artifact ``file``, such as ``config.yaml``."""
        self._put({"kind": "text", "text": text, "file": file})

    def log_media(self, name: str, media: Media, *, step: int) -> None:
        """See :class:`Tracker`: pictures for the slider over steps, tables, and figures as files.

        A table or a figure takes the place of the one of an earlier step. While MLflow does not answer, 64 pictures and
        tables wait; further ones are given up.
        """
        record = media_record(metric_key(name), media, step=step, timestamp=now_ms())
        if record is None:
            return
        with self._changed:
            if sum(each["kind"] in MEDIA_KINDS for each in self._queue) < _MOST_MEDIA:
                self._put(record)
            else:
                self._refused += 1
                self._problem = self._problem or "MLflow is too slow; not all pictures and tables were recorded"

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
        """See :meth:`CompositeTracker.log_checkpoint`: a logged model, which MLflow's models page compares with others.

        Name and digest of the dataset are those given to :meth:`log_dataset`; what is not finite is left out.
        """
        finite = {metric_key(key): float(value) for key, value in metrics.items() if math.isfinite(value)}
        self._put(
            {
                "kind": "checkpoint",
                "path": str(path.absolute()),
                "name": name,
                "epoch": epoch,
                "metrics": finite,
                "timestamp": now_ms(),
                "dataset": None if dataset is None else [dataset[0][:500], dataset[1][:36]],
                "params": {metric_key(key): str(value) for key, value in (params or {}).items()},
            }
        )

    def log_dataset(
        self, *, name: str, digest: str, source: Path, profile: Mapping[str, int] | None = None, context: str = "train"
    ) -> None:
        """Record what is trained on as MLflow's dataset input.

        Args:
            name: shown in the UI.
            digest: the manifest's; MLflow keeps 36 characters.
            source: the data folder.
            profile: counts to show beside it, such as examples per split.
            context: what the run did with it.
        """
        self._put(
            {
                "kind": "dataset",
                "name": name[:500],
                "digest": digest[:36],
                "source": json.dumps({"uri": source.absolute().as_uri()}),
                "profile": json.dumps(dict(profile or {})),
                "context": context,
            }
        )

    def begin_close(self, status: RunStatus) -> None:
        """Say how the run ended and that nothing more comes; the grace period begins."""
        if self._complete:
            return
        with self._changed:
            self._closing.set()
            sampler = self._sampler
        if sampler is not None:
            sampler.stop()
        self._give_up_at = time.monotonic() + self._grace_seconds
        with self._changed:
            self._queue.append({"kind": "status", "status": status, "end_time": now_ms()})
            self._complete = True
            self._changed.notify_all()

    def close(self, status: RunStatus) -> TrackingReport:
        """See :class:`Tracker`. Waits until the grace period is over at most, then keeps on disk what is left."""
        self.begin_close(status)
        if self._report is None:
            self._thread.join(max(0.0, self._give_up_at - time.monotonic()))
            self._abandoned.set()
            self._report = self._keep_unsent()
        return self._report

    def _put(self, record: Record) -> None:
        with self._changed:
            if self._closing.is_set():
                raise RuntimeError("This tracker is closed; nothing may be logged any more.")
            self._queue.append(record)
            self._changed.notify_all()

    def _put_system_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        with self._changed:
            if not self._closing.is_set():  # the sampler has a thread of its own and may just be measuring
                self.log_metrics(metrics, step=step)

    def _deliver(self) -> None:
        hold_back_connection_warnings()
        delay, singly = _FIRST_DELAY, False
        while not self._abandoned.is_set():
            count = 0
            try:
                run_id = self._connect()
                with self._changed:
                    self._changed.wait_for(lambda: self._queue or self._complete)
                    count, record = _head(self._queue, 1 if singly else _BATCH)
                if count == 0:
                    return
                send(self._store.client, run_id, record)
                self._pop(count)
                delay, singly = _FIRST_DELAY, False
            except Exception as error:  # the network, the server, the disk: training goes on
                _log.debug("sending to MLflow failed", exc_info=True)
                self._problem = self._problem or f"MLflow: {first_line(error)}"
                if count and is_permanent(error):
                    # One refused record must not take along those that were sent with it, nor those behind it.
                    if count == 1:
                        self._refused += 1
                        self._pop(1)
                    singly = True
                    continue
                # close() ends a long wait at once, and from then on time is short.
                (self._abandoned if self._closing.is_set() else self._closing).wait(delay)
                delay = min(2 * delay, 1.0 if self._closing.is_set() else _LONGEST_DELAY)

    def _connect(self) -> str:
        """Find or create the run, and begin to measure the machine; once that is done, just the run's id."""
        if self._run_id is None:
            self._run_id = open_run(self._store, self._address)
        if self._system_metrics:
            started_at = self._store.client.get_run(self._run_id).info.start_time / 1000
            self._system_metrics = False
            with self._changed:
                if not self._closing.is_set():
                    self._sampler = SystemSampler(self._put_system_metrics, started_at=started_at)
        return self._run_id

    def _pop(self, count: int) -> None:
        with self._changed:
            if not self._abandoned.is_set():
                for _ in range(count):
                    self._queue.popleft()

    def _keep_unsent(self) -> TrackingReport:
        with self._changed:
            left = list(self._queue)
        if not left:
            return TrackingReport(unsent=self._refused, problem=self._problem)
        problem = self._problem or f"MLflow did not answer within {self._grace_seconds:g} s"
        trial = "study" if self._address.trial is None else f"{self._address.trial:03d}"
        path = self._store.home / "unsent" / f"{self._address.study}-{trial}.jsonl"
        try:
            _append_atomically(
                path,
                [
                    {
                        "store": uri_digest(self._store.uri),
                        "experiment_id": self._store.experiment_id,
                        "run": {**asdict(self._address), "run_id": self._run_id},
                        "record": record,
                    }
                    for record in left
                ],
            )
        except OSError as error:
            return TrackingReport(len(left) + self._refused, None, f"{problem}; and {path} cannot be written: {error}")
        return TrackingReport(len(left) + self._refused, path, problem)


def replay_unsent(store: MlflowStore) -> int:
    """Send what earlier trackers of this store had to keep; returns the number of records sent.

    A file is removed when all of it is delivered or refused for good; it stays, for the next start, if the store fails
    again. Nothing is raised: this is a second attempt, not a condition for training.
    """
    sent = 0
    for path in sorted((store.home / "unsent").glob("*.jsonl")):
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if any(line["store"] != uri_digest(store.uri) for line in lines):
                continue
            run_ids: dict[RunAddress, str] = {}
            for line in lines:
                there = MlflowStore(store.uri, store.registry_uri, line["experiment_id"], store.home)
                address = RunAddress(**line["run"])
                try:
                    if address not in run_ids:
                        run_ids[address] = open_run(there, address)
                    send(there.client, run_ids[address], line["record"])
                    sent += 1
                except Exception as error:
                    if not is_permanent(error):
                        raise
                    _log.debug("given up: %s", first_line(error))
            path.unlink()
        except Exception:  # a store that fails again, or a file that is no longer ours
            _log.debug("%s is kept", path, exc_info=True)
    return sent


def unsent_records(store: MlflowStore, study: str) -> int:
    """How many records of a study wait in Thawline's home for this store."""
    waiting = 0
    for path in (store.home / "unsent").glob(f"{study}-*.jsonl"):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        waiting += sum(line["store"] == uri_digest(store.uri) and line["run"]["study"] == study for line in lines)
    return waiting


def _head(queue: deque[Record], limit: int) -> tuple[int, Record]:
    """How many records from the front go together, and the record they make: metrics that wait are sent as one."""
    if not queue:
        return 0, {}
    first = queue[0]
    if first["kind"] != "metrics":
        return 1, first
    metrics: list[Any] = []
    count = 0
    for record in islice(queue, limit):
        if record["kind"] != "metrics" or (count and len(metrics) + len(record["metrics"]) > _BATCH):
            break
        metrics += record["metrics"]
        count += 1
    return count, {"kind": "metrics", "metrics": metrics}


def _append_atomically(path: Path, lines: list[dict[str, Any]]) -> None:
    """Add JSON lines to a file; a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(before + "".join(json.dumps(line, default=as_json) + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
