"""A minimal tracker, and tests that every tracker must pass."""

# ruff: noqa: S101  these are pytest tests, which use asserts
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from thawline.tracking import BackgroundTracker, RunStatus, Tracker, TrackerRun, TrackingReport
from thawline.tracking.media import (
    Embedding,
    Figure,
    Graph,
    GraphNode,
    Histogram,
    Image,
    Media,
    Mesh,
    Predictions,
    Table,
)

__all__ = ["MemoryTracker", "TrackerContract"]


class MemoryTracker:
    """Keeps everything in memory; for tests, and as a minimal example of a plugin.

    The class itself is the factory for the tracker of a run, so an entry point can name it::

        [project.entry-points."thawline.trackers"]
        memory = "thawline.testing:MemoryTracker"
    """

    def __init__(self, run: TrackerRun | None = None) -> None:
        self.run = run
        self.params: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.metrics: dict[str, dict[tuple[int, int | None], float]] = {}
        """By name, then by step and time, so that repeated records are one entry."""
        self.media: list[tuple[str, Media, int]] = []
        """Name, value and step."""
        self.texts: dict[str, str] = {}
        self.artifacts: list[tuple[Path, str]] = []
        """Path and folder."""
        self.status: RunStatus | None = None

    def log_params(self, params: Mapping[str, str]) -> None:
        """See :class:`~thawline.tracking.Tracker`."""
        self._check_open()
        self.params |= params

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """See :class:`~thawline.tracking.Tracker`."""
        self._check_open()
        self.tags |= tags

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, timestamp_ms: int | None = None) -> None:
        """See :class:`~thawline.tracking.Tracker`."""
        self._check_open()
        for name, value in metrics.items():
            self.metrics.setdefault(name, {})[step, timestamp_ms] = value

    def log_media(self, name: str, media: Media, *, step: int) -> None:
        """See :class:`~thawline.tracking.Tracker`."""
        self._check_open()
        self.media.append((name, media, step))

    def log_text(self, text: str, file: str) -> None:
        """See :class:`~thawline.tracking.Tracker`."""
        self._check_open()
        self.texts[file] = text

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """See :class:`~thawline.tracking.Tracker`."""
        self._check_open()
        self.artifacts.append((path, folder))

    def close(self, status: RunStatus) -> TrackingReport:
        """See :class:`~thawline.tracking.Tracker`."""
        self.status = self.status or status
        return TrackingReport()

    def _check_open(self) -> None:
        if self.status is not None:
            raise RuntimeError("This tracker is closed and cannot log anything.")


