"""A trial's history as a CSV table, one row per epoch."""

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from thawline.tracking._base import RunStatus, TrackerRun, TrackingReport
from thawline.tracking.media import Media

__all__ = ["CsvTracker"]

_NOT_BY_EPOCH = ("gradient_step/", "system/")
"""Metrics whose step is an optimizer step or a second."""


class CsvTracker:
    """Writes one trial's metrics to ``<home>/studies/<study>/trial-007/history.csv``, according to RFC 4180.

    The columns are ``epoch`` and the metrics in order of appearance; missing values are empty. The file is always
    complete: after each epoch it is rewritten, which is a matter of kilobytes. A resumed trial appends rows, and
    repeated epochs replace theirs.

    Texts, media and files are ignored.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        """File of the table."""
        self._names: dict[str, None] = {}
        """Columns after the epoch, in order."""
        self._rows: dict[int, dict[str, str]] = {}
        self._unread: str | None = None
        self._unwritten: str | None = None
        self._report: TrackingReport | None = None
        try:
            self._names, self._rows = _read(path)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, csv.Error) as error:
            self._unread = f"{path} could not be read and is rewritten: {_reason(error)}"

    @classmethod
    def for_run(cls, run: TrackerRun) -> "CsvTracker":
        """The tracker of a trial, whose table is beside its checkpoints."""
        assert run.trial is not None, "a study has no epochs"  # noqa: S101  a mistake of ours
        return cls(run.home / "studies" / run.study / f"trial-{run.trial:03d}" / "history.csv")

    def log_params(self, params: Mapping[str, str]) -> None:
        """Do nothing: parameters are the same in every row."""
        self._check_open()

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Do nothing: the table only has numbers."""
        self._check_open()

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, timestamp_ms: int | None = None) -> None:
        """Write the row of an epoch; ignores metrics whose step is not an epoch."""
        self._check_open()
        values = {name: str(float(value)) for name, value in metrics.items() if not name.startswith(_NOT_BY_EPOCH)}
        if values:
            self._names |= dict.fromkeys(values)
            self._rows[step] = self._rows.get(step, {}) | values
            self._write()

    def log_media(self, name: str, media: Media, *, step: int) -> None:
        """Do nothing: the table only has numbers."""
        self._check_open()

    def log_text(self, text: str, file: str) -> None:
        """Do nothing: texts are stored in MLflow."""
        self._check_open()

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Do nothing: files are stored in MLflow."""
        self._check_open()

    def close(self, status: RunStatus) -> TrackingReport:
        """See :class:`Tracker`. A write that failed because the disk was full is retried once."""
        if self._report is None:
            if self._unwritten is not None:
                self._write()
            self._report = TrackingReport(problem=self._unwritten or self._unread)
        return self._report

    def _check_open(self) -> None:
        if self._report is not None:
            raise RuntimeError("This tracker is closed; nothing more can be logged.")

    def _write(self) -> None:
        try:
            _replace(self.path, self._names, self._rows)
        except OSError as error:
            self._unwritten = f"{self.path} could not be written: {_reason(error)}"
        else:
            self._unwritten = None


def _read(path: Path) -> tuple[dict[str, None], dict[int, dict[str, str]]]:
    """Names of the columns, and the existing values by epoch and name."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        first, *names = reader.fieldnames or ["epoch"]
        if first != "epoch":
            raise ValueError(f"its first column is {first!r}, not epoch")
        rows = {int(row.pop("epoch")): {name: str(float(text)) for name, text in row.items() if text} for row in reader}
    return dict.fromkeys(names), rows


def _replace(path: Path, names: Iterable[str], rows: Mapping[int, Mapping[str, str]]) -> None:
    """Write the table atomically: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", *names], restval="")
        writer.writeheader()
        writer.writerows({"epoch": str(epoch), **rows[epoch]} for epoch in sorted(rows))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
