"""What every tracker promises, whatever it writes to; and that none stops training, whatever it does.

A tracker is added here by a subclass of TrackerContract and must pass as it is.
"""

import csv
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from wandb_runs import read_wandb_run, wandb_folders

from thawline.config import TrackingConfig
from thawline.testing import MemoryTracker, TrackerContract
from thawline.tracking import (
    BackgroundTracker,
    CompositeTracker,
    CsvTracker,
    MlflowStore,
    MlflowTracker,
    TensorBoardTracker,
    Tracker,
    TrackerRun,
    TrackingReport,
    WandbTracker,
    find_trial_run,
    start_study_run,
)
from thawline.tracking.media import Image

Points = Mapping[str, Sequence[tuple[int, float]]]


def trial_of(folder: Path) -> TrackerRun:
    return TrackerRun(folder, "shapes", 7, "trial-07", "0123456789abcdef0123456789abcdef", "accuracy")


class TestMemory(TrackerContract):
    @pytest.fixture(autouse=True)
    def kept(self) -> None:
        self.metrics: dict[str, dict[tuple[int, int | None], float]] = {}

    def make(self, folder: Path) -> Tracker:
        tracker = MemoryTracker(trial_of(folder))
        tracker.metrics = self.metrics  # memory that outlives the tracker, as a resumed trial needs it
        return tracker

    def read_metrics(self, folder: Path) -> Points:
        return {name: [(step, value) for (step, _), value in kept.items()] for name, kept in self.metrics.items()}

    def break_backend(self, folder: Path) -> bool:
        return False


class TestMlflow(TrackerContract):
    @pytest.fixture(autouse=True)
    def opened(self, store: MlflowStore) -> None:
        self.store = store
        self.parent = start_study_run(store, study="shapes", params={}, tags={})
        self.grace_seconds = 120.0

    def open(self, folder: Path) -> Tracker:
        return MlflowTracker.for_trial(
            self.store,
            parent_run_id=self.parent,
            study="shapes",
            number=7,
            run_name="trial-07",
            system_metrics=False,
            grace_seconds=self.grace_seconds,
        )

    def read_metrics(self, folder: Path) -> Points:
        client = self.store.client
        run_id = find_trial_run(self.store, parent_run_id=self.parent, number=7)
        assert run_id is not None
        return {
            key: [(point.step, point.value) for point in client.get_metric_history(run_id, key)]
            for key in client.get_run(run_id).data.metrics
        }

    def break_backend(self, folder: Path) -> bool:
        self.store = MlflowStore("http://127.0.0.1:9", "http://127.0.0.1:9", "1", self.store.home)
        self.grace_seconds = 0.5
        return True


class TestTensorBoard(TrackerContract):
    def make(self, folder: Path) -> Tracker:
        return TensorBoardTracker.for_run(trial_of(folder))

    def read_metrics(self, folder: Path) -> Points:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder / "tensorboard" / "shapes" / "trial-07"))
        events.Reload()
        # Two events of the same step and time are drawn as one point.
        points = {
            name: {(e.step, e.wall_time): e.value for e in events.Scalars(name)} for name in events.scalars.Keys()
        }
        return {name: [(step, value) for (step, _), value in found.items()] for name, found in points.items()}


class TestWandb(TrackerContract):
    def make(self, folder: Path) -> Tracker:
        return WandbTracker.for_run(trial_of(folder), TrackingConfig(wandb="offline", system_metrics=False))

    def read_metrics(self, folder: Path) -> Points:
        points: dict[str, list[tuple[int, float]]] = {}
        for written in wandb_folders(folder):  # a resumed trial has one more, of the same run
            for name, found in read_wandb_run(written).metrics.items():
                points[name] = points.get(name, []) + found
        return points


