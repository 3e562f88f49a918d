"""Several trackers as one, those of a run, and where results come from."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from thawline.config import TrackingConfig
from thawline.exceptions import ConfigError
from thawline.tracking import (
    CompositeTracker,
    MlflowStore,
    RunStatus,
    TrackerRun,
    TrackingReport,
    check_trackers,
    find_trial_run,
    git_state,
    library_versions,
    open_trackers,
    run_status,
    start_study_run,
)


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


def test_a_checkpoint_is_one_to_those_that_know_what_that_is_and_a_file_to_the_others() -> None:
    class Keeper(Recorder):
        def log_checkpoint(self, path: Path, **what: object) -> None:
            self._keep((path, what))

    keeper, other = Keeper(), Recorder()
    both = CompositeTracker([keeper, other])
    what = {"name": "trial-07", "epoch": 3, "metrics": {"val/loss": 0.5}, "dataset": ("d", "0"), "params": {"a": "1"}}
    both.log_checkpoint(Path("best.safetensors"), **what)
    assert keeper.calls == [(Path("best.safetensors"), what)]
    assert other.calls == [(Path("best.safetensors"), "checkpoints")]


# -------------------------------------------------------------------------------------------------- a run's trackers


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package whose trackers are ``memory``, and ``broken``, which cannot be imported."""
    described = tmp_path / "site" / "elsewhere-1.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(
        "[thawline.trackers]\nmemory = elsewhere:Kept\nbroken = elsewhere_that_is_missing:Tracker\n"
    )
    (tmp_path / "site" / "elsewhere.py").write_text(
        "from thawline.testing import MemoryTracker\n"
        "made = []\n"
        "class Kept(MemoryTracker):\n"
        "    def __init__(self, run):\n"
        "        super().__init__(run)\n"
        "        made.append(self)\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "elsewhere", raising=False)


@pytest.mark.usefixtures("installed")
def test_plugins_are_checked_by_name_before_anything_else() -> None:
    check_trackers(TrackingConfig())
    check_trackers(TrackingConfig(plugins=("memory",)))
    with pytest.raises(ConfigError, match=r"tracking\.plugins names 'memry'.*available: broken, memory\."):
        check_trackers(TrackingConfig(plugins=("memory", "memry")))
    with pytest.raises(ConfigError, match=r"'broken' of tracking\.plugins cannot be imported: No module"):
        check_trackers(TrackingConfig(plugins=("broken",)))


@pytest.mark.usefixtures("installed")
def test_a_trial_is_recorded_by_all_that_the_configuration_names(store: MlflowStore) -> None:
    parent = start_study_run(store, study="birds", params={}, tags={})
    run = TrackerRun(store.home, "birds", 7, "trial-07 depth=3", parent, "accuracy")
    config = TrackingConfig(system_metrics=False, plugins=("memory", "broken", "missing"))
    import torch.utils.tensorboard  # noqa: F401  may take as long as a tracker has at its end

    mlflow, tracker = open_trackers(run, config, store)
    tracker.log_metrics({"val/accuracy": 0.5}, step=1)
    report = tracker.close("FINISHED")

    trial = store.client.get_run(mlflow.run_id)
    assert trial.data.metrics == {"val/accuracy": 0.5}
    assert (trial.info.run_name, trial.info.status) == ("trial-07 depth=3", "FINISHED")
    assert mlflow.run_id == find_trial_run(store, parent_run_id=parent, number=7)
    (kept,) = sys.modules["elsewhere"].made
    assert kept.run == run
    assert kept.status == "FINISHED"
    assert list(kept.metrics) == ["val/accuracy"]
    assert (store.home / "studies" / "birds" / "trial-007" / "history.csv").is_file()
    assert list((store.home / "tensorboard" / "birds" / "trial-07 depth=3").glob("events.*"))
    assert not (store.home / "wandb").exists()
    # A plugin that is missing where the trial trains is reported, and stops nothing.
    assert report.unsent == 4
    assert report.problem == "broken: No module named 'elsewhere_that_is_missing'"


def test_what_is_switched_off_is_not_written_and_the_study_has_no_table_of_epochs(store: MlflowStore) -> None:
    parent = start_study_run(store, study="birds", params={}, tags={})
    run = TrackerRun(store.home, "birds", None, "birds", parent, "accuracy")
    mlflow, tracker = open_trackers(run, TrackingConfig(tensorboard=False), store)
    tracker.log_metrics({"best/accuracy": 0.5}, step=1)
    assert tracker.close("FINISHED") == TrackingReport()
    assert mlflow.run_id == parent
    assert store.client.get_run(parent).data.metrics == {"best/accuracy": 0.5}
    assert not (store.home / "studies").exists()
    assert not (store.home / "tensorboard").exists()


# --------------------------------------------------------------------------------------------------------------------


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
