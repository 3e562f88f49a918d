"""The MLflow store, the study's parent run and the tracker of a trial."""

import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from thawline.config import TrackingConfig
from thawline.exceptions import TrackingError
from thawline.tracking import (
    MlflowStore,
    MlflowTracker,
    close_dead_run,
    connect,
    find_trial_run,
    metric_key,
    replay_unsent,
    resolve_uri,
    start_study_run,
)
from thawline.tracking import _delivery as delivery
from thawline.tracking import mlflow as store_module

# ------------------------------------------------------------------------------------------------------------ the store


def test_the_uri_comes_from_the_configuration_then_the_environment_then_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_uri(TrackingConfig(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert resolve_uri(TrackingConfig(), tmp_path) == "http://127.0.0.1:5000"
    assert (
        resolve_uri(TrackingConfig(uri="postgresql+psycopg2://db/mlflow"), tmp_path)
        == "postgresql+psycopg2://db/mlflow"
    )


@pytest.mark.parametrize("uri", ["./mlruns", "mlruns", "file:///tmp/mlruns", "/tmp/mlruns"])  # noqa: S108
def test_a_folder_is_refused_and_the_database_to_use_instead_is_named(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"sqlite:///.*mlflow\.db"):
        resolve_uri(TrackingConfig(uri=uri), tmp_path)


def test_an_unknown_scheme_is_refused_without_showing_its_password(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="must start with one of") as caught:
        resolve_uri(TrackingConfig(uri="ftp://me:secret@host/x"), tmp_path)
    assert "secret" not in str(caught.value)


def test_a_local_store_keeps_its_artifacts_in_home_and_lets_readers_and_a_writer_work_together(
    store: MlflowStore,
) -> None:
    experiment = store.client.get_experiment(store.experiment_id)
    assert experiment.artifact_location == (store.home / "artifacts" / "thawline").as_uri()
    with sqlite3.connect(store.home / "mlflow.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    assert connect(store.uri, home=store.home, experiment="thawline") == store


def test_a_server_that_is_down_at_the_start_is_an_error_with_the_next_step(own_home: Path) -> None:
    with pytest.raises(
        TrackingError, match=r"http://me:\*\*\*@127\.0\.0\.1:9 cannot be reached.*--tracking-uri"
    ) as caught:
        connect("http://me:secret@127.0.0.1:9", home=own_home, experiment="thawline")
    assert "secret" not in str(caught.value)


def test_a_deleted_experiment_is_named_with_the_command_that_restores_it(store: MlflowStore) -> None:
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(TrackingError, match=f"mlflow experiments restore --experiment-id {store.experiment_id}"):
        connect(store.uri, home=store.home, experiment="thawline")


def test_opening_a_store_leaves_the_users_own_tracking_uri_alone(store: MlflowStore) -> None:
    import mlflow

    start_study_run(store, study="s", params={}, tags={})
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert mlflow.get_tracking_uri() != store.uri
    assert mlflow.active_run() is None


# ------------------------------------------------------------------------------------------------------ the study's run


def test_a_study_goes_on_in_its_run_and_a_changed_parameter_becomes_a_tag(store: MlflowStore) -> None:
    first = start_study_run(store, study="birds", params={"study.trials": "5", "seed": "0"}, tags={"a": "1"})
    store.client.set_terminated(first, "FINISHED")
    other = start_study_run(store, study="other", params={}, tags={})
    again = start_study_run(
        store, study="birds", params={"study.trials": "9", "seed": "0", "new": "x"}, tags={"a": "2"}
    )
    assert again == first != other
    run = store.client.get_run(first)
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "birds"
    assert run.data.params == {"study.trials": "5", "seed": "0", "new": "x"}
    assert run.data.tags["thawline.changed.study.trials"] == "9"
    assert "thawline.changed.seed" not in run.data.tags
    assert run.data.tags["a"] == "2"


def test_a_deleted_run_is_not_gone_on_with(store: MlflowStore) -> None:
    first = start_study_run(store, study="birds", params={}, tags={})
    store.client.delete_run(first)
    assert start_study_run(store, study="birds", params={}, tags={}) != first


def test_the_run_that_mlflow_run_made_is_adopted_with_its_experiment(store: MlflowStore) -> None:
    elsewhere = store.client.create_experiment("elsewhere")
    made = store.client.create_run(elsewhere).info.run_id
    there = connect(store.uri, home=store.home, experiment="thawline", adopt_run_id=made)
    assert there.experiment_id == elsewhere
    assert start_study_run(there, study="birds", params={"a": "1"}, tags={}, adopt_run_id=made) == made
    again = there.client.create_run(elsewhere).info.run_id
    assert start_study_run(there, study="birds", params={"a": "1"}, tags={}, adopt_run_id=again) == made
    assert store.client.get_run(again).data.tags["thawline.continues_run"] == made


def test_a_run_to_adopt_that_does_not_exist_is_named(store: MlflowStore) -> None:
    with pytest.raises(TrackingError, match="MLFLOW_RUN_ID names the run 0123"):
        connect(store.uri, home=store.home, experiment="thawline", adopt_run_id="0123")


def test_class_names_of_any_kind_make_metric_names_that_mlflow_takes(store: MlflowStore) -> None:
    run_id = start_study_run(store, study="s", params={}, tags={})
    names = ["test/recall/T-shirt & top", "test/recall/..", "test/recall/café", "a//b", "50 %", "x" * 400]
    for name in names:
        store.client.log_metric(run_id, metric_key(name), 1.0)
    assert len(store.client.get_run(run_id).data.metrics) == len(names)
    assert metric_key("val/accuracy") == "val/accuracy"


# ---------------------------------------------------------------------------------------------------------- the tracker


@pytest.fixture
def parent(store: MlflowStore) -> str:
    return start_study_run(store, study="birds", params={}, tags={})


def tracker_of(store: MlflowStore, parent: str, number: int = 7, **options: object) -> MlflowTracker:
    settings = {"system_metrics": False, **options}
    return MlflowTracker.for_trial(
        store, parent_run_id=parent, study="birds", number=number, run_name=f"trial-{number:02d}", **settings
    )


def history(store: MlflowStore, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in store.client.get_metric_history(run_id, key)]


def test_everything_logged_is_in_the_child_run_and_pruned_is_killed(
    store: MlflowStore, parent: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    tracker = tracker_of(store, parent)
    tracker.log_params({"freeze_depth": "3", "learning_rate": "0.001"})
    tracker.log_tags({"mlflow.note.content": "# Note"})
    tracker.log_metrics({"train/loss": 2.0, "val/accuracy": 0.5}, step=1)
    tracker.log_metrics({"train/loss": float("inf"), "val/accuracy": 0.75}, step=2)
    tracker.log_artifact(tmp_path / "folder", "checkpoints")
    tracker.log_artifact(tmp_path / "b.txt")
    tracker.log_text("x: 1\n", "config.yaml")
    tracker.log_dataset(name="clothing", digest="d" * 64, source=tmp_path, profile={"train": 10})
    report = tracker.close("KILLED")
    assert (report.unsent, report.where, report.problem) == (0, None, None)
    assert tracker.close("FINISHED") is report

    run_id = tracker.run_id
    assert run_id == find_trial_run(store, parent_run_id=parent, number=7)
    run = store.client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.info.run_name == "trial-07"
    assert run.data.params == {"freeze_depth": "3", "learning_rate": "0.001"}
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["mlflow.note.content"] == "# Note"
    assert run.data.tags["thawline.not_finite"] == "train/loss = inf at step 2"
    assert history(store, run_id, "train/loss") == [(1, 2.0)]
    assert history(store, run_id, "val/accuracy") == [(1, 0.5), (2, 0.75)]
    files = {item.path for item in store.client.list_artifacts(run_id)}
    assert files == {"b.txt", "checkpoints", "config.yaml"}
    assert [item.path for item in store.client.list_artifacts(run_id, "checkpoints")] == ["checkpoints/a.txt"]
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("clothing", "d" * 36)
    assert [(tag.key, tag.value) for tag in dataset.tags] == [("mlflow.data.context", "train")]
    with pytest.raises(RuntimeError, match="closed"):
        tracker.log_metrics({"train/loss": 1.0}, step=3)


def test_a_resumed_trial_goes_on_in_the_run_it_had(store: MlflowStore, parent: str) -> None:
    first = tracker_of(store, parent)
    first.log_params({"batch_size": "32"})
    first.log_metrics({"val/accuracy": 0.5}, step=1)
    first.close("FAILED")
    second = tracker_of(store, parent)
    second.log_params({"batch_size": "16"})
    second.log_metrics({"val/accuracy": 0.6}, step=2)
    assert second.close("FINISHED").unsent == 0
    other = tracker_of(store, parent, number=8)
    other.close("FINISHED")
    assert second.run_id == first.run_id != other.run_id
    run = store.client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"batch_size": "32"}
    assert run.data.tags["thawline.changed.batch_size"] == "16"
    assert history(store, first.run_id, "val/accuracy") == [(1, 0.5), (2, 0.6)]


def test_what_is_sent_twice_is_stored_once(store: MlflowStore, parent: str) -> None:
    record = {
        "kind": "metrics",
        "metrics": [["val/accuracy", 0.1, 1_700_000_000_000, 1], ["b", 2.0, 1_700_000_000_000, 1]],
    }
    dataset = {"kind": "dataset", "name": "n", "digest": "d", "source": "{}", "profile": "{}", "context": "train"}
    for _ in range(2):
        store_module.send(store.client, parent, record)
        store_module.send(store.client, parent, dataset)
    assert history(store, parent, "val/accuracy") == [(1, 0.1)]
    assert len(store.client.get_run(parent).inputs.dataset_inputs) == 1


def failing_send(monkeypatch: pytest.MonkeyPatch, fail: threading.Event, tried: threading.Event) -> None:
    """While ``fail`` is set, every second sending breaks after it was stored, every other one before."""
    real = store_module.send
    count = 0

    def send(client: object, run_id: str, record: dict[str, object]) -> None:
        nonlocal count
        if fail.is_set():
            count += 1
            if count % 2 == 0:
                real(client, run_id, record)  # type: ignore[arg-type]
            tried.set()
            raise ConnectionError("the cable was pulled")
        real(client, run_id, record)  # type: ignore[arg-type]

    monkeypatch.setattr(delivery, "send", send)


def test_an_outage_delays_and_neither_loses_nor_doubles(
    store: MlflowStore, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_FIRST_DELAY", 0.01)
    monkeypatch.setattr(delivery, "_LONGEST_DELAY", 0.02)
    fail, tried = threading.Event(), threading.Event()
    failing_send(monkeypatch, fail, tried)
    fail.set()
    tracker = tracker_of(store, parent)
    for step in range(1, 30):
        tracker.log_metrics({"val/accuracy": step / 100}, step=step)
    assert tried.wait(60)
    fail.clear()
    report = tracker.close("FINISHED")
    assert report.unsent == 0
    assert report.problem == "MLflow: the cable was pulled"
    assert history(store, tracker.run_id, "val/accuracy") == [(step, step / 100) for step in range(1, 30)]
    assert store.client.get_run(tracker.run_id).info.status == "FINISHED"


def test_what_cannot_be_sent_is_kept_on_disk_and_sent_at_the_next_start(
    store: MlflowStore, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail, tried = threading.Event(), threading.Event()
    failing_send(monkeypatch, fail, tried)
    fail.set()
    tracker = tracker_of(store, parent, grace_seconds=0.0)
    tracker.log_params({"freeze_depth": "3"})
    tracker.log_metrics({"val/accuracy": 0.5}, step=1)
    assert tried.wait(60)
    report = tracker.close("FINISHED")
    assert report.unsent == 3  # parameters, metrics, status
    assert report.where == store.home / "unsent" / "birds-007.jsonl"
    assert len(report.where.read_text().splitlines()) == 3

    assert replay_unsent(store) == 0  # the store still fails: nothing is lost
    assert report.where.is_file()
    fail.clear()
    assert replay_unsent(store) == 3
    assert not report.where.exists()
    run = store.client.get_run(find_trial_run(store, parent_run_id=parent, number=7))
    assert run.info.status == "FINISHED"
    assert run.data.params == {"freeze_depth": "3"}
    assert history(store, run.info.run_id, "val/accuracy") == [(1, 0.5)]


def test_a_server_that_never_answers_delays_no_one_and_loses_nothing(
    store: MlflowStore, parent: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    down = MlflowStore("http://127.0.0.1:9", "http://127.0.0.1:9", store.experiment_id, store.home)
    with caplog.at_level(logging.WARNING):
        tracker = tracker_of(down, parent, grace_seconds=1.0, system_metrics=True)
        tracker.log_metrics({"val/accuracy": 0.5}, step=1)
        report = tracker.close("FINISHED")
    assert tracker.run_id is None
    assert report.unsent == 2
    assert report.problem == "MLflow: http://127.0.0.1:9 does not answer (Connection refused)"
    assert not caplog.records
    assert capfd.readouterr().err == ""
    # Another store does not take what was meant for this one.
    assert replay_unsent(store) == 0
    assert report.where is not None
    assert report.where.is_file()


def test_a_run_that_somebody_deleted_does_not_hold_up_the_rest(store: MlflowStore, parent: str) -> None:
    tracker = MlflowTracker.for_study(store, run_id=parent, study="birds")
    store.client.delete_run(parent)
    tracker.log_metrics({"a": 1.0}, step=1)
    tracker.log_metrics({"b": 1.0}, step=1)
    report = tracker.close("FINISHED")
    assert report.unsent == 3
    assert report.where is None
    assert "active" in str(report.problem)


def test_a_file_that_is_gone_is_said_and_what_follows_is_sent(store: MlflowStore, parent: str, tmp_path: Path) -> None:
    tracker = tracker_of(store, parent)
    tracker.log_artifact(tmp_path / "gone.txt")
    tracker.log_metrics({"a": 1.0}, step=1)
    report = tracker.close("FINISHED")
    assert report.unsent == 1
    assert "gone.txt" in str(report.problem)
    assert history(store, tracker.run_id, "a") == [(1, 1.0)]


def test_a_full_disk_is_said_and_raises_nothing(store: MlflowStore, parent: str) -> None:
    (store.home / "unsent").write_text("a file where the folder should be")
    down = MlflowStore("http://127.0.0.1:9", "http://127.0.0.1:9", store.experiment_id, store.home)
    tracker = tracker_of(down, parent, grace_seconds=0.0)
    report = tracker.close("FINISHED")
    assert (report.unsent, report.where) == (1, None)
    assert "cannot be written" in str(report.problem)


def test_system_metrics_are_in_the_run_and_stop_with_it(store: MlflowStore, parent: str) -> None:
    tracker = tracker_of(store, parent, system_metrics=True)
    seen = threading.Event()
    put = tracker._put

    def watch(record: dict[str, object]) -> None:
        put(record)
        if record["kind"] == "metrics":
            seen.set()

    tracker._put = watch  # type: ignore[method-assign]
    assert seen.wait(120)
    assert tracker.close("FINISHED").unsent == 0
    metrics = store.client.get_run(tracker.run_id).data.metrics
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("thawline")]


def test_the_run_of_a_killed_process_is_closed_and_an_ended_one_keeps_its_status(
    store: MlflowStore, parent: str
) -> None:
    tracker_of(store, parent, number=1).close("KILLED")
    child = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from thawline.tracking import MlflowStore, MlflowTracker\n"
        "store = MlflowStore(sys.argv[1], sys.argv[1], sys.argv[2], Path(sys.argv[3]))\n"
        "tracker = MlflowTracker.for_trial(store, parent_run_id=sys.argv[4], study='birds', number=2, run_name='t')\n"
        "while tracker.run_id is None: time.sleep(0.05)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    arguments = [store.uri, store.experiment_id, str(store.home), parent]
    died = subprocess.run([sys.executable, "-c", child, *arguments], timeout=300)
    assert died.returncode == -9
    run_id = find_trial_run(store, parent_run_id=parent, number=2)
    assert store.client.get_run(run_id).info.status == "RUNNING"
    assert close_dead_run(store, parent_run_id=parent, number=2, status="FAILED", reason="killed by signal 9") == run_id
    run = store.client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["thawline.reason"] == "killed by signal 9"
    ended = close_dead_run(store, parent_run_id=parent, number=1, status="FAILED")
    assert store.client.get_run(ended).info.status == "KILLED"
    assert close_dead_run(store, parent_run_id=parent, number=99, status="FAILED") is None


def test_what_is_kept_on_disk_shows_no_password(tmp_path: Path) -> None:
    down = MlflowStore("http://me:secret@127.0.0.1:9", "http://me:secret@127.0.0.1:9", "1", tmp_path)
    tracker = tracker_of(down, "p", grace_seconds=0.5)
    report = tracker.close("FINISHED")
    assert report.where is not None
    text = report.where.read_text()
    assert json.loads(text)["record"]["status"] == "FINISHED"
    assert "secret" not in text
    assert "secret" not in str(report.problem)
