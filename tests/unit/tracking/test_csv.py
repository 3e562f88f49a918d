"""A trial's history as a table: what is in it, and that it survives resumption and a full disk."""

import csv
import errno
import math
import os
from pathlib import Path

import pytest

from thawline.tracking._base import Tracker, TrackerRun, TrackingReport
from thawline.tracking.csv import CsvTracker

RUN = TrackerRun(Path("home"), "shapes", 7, "trial-07", "0123456789abcdef", "accuracy")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trial-007" / "history.csv"


def test_it_lies_beside_the_checkpoints_of_its_trial() -> None:
    assert CsvTracker.for_run(RUN).path == Path("home/studies/shapes/trial-007/history.csv")


def test_every_epoch_is_a_row_at_once_and_numbers_are_read_back_to_the_bit(path: Path) -> None:
    tracker: Tracker = CsvTracker(path)
    tracker.log_metrics({"val/accuracy": 0.1 + 0.2, "train/loss": math.nan}, step=1)
    assert path.read_bytes() == b"epoch,val/accuracy,train/loss\r\n1,0.30000000000000004,nan\r\n"
    tracker.log_metrics({"val/accuracy": 1e-300, 'val_recall/T-shirt, "red"\n': 1 / 3}, step=2)
    assert tracker.close("FINISHED") == TrackingReport()
    first, second = rows(path)
    assert list(second) == ["epoch", "val/accuracy", "train/loss", 'val_recall/T-shirt, "red"\n']
    assert float(second["val/accuracy"]) == 1e-300
    assert float(second['val_recall/T-shirt, "red"\n']) == 1 / 3
    assert first['val_recall/T-shirt, "red"\n'] == second["train/loss"] == ""


def test_what_is_measured_by_step_or_second_is_no_epoch(path: Path) -> None:
    tracker = CsvTracker(path)
    tracker.log_metrics({"gradient_step/head": 1.0, "system/cpu": 50.0}, step=250)
    assert not path.exists()
    tracker.log_metrics({"gradient/head": 1.0, "system/cpu": 50.0}, step=1)
    assert rows(path) == [{"epoch": "1", "gradient/head": "1.0"}]


def test_a_resumed_trial_continues_and_repeated_epochs_replace_their_values(path: Path) -> None:
    first = CsvTracker(path)
    for epoch in (1, 2):
        first.log_metrics({"b": epoch / 10, "a": epoch / 4}, step=epoch)
    first.close("FAILED")
    resumed = CsvTracker(path)
    resumed.log_metrics({"c": 7.0, "b": 0.5}, step=2)
    resumed.log_metrics({"b": 0.75}, step=3)
    assert path.read_text() == "epoch,b,a,c\n1,0.1,0.25,\n2,0.5,0.5,7.0\n3,0.75,,\n"


def test_a_full_disk_costs_the_file_alone_and_what_it_lacked_is_there_with_the_next_epoch(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tracker = CsvTracker(path)
    tracker.log_metrics({"a": 1.0}, step=1)
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        tracker.log_metrics({"a": 2.0}, step=2)
        assert [row["a"] for row in rows(path)] == ["1.0"]
    tracker.log_metrics({"a": 3.0}, step=3)
    assert [row["a"] for row in rows(path)] == ["1.0", "2.0", "3.0"]
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        tracker.log_metrics({"a": 4.0}, step=4)
        report = tracker.close("FINISHED")
    assert report == TrackingReport(problem=f"{path} could not be written: No space left on device")
    assert [row["a"] for row in rows(path)] == ["1.0", "2.0", "3.0"]


@pytest.mark.parametrize(
    "content", ["step,a\n1,2\n", "epoch,a\none,2\n", "epoch,a\n1,good\n", "epoch,a\n1,2,3\n", "\0"]
)
def test_a_file_that_is_no_history_is_rewritten_and_that_is_reported(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    tracker = CsvTracker(path)
    tracker.log_metrics({"b": 1.0}, step=1)
    assert rows(path) == [{"epoch": "1", "b": "1.0"}]
    problem = tracker.close("FINISHED").problem
    assert problem is not None
    assert problem.startswith(f"{path} could not be read and is rewritten: ")


def test_after_the_end_nothing_is_taken_and_closing_again_changes_nothing(path: Path) -> None:
    tracker = CsvTracker(path)
    report = tracker.close("FINISHED")
    assert not path.exists()
    with pytest.raises(RuntimeError, match="closed"):
        tracker.log_metrics({"a": 1.0}, step=1)
    assert tracker.close("FAILED") is report
