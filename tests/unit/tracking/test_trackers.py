"""TensorBoard, several trackers as one, and where results come from."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from thawline.tracking import (
    CompositeTracker,
    TensorBoardTracker,
    TrackingReport,
    git_state,
    library_versions,
    run_status,
)
from thawline.tracking._base import RunStatus, Tracker


class Recorder:
    """A tracker that keeps what it is given, and fails where it is told to."""

    def __init__(self, broken: bool = False) -> None:
        self.calls: list[object] = []
        self.broken = broken

    def _keep(self, call: object) -> None:
        if self.broken:
            raise OSError("disk full")
        self.calls.append(call)

    def log_params(self, params: Mapping[str, str]) -> None:
        self._keep(dict(params))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        self._keep(dict(tags))

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, timestamp_ms: int | None = None) -> None:
        self._keep((dict(metrics), step, timestamp_ms))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        self._keep((path, folder))

    def close(self, status: RunStatus) -> TrackingReport:
        self._keep(status)
        return TrackingReport(unsent=1, where=Path("x"))


def test_a_tracker_that_fails_stops_neither_training_nor_the_others() -> None:
    good, broken = Recorder(), Recorder(broken=True)
    both = CompositeTracker([broken, good])
    both.log_params({"a": "1"})
    both.log_tags({"b": "2"})
    both.log_metrics({"c": 3.0}, step=1, timestamp_ms=5)
    both.log_artifact(Path("f"))
    report = both.close("FINISHED")
    assert good.calls == [{"a": "1"}, {"b": "2"}, ({"c": 3.0}, 1, 5), (Path("f"), ""), "FINISHED"]
    assert report == TrackingReport(unsent=1, where=Path("x"), problem="Recorder: OSError: disk full")
    assert both.close("FAILED") is report
    assert CompositeTracker([good]).close("FINISHED").problem is None


def test_tensorboard_holds_scalars_by_epoch_and_hyperparameters(tmp_path: Path) -> None:
    tracker: Tracker = TensorBoardTracker.for_trial(tmp_path, study="birds", number=7)
    tracker.log_params({"freeze_depth": "3", "optimizer": "adamw"})
    for epoch in (1, 2):
        tracker.log_metrics({"val/accuracy": epoch / 4, "train/loss": float("nan")}, step=epoch)
    tracker.log_artifact(tmp_path)
    assert tracker.close("KILLED") == TrackingReport()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "tensorboard" / "birds" / "trial-007"
    assert [path for path in folder.iterdir() if path.is_dir()] == []
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("val/accuracy")] == [(1, 0.25), (2, 0.5)]
    assert events.Scalars("hparam/val/accuracy")[0].value == 0.5
    summary = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"freeze_depth" in summary
    assert b"KILLED" in summary


@pytest.mark.parametrize(("state", "status"), [("complete", "FINISHED"), ("pruned", "KILLED"), ("failed", "FAILED")])
def test_a_pruned_trial_is_killed_and_a_failed_one_failed(state: str, status: str) -> None:
    assert run_status(state) == status  # type: ignore[arg-type]


def test_the_commit_and_whether_it_was_changed_are_known_and_outside_a_repository_nothing_is(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init")
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    (tmp_path / "untracked").write_text("1")
    state = git_state(tmp_path)
    assert state is not None
    assert len(state.commit) == 40
    assert not state.dirty
    (tmp_path / "a").write_text("2")
    changed = git_state(tmp_path)
    assert changed is not None
    assert changed.dirty


def test_without_git_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(Path(__file__).parent) is None


def test_versions_of_all_that_changes_results_are_known() -> None:
    versions = library_versions()
    assert {"python", "torch", "torchvision", "mlflow", "optuna", "thawline"} <= set(versions)