class TrackerContract(ABC):
    """The contract of trackers; a subclass defines how to create one and how to read its values back.

    ::

        pytest.register_assert_rewrite("thawline.testing.trackers")  # before it is imported

        class TestMyTracker(TrackerContract):
            def make(self, folder):
                return MyTracker(folder)

            def read_metrics(self, folder):
                return {"val/accuracy": [(1, 0.5)]}  # the written values, read back

    Trackers are opened as in a search: in a separate thread, which also keeps their exceptions away from training.
    """

    @abstractmethod
    def make(self, folder: Path) -> Tracker:
        """A tracker that writes to ``folder``, which may not exist yet; the same folder means the same run."""

    @abstractmethod
    def read_metrics(self, folder: Path) -> Mapping[str, Sequence[tuple[int, float]]]:
        """Written steps and values by name, sorted by step.

        Names may differ from the given ones if the backend does not accept those. Duplicate records that users see as
        one point must be returned once.
        """

    def break_backend(self, folder: Path) -> bool:
        """Make all writes to ``folder`` fail; return False if writes cannot fail.

        By default, a file takes the place of the folder.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.write_text("not a folder")
        return True

    def open(self, folder: Path) -> Tracker:
        """The tracker as the search uses it."""
        return BackgroundTracker(lambda: self.make(folder), name="the tracker", grace_seconds=120.0)

    def test_metrics_are_there_by_name_and_step_and_a_repeated_record_is_one(self, tmp_path: Path) -> None:
        """Also if a metric starts later than others, and if two trackers write in sequence."""
        first = self.open(tmp_path / "run")
        first.log_params({"freeze_depth": "3", "learning_rate": "0.001"})
        first.log_metrics({"val/accuracy": 0.25, "train/loss": 2.0}, step=1, timestamp_ms=1_700_000_000_000)
        first.log_metrics({"val/accuracy": 0.25, "train/loss": 2.0}, step=1, timestamp_ms=1_700_000_000_000)
        first.log_metrics({"val/accuracy": 0.5}, step=2, timestamp_ms=1_700_000_001_000)
        assert first.close("FAILED") == TrackingReport()
        resumed = self.open(tmp_path / "run")
        resumed.log_params({"freeze_depth": "3", "learning_rate": "0.001"})
        resumed.log_metrics({"val/accuracy": 0.75, "val/loss": 0.125}, step=3, timestamp_ms=1_700_000_002_000)
        assert resumed.close("FINISHED") == TrackingReport()
        metrics = self.read_metrics(tmp_path / "run")
        assert metrics["val/accuracy"] == [(1, 0.25), (2, 0.5), (3, 0.75)]
        assert metrics["train/loss"] == [(1, 2.0)]
        assert metrics["val/loss"] == [(3, 0.125)]

    def test_everything_else_is_taken_and_breaks_nothing(self, tmp_path: Path) -> None:
        """Values and names of every kind, and non-finite numbers."""
        file = tmp_path / "checkpoint.safetensors"
        file.write_bytes(b"weights")
        tracker = self.open(tmp_path / "run")
        tracker.log_params({"train.optimizer": "adamw", "odd name & more": ""})
        tracker.log_tags({"mlflow.note.content": "# Note", "odd name & more": "é" * 9000})
        tracker.log_metrics({"train/loss": float("nan"), "val/loss": float("inf"), "val/accuracy": 0.5}, step=1)
        odd = {f"val_recall/{name}": 2.0**-i for i, name in enumerate(_CLASS_NAMES, 2)}
        tracker.log_metrics(odd, step=1)
        for number, media in enumerate(_media()):
            # Half of the names in turn: if too many media are queued for a slow tracker, the last are dropped.
            odd_names = (f"validation/{name}" for name in _CLASS_NAMES[number % 2 :: 2])
            for name in (type(media).__name__.lower(), *odd_names):
                tracker.log_media(name, media, step=1)
        tracker.log_text("name: shapes\n", "config.yaml")
        tracker.log_artifact(file, "checkpoints")
        report = tracker.close("KILLED")
        assert report == TrackingReport()
        metrics = self.read_metrics(tmp_path / "run")
        assert metrics["val/accuracy"] == [(1, 0.5)]
        assert {(1, value) for value in odd.values()} <= {point for points in metrics.values() for point in points}

    def test_after_the_end_nothing_is_recorded_and_it_ends_but_once(self, tmp_path: Path) -> None:
        """Logging raises an error, and closing again changes nothing."""
        tracker = self.open(tmp_path / "run")
        tracker.log_metrics({"val/accuracy": 0.5}, step=1)
        report = tracker.close("FINISHED")
        try:
            tracker.log_metrics({"val/accuracy": 0.75}, step=2)
        except RuntimeError:
            pass
        else:
            raise AssertionError("logging after close must raise RuntimeError")
        assert tracker.close("FAILED") == report == TrackingReport()
        assert self.read_metrics(tmp_path / "run") == {"val/accuracy": [(1, 0.5)]}

    def test_what_cannot_be_written_is_reported_and_nothing_is_raised(self, tmp_path: Path) -> None:
        """For example without a disk or a server."""
        if not self.break_backend(tmp_path / "run"):
            return
        tracker = self.open(tmp_path / "run")
        tracker.log_params({"freeze_depth": "3"})
        tracker.log_metrics({"val/accuracy": 0.5}, step=1)
        tracker.log_media("val/pictures", _media()[0], step=1)
        tracker.log_text("name: shapes\n", "config.yaml")
        assert tracker.close("FINISHED").problem


_CLASS_NAMES = ("T-shirt & top", "café", "..", "a/b", 'quoted "x"', "50 %", "x" * 200)
"""Class names come from folder names, which may contain nearly any character."""


def _media() -> tuple[Media, ...]:
    """A small value of every kind."""
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    labels = np.array([0, 1, 1, 0])
    corners = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.5]])
    nodes = (
        GraphNode("images", "images", (), frozen=True, shape=(3, 8, 8)),
        GraphNode("features/conv", "Conv2d", ("images",), frozen=True, shape=(4, 8, 8)),
        GraphNode("head/fc", "Linear", ("features/conv",), frozen=False),
    )
    return (
        Image(pixels, "a caption"),
        Histogram(np.array([1, 2, 0]), np.array([-1.0, 0.0, 1.0, 2.0])),
        Table({"class": ["a", "b"], "recall": [0.5, None]}),
        Figure('<svg xmlns="http://www.w3.org/2000/svg"/>', "nothing"),
        Predictions(labels, np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]]), ("a", "b")),
        Embedding(np.eye(4), ("a", "b", "b", "a"), np.stack([pixels] * 4)),
        Embedding(np.eye(4), ("a", "b", "b", "a"), texts=("one", "two\n", "three\t3", "")),
        Mesh(corners, np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8), np.array([[0, 1, 2]])),
        Graph(nodes),
    )