class TestCsv(TrackerContract):
    def make(self, folder: Path) -> Tracker:
        return CsvTracker.for_run(trial_of(folder))

    def read_metrics(self, folder: Path) -> Points:
        points: dict[str, list[tuple[int, float]]] = {}
        with (folder / "studies" / "shapes" / "trial-007" / "history.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                step = int(row.pop("epoch"))
                for name, value in row.items():
                    if value:
                        points.setdefault(name, []).append((step, float(value)))
        return points


# ------------------------------------------------------------------------------------------------- trackers that fail


class Troubled(MemoryTracker):
    """Does to every call what it is told to, before it takes it."""

    def __init__(self, trouble: object = None, at_end: object = None) -> None:
        super().__init__()
        self._trouble, self._at_end = trouble, at_end
        self.entered = threading.Event()

    def _check_open(self) -> None:
        self.entered.set()
        _suffer(self._trouble)
        super()._check_open()

    def close(self, status: object) -> TrackingReport:
        _suffer(self._at_end)
        return super().close(status)  # type: ignore[arg-type]


def _suffer(trouble: object) -> None:
    match trouble:
        case Exception():
            raise trouble
        case threading.Event():
            trouble.wait()
        case threading.Barrier():
            trouble.wait(60)
        case list():
            if trouble and (error := trouble.pop(0)) is not None:
                raise error


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What hanging trackers wait for; they come back when the test is over."""
    event = threading.Event()
    yield event
    event.set()
    for thread in threading.enumerate():
        if thread.name.startswith("thawline-tracking"):
            thread.join(60)


def in_background(tracker: Tracker, grace_seconds: float = 60.0, **limits: int) -> BackgroundTracker:
    return BackgroundTracker(lambda: tracker, name="Troubled", grace_seconds=grace_seconds, **limits)


def train(tracker: Tracker, epochs: int = 3) -> None:
    tracker.log_params({"freeze_depth": "3"})
    for epoch in range(1, epochs + 1):
        tracker.log_metrics({"val/accuracy": epoch / 10}, step=epoch, timestamp_ms=epoch)
        tracker.log_media("val/pictures", Image(np.zeros((2, 2, 3), np.uint8)), step=epoch)


def assert_all_there(tracker: MemoryTracker, epochs: int = 3) -> None:
    assert tracker.params == {"freeze_depth": "3"}
    assert tracker.metrics["val/accuracy"] == {(epoch, epoch): epoch / 10 for epoch in range(1, epochs + 1)}
    assert [step for _, _, step in tracker.media] == list(range(1, epochs + 1))
    assert tracker.status == "FINISHED"


def test_a_tracker_that_raises_is_reported_and_the_others_get_everything() -> None:
    good, bad = MemoryTracker(), Troubled(OSError("disk full"))
    both = CompositeTracker([in_background(bad), in_background(good)])
    train(both)
    report = both.close("FINISHED")
    assert_all_there(good)
    assert (report.unsent, report.problem) == (7, "Troubled: disk full")
    assert bad.status == "FINISHED"  # it was disabled, and still closed


def test_a_tracker_that_hangs_holds_up_neither_training_nor_the_others(release: threading.Event) -> None:
    good, bad = MemoryTracker(), Troubled(release)
    both = CompositeTracker([in_background(bad, grace_seconds=0.1), in_background(good)])
    train(both)
    assert bad.entered.wait(60)
    report = both.close("FINISHED")
    assert_all_there(good)
    assert (report.unsent, report.problem) == (8, "Troubled did not finish within 0.1 s")  # seven calls and the end
    assert bad.status is None


@pytest.mark.parametrize("place", ["start", "end"])
def test_a_tracker_that_hangs_when_it_is_made_or_closed_is_left_behind(place: str, release: threading.Event) -> None:
    def make() -> Tracker:
        if place == "start":
            release.wait()
        return Troubled(at_end=release)

    good = MemoryTracker()
    both = CompositeTracker([BackgroundTracker(make, name="Troubled", grace_seconds=0.1), in_background(good)])
    train(both)
    report = both.close("FINISHED")
    assert_all_there(good)
    assert report.problem == "Troubled did not finish within 0.1 s"
    assert report.unsent


def test_a_tracker_that_cannot_be_made_is_reported() -> None:
    def make() -> Tracker:
        raise ImportError("No module named 'elsewhere'")

    tracker = BackgroundTracker(make, name="Elsewhere")
    train(tracker)
    assert tracker.close("FINISHED") == TrackingReport(8, None, "Elsewhere: No module named 'elsewhere'")


def test_of_what_a_slow_tracker_has_no_room_for_pictures_go_first(
    release: threading.Event,
) -> None:
    slow = Troubled(release)
    tracker = in_background(slow, most_large=2)
    train(tracker, epochs=5)
    release.set()
    report = tracker.close("FINISHED")
    assert len(slow.metrics["val/accuracy"]) == 5
    assert [step for _, _, step in slow.media] == [1, 2]
    assert (report.unsent, report.problem) == (3, "Troubled is too slow; some records were dropped")


def test_memory_is_bounded_whatever_is_logged(release: threading.Event) -> None:
    slow = Troubled(release)
    tracker = in_background(slow, most_records=3)
    train(tracker, epochs=5)
    release.set()
    assert tracker.close("FINISHED").unsent == 8
    assert list(slow.metrics["val/accuracy"]) == [(1, 1)]


def test_a_call_that_fails_costs_that_call_and_five_in_a_row_the_tracker() -> None:
    error = OSError("busy")
    now_and_then = Troubled([error, None] * 6)
    tracker = in_background(now_and_then)
    for step in range(12):
        tracker.log_metrics({"a": 1.0}, step=step, timestamp_ms=step)
    assert tracker.close("FINISHED") == TrackingReport(6, None, "Troubled: busy")
    assert [step for step, _ in now_and_then.metrics["a"]] == [1, 3, 5, 7, 9, 11]

    broken = Troubled([error] * 5)
    tracker = in_background(broken)
    for step in range(12):
        tracker.log_metrics({"a": 1.0}, step=step, timestamp_ms=step)
    assert tracker.close("FINISHED").unsent == 12
    assert broken.metrics == {}


def test_all_trackers_finish_side_by_side() -> None:
    together = threading.Barrier(2)  # each waits at its end until the other is there, too
    first, second = Troubled(at_end=together), Troubled(at_end=together)
    both = CompositeTracker([in_background(first), in_background(second)])
    train(both)
    assert both.close("FINISHED") == TrackingReport()
    assert_all_there(first)
    assert_all_there(second)


def test_what_a_tracker_itself_reports_is_in_the_report() -> None:
    class Reporting(MemoryTracker):
        def close(self, status: object) -> TrackingReport:
            return TrackingReport(2, Path("kept"), "no server")

    tracker = in_background(Reporting())
    assert tracker.close("FINISHED") == TrackingReport(2, Path("kept"), "no server")


def test_a_value_that_a_tracker_has_at_a_step_is_not_recorded_again() -> None:
    kept = MemoryTracker()
    tracker = in_background(kept)
    for at, value in enumerate((0.5, 0.5, 0.75, 0.75)):
        tracker.log_metrics({"best/accuracy": value, "new": 1.0}, step=3, timestamp_ms=at)
    tracker.log_metrics({"best/accuracy": 0.75}, step=4, timestamp_ms=4)
    assert tracker.close("FINISHED") == TrackingReport()
    assert kept.metrics == {"best/accuracy": {(3, 0): 0.5, (3, 2): 0.75, (4, 4): 0.75}, "new": {(3, 0): 1.0}}
