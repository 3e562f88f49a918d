"""The MLflow store, the study's parent run and the tracker of a trial."""

import dataclasses
import hashlib
import json
import logging
import os
import re
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Forks
from PIL import Image as Pillow

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
    unsent_records,
)
from thawline.tracking._records import Checkpoint, Dataset, Metrics, Record
from thawline.tracking.media import Figure, Histogram, Image, Table
from thawline.tracking.mlflow import unsent
from thawline.tracking.mlflow.files import file_of
from thawline.tracking.mlflow.runs import RunAddress
from thawline.tracking.mlflow.store import uri_digest
from thawline.tracking.mlflow.writer import RunWriter

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


def test_a_study_resumes_in_its_run_and_a_changed_parameter_becomes_a_tag(store: MlflowStore) -> None:
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


def test_a_deleted_run_is_not_resumed(store: MlflowStore) -> None:
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
    with pytest.raises(TrackingError, match="MLFLOW_RUN_ID is the run 0123"):
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


def tracker_of(store: MlflowStore, parent: str, number: int = 7, **options: Any) -> MlflowTracker:
    return MlflowTracker(store, RunAddress("birds", number, None, parent, f"trial-{number:02d}"), **options)


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


def test_a_resumed_trial_continues_in_the_run_it_had(store: MlflowStore, parent: str) -> None:
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
    metrics = Metrics(1_700_000_000_000, {"val/accuracy": 0.1, "b": 2.0}, 1)
    dataset = Dataset(1_700_000_000_000, "n", "d", source="{}", profile="{}", context="train")
    for _ in range(2):
        RunWriter(store.client, parent).write([metrics])
        RunWriter(store.client, parent).write([dataset])
    assert history(store, parent, "val/accuracy") == [(1, 0.1)]
    assert len(store.client.get_run(parent).inputs.dataset_inputs) == 1


def failing_send(monkeypatch: pytest.MonkeyPatch, fail: threading.Event, tried: threading.Event) -> None:
    """While ``fail`` is set, every second sending breaks after it was stored, every other one before."""
    real = RunWriter.write
    count = 0

    def write(writer: RunWriter, records: Sequence[Record]) -> None:
        nonlocal count
        if fail.is_set():
            count += 1
            if count % 2 == 0:
                real(writer, records)
            tried.set()
            raise ConnectionError("the cable was pulled")
        real(writer, records)

    monkeypatch.setattr(RunWriter, "write", write)


def test_an_outage_delays_and_neither_loses_nor_doubles(
    store: MlflowStore, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail, tried = threading.Event(), threading.Event()
    failing_send(monkeypatch, fail, tried)
    fail.set()
    tracker = tracker_of(store, parent, pauses=(0.01, 0.02))
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


def kept_trials(store: MlflowStore, parent: str, count: int) -> None:
    """Records of so many trials that could not be sent."""
    down = dataclasses.replace(store, uri="http://127.0.0.1:9", registry_uri="http://127.0.0.1:9")
    for number in range(count):
        tracker = tracker_of(down, parent, number, grace_seconds=0.0)
        tracker.log_metrics({"val/accuracy": 0.5}, step=1)
        where = tracker.close("FINISHED").where
        assert where is not None
        where.write_text(where.read_text().replace(uri_digest(down.uri), uri_digest(store.uri)))


def test_two_searches_that_start_at_once_send_every_record_once(
    store: MlflowStore, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_trials(store, parent, 3)
    begun, go_on, sent = threading.Event(), threading.Event(), list[int]()
    opens = unsent.open_run

    def slow(*arguments: Any, **options: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return opens(*arguments, **options)

    monkeypatch.setattr(unsent, "open_run", slow)
    first = threading.Thread(target=lambda: sent.append(replay_unsent(store)))
    first.start()
    assert begun.wait(60)
    assert replay_unsent(store) == 0, "the other one is sending"
    go_on.set()
    first.join(60)
    assert sent == [6]
    assert replay_unsent(store) == 0
    trials = store.client.search_runs([store.experiment_id], f"tags.mlflow.parentRunId = '{parent}'")
    assert len(trials) == 3


def test_what_is_kept_while_earlier_records_are_sent_stays_until_it_is_sent(
    store: MlflowStore, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_trials(store, parent, 1)
    (path,) = (store.home / "unsent").glob("*.jsonl")
    lines = path.read_text()
    write = RunWriter.write

    def writing(self: RunWriter, records: Any) -> None:
        write(self, records)
        if path.read_text() == lines:  # once
            unsent._append_atomically(path, [json.loads(lines.splitlines()[0])])

    monkeypatch.setattr(RunWriter, "write", writing)
    assert replay_unsent(store) == 2
    assert len(path.read_text().splitlines()) == 1
    assert replay_unsent(store) == 1
    assert not path.exists()


def test_records_are_those_of_a_store_whatever_its_password(store: MlflowStore, parent: str) -> None:
    old, new = (
        dataclasses.replace(store, uri=f"http://me:{password}@127.0.0.1:9", registry_uri="http://127.0.0.1:9")
        for password in ("old", "new")
    )
    report = tracker_of(old, parent, grace_seconds=0.0).close("FINISHED")
    assert report.where is not None
    assert unsent_records(new, "birds") == unsent_records(old, "birds") == 1
    by_password = hashlib.sha256(old.uri.encode()).hexdigest()[:16]  # as version 0.2.0 wrote it
    report.where.write_text(report.where.read_text().replace(uri_digest(old.uri), by_password))
    assert (unsent_records(old, "birds"), unsent_records(new, "birds")) == (1, 0)


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


def test_trials_that_end_all_at_once_are_recorded_within_their_grace(store: MlflowStore, parent: str) -> None:
    trackers = [tracker_of(store, parent, number) for number in range(30)]
    for step in range(10):
        for each in trackers:
            each.log_params({f"step {step}": "done"})
            each.log_tags({f"step {step}": "done"})
            each.log_metrics({"val/accuracy": step / 10}, step=step)
    reports = [each.close("FINISHED") for each in trackers]
    assert [report.unsent for report in reports] == [0] * 30
    assert [report.problem for report in reports] == [None] * 30
    runs = [store.client.get_run(str(each.run_id)) for each in trackers]
    assert {(run.data.metrics["val/accuracy"], run.info.status) for run in runs} == {(0.9, "FINISHED")}


def test_a_run_that_somebody_deleted_does_not_hold_up_the_rest(store: MlflowStore, parent: str) -> None:
    tracker = MlflowTracker.for_study(store, run_id=parent, study="birds")
    store.client.delete_run(parent)
    tracker.log_metrics({"a": 1.0}, step=1)
    tracker.log_metrics({"b": 1.0}, step=1)
    report = tracker.close("FINISHED")
    assert report.unsent == 3
    assert report.where is None
    assert "active" in str(report.problem)


def test_a_file_that_is_gone_is_reported_and_what_follows_is_sent(
    store: MlflowStore, parent: str, tmp_path: Path
) -> None:
    tracker = tracker_of(store, parent)
    tracker.log_artifact(tmp_path / "gone.txt")
    tracker.log_metrics({"a": 1.0}, step=1)
    report = tracker.close("FINISHED")
    assert report.unsent == 1
    assert "gone.txt" in str(report.problem)
    assert history(store, tracker.run_id, "a") == [(1, 1.0)]


def test_a_full_disk_is_reported_and_raises_nothing(store: MlflowStore, parent: str) -> None:
    (store.home / "unsent").write_text("a file where the folder should be")
    down = MlflowStore("http://127.0.0.1:9", "http://127.0.0.1:9", store.experiment_id, store.home)
    tracker = tracker_of(down, parent, grace_seconds=0.0)
    report = tracker.close("FINISHED")
    assert (report.unsent, report.where) == (1, None)
    assert "cannot be written" in str(report.problem)


def test_system_metrics_are_in_the_run_and_stop_with_it(store: MlflowStore, parent: str) -> None:
    of_others = set(threading.enumerate())
    tracker = tracker_of(store, parent, system_metrics=True)
    seen = threading.Event()
    put = tracker._put

    def watch(record: Record) -> bool:
        if isinstance(record, Metrics):
            seen.set()
        return put(record)

    tracker._put = watch  # type: ignore[method-assign]
    assert seen.wait(120)
    assert tracker.close("FINISHED").unsent == 0
    metrics = store.client.get_run(tracker.run_id).data.metrics
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    left = set(threading.enumerate()) - of_others
    assert not [thread.name for thread in left if thread.name.startswith("thawline")]


@pytest.mark.xdist_group("postgres")  # on whose worker there is a first process already
def test_the_run_of_a_killed_process_is_closed_and_an_ended_one_keeps_its_status(
    store: MlflowStore, parent: str, first_process: Forks
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
    assert first_process.run(["-c", child, *arguments], os.environ, store.home)[0] == -9
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


# ------------------------------------------------------------------------------------ pictures, tables, and checkpoints


def files_of(store: MlflowStore, run_id: str | None, folder: str) -> list[str]:
    return sorted(item.path for item in store.client.list_artifacts(run_id, folder))


def text_of(store: MlflowStore, run_id: str | None, file: str) -> str:
    assert run_id is not None
    location = store.client.get_run(run_id).info.artifact_uri.removeprefix("file://")
    return (Path(location) / file).read_text(encoding="utf-8")


def gradient(height: int = 40, width: int = 600) -> np.ndarray:
    row = np.linspace(0, 255, width).astype(np.uint8)
    return np.repeat(np.stack([row, row[::-1], row], axis=-1)[None], height, axis=0)


def test_pictures_of_every_step_are_files_from_which_mlflows_page_reads_name_and_step(
    store: MlflowStore, parent: str
) -> None:
    picture = Image(gradient())
    tracker = tracker_of(store, parent)
    for step in (1, 2):
        tracker.log_media("val/pictures & more", picture, step=step)
    assert tracker.close("FINISHED").problem is None
    files = files_of(store, tracker.run_id, "images")
    # As client.log_image names them: "+" separates, "~" stands for "/".
    pattern = r"images/val~pictures _ more\+step\+([12])\+timestamp\+\d{13}\+[0-9a-f]{16}(\.png|\+compressed\.webp)"
    found = [re.fullmatch(pattern, file) for file in files]
    assert sorted(match.groups() for match in found if match) == [
        ("1", "+compressed.webp"),
        ("1", ".png"),
        ("2", "+compressed.webp"),
        ("2", ".png"),
    ]
    folder = Path(store.client.get_run(tracker.run_id).info.artifact_uri.removeprefix("file://"))
    with Pillow.open(folder / next(file for file in files if file.endswith(".png"))) as whole:
        assert np.array_equal(np.asarray(whole), picture.pixels)
    with Pillow.open(folder / next(file for file in files if file.endswith(".webp"))) as small:
        assert small.size == (256, 17)
    assert store.client.get_run(tracker.run_id).data.tags["mlflow.loggedImages"] == "True"


def test_mlflows_own_call_names_its_pictures_the_same_way(store: MlflowStore, parent: str) -> None:
    store.client.log_image(parent, gradient(), key="val/pictures", step=3, timestamp=1_700_000_000_000)
    theirs = [re.sub(r"[0-9a-f-]{36}", "*", file) for file in files_of(store, parent, "images")]
    record = file_of("val/pictures", Image(gradient()), step=3, at=1_700_000_000_000)
    assert record is not None
    other = start_study_run(store, study="other", params={}, tags={})
    RunWriter(store.client, other).write([record])
    ours = [re.sub(r"\+[0-9a-f]{16}", "+*", file) for file in files_of(store, other, "images")]
    assert ours == theirs
    tags = [store.client.get_run(run_id).data.tags["mlflow.loggedImages"] for run_id in (parent, other)]
    assert tags[0] == tags[1]


@pytest.mark.filterwarnings("ignore:For backward compatibility, 'str' dtypes")  # MLflow's own call, with pandas 3
def test_a_table_is_written_as_mlflow_would_and_a_later_one_takes_its_place(store: MlflowStore, parent: str) -> None:
    columns = {"class": ["T-shirt & top", "café"], "recall": [0.5, None], "images": [3, 4]}
    store.client.log_table(parent, columns, "tables/validation/classes.json")
    tracker = tracker_of(store, parent)
    tracker.log_media("validation/classes", Table({"class": ["T-shirt & top"]}), step=1)
    computed = {"recall": [np.float32(0.5), float("nan")], "images": [np.int64(3), 4]}
    tracker.log_media("validation/classes", Table({**columns, **computed}), step=2)
    assert tracker.close("FINISHED").problem is None
    theirs, ours = (
        json.loads(text_of(store, run_id, "tables/validation/classes.json"), parse_constant=pytest.fail)
        for run_id in (parent, tracker.run_id)
    )
    assert ours == theirs
    assert theirs["data"] == [["T-shirt & top", 0.5, 3], ["café", None, 4]]
    tags = [store.client.get_run(run_id).data.tags["mlflow.loggedArtifacts"] for run_id in (parent, tracker.run_id)]
    assert json.loads(tags[0]) == json.loads(tags[1])


def test_the_list_of_tables_grows(store: MlflowStore, parent: str) -> None:
    tracker = tracker_of(store, parent)
    for name in ("a", "b", "a"):
        tracker.log_media(name, Table({"x": [1]}), step=1)
    assert tracker.close("FINISHED").problem is None
    listed = json.loads(store.client.get_run(tracker.run_id).data.tags["mlflow.loggedArtifacts"])
    assert [entry["path"] for entry in listed] == ["tables/a.json", "tables/b.json"]


def test_a_figure_is_a_file_and_what_mlflow_does_not_show_is_left_out(store: MlflowStore, parent: str) -> None:
    tracker = tracker_of(store, parent)
    name = "confusion/" + "ö" * 200  # longer than a file's name may be
    tracker.log_media(name, Figure("<svg/>", "nothing"), step=1)
    tracker.log_media("weights/head", Histogram(np.ones(3), np.arange(4)), step=1)
    assert tracker.close("FINISHED").problem is None
    (file,) = files_of(store, tracker.run_id, "figures/confusion")
    assert re.fullmatch(r"figures/confusion/ö{40}-[0-9a-f]{8}\.svg", file)
    assert text_of(store, tracker.run_id, file) == "<svg/>"
    assert files_of(store, tracker.run_id, "") == ["figures"]


def test_pictures_that_are_none_are_refused_with_the_rule(store: MlflowStore, parent: str) -> None:
    tracker = tracker_of(store, parent)
    with pytest.raises(ValueError, match=r"must be uint8 \[H, W, 3\], but a has float64 \[2, 2, 3\]"):
        tracker.log_media("a", Image(np.zeros((2, 2, 3))), step=1)
    assert tracker.close("FINISHED").unsent == 0


def test_pictures_wait_on_disk_and_are_the_same_when_sent(
    store: MlflowStore, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail, tried = threading.Event(), threading.Event()
    failing_send(monkeypatch, fail, tried)
    fail.set()
    tracker = tracker_of(store, parent, grace_seconds=0.0, most_large=2)
    for step in (1, 2, 3):
        tracker.log_media("val/pictures", Image(gradient()), step=step)
        tracker.log_metrics({"val/accuracy": 0.5}, step=step)
    assert tried.wait(60)
    report = tracker.close("FINISHED")
    assert report.unsent == 7  # two pictures, three times metrics, the status, and the picture that had no room
    fail.clear()
    assert replay_unsent(store) == 6
    run_id = find_trial_run(store, parent_run_id=parent, number=7)
    files = [file for file in files_of(store, run_id, "images") if file.endswith(".png")]
    assert [re.findall(r"step\+(\d)", file) for file in files] == [["1"], ["2"]]
    folder = Path(store.client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    with Pillow.open(folder / files[0]) as whole:
        assert np.array_equal(np.asarray(whole), gradient())


def checkpoints(store: MlflowStore, **options: object) -> list[Any]:
    found = store.client.search_logged_models([store.experiment_id], "model_type = 'checkpoint'", **options)
    return list(found)


def test_checkpoints_of_trials_are_models_that_mlflow_compares(store: MlflowStore, parent: str, tmp_path: Path) -> None:
    file = tmp_path / "epoch-0002.safetensors"
    file.write_bytes(b"weights")
    for number, accuracy in ((1, 0.25), (2, 0.75)):
        tracker = tracker_of(store, parent, number=number)
        tracker.log_metrics({"val/accuracy": accuracy}, step=2, timestamp_ms=1_700_000_000_000)
        tracker.log_dataset(name="clothing", digest="d" * 64, source=tmp_path)
        tracker.log_checkpoint(
            file,
            name=f"trial-{number:02d} lr=1.2e-3",
            epoch=2,
            metrics={"val/accuracy": accuracy, "val/loss": float("nan")},
            dataset=("clothing", "d" * 64),
            params={"freeze_depth": str(number)},
        )
        assert tracker.close("FINISHED").problem is None
        # The run has its value once: the checkpoint's is the same record.
        assert history(store, str(tracker.run_id), "val/accuracy") == [(2, accuracy)]
        (output,) = store.client.get_run(tracker.run_id).outputs.model_outputs
        assert output.step == 2

    best, other = checkpoints(
        store,
        datasets=[{"dataset_name": "clothing", "dataset_digest": "d" * 36}],
        order_by=[{"field_name": "metrics.val/accuracy", "ascending": False}],
    )
    assert (best.name, other.name) == ("trial-02 lr=1_2e-3", "trial-01 lr=1_2e-3")
    assert best.params == {"freeze_depth": "2"}
    assert best.status == "READY"
    assert best.model_id == output.model_id
    assert [(metric.key, metric.value, metric.step, metric.dataset_name) for metric in best.metrics] == [
        ("val/accuracy", 0.75, 2, "clothing")
    ]
    assert (Path(best.artifact_location.removeprefix("file://")) / file.name).read_bytes() == b"weights"


def test_a_checkpoint_whose_sending_broke_off_anywhere_is_there_once(
    store: MlflowStore, parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "epoch-0002.safetensors"
    file.write_bytes(b"weights")
    record = Checkpoint(1_700_000_000_000, file, "best", 2, {"val/accuracy": 0.5}, None, {"a": "1"})
    steps = ("create_logged_model", "log_model_artifact", "log_batch", "log_outputs", "finalize_logged_model")
    kind = type(store.client)
    for step in steps:
        real = getattr(kind, step)

        def breaks(*arguments: Any, real: Any = real, **options: Any) -> None:
            real(*arguments, **options)
            raise ConnectionError("the cable was pulled")

        monkeypatch.setattr(kind, step, breaks)
        with pytest.raises(ConnectionError):
            RunWriter(store.client, parent).write([record])
        monkeypatch.setattr(kind, step, real)
    RunWriter(store.client, parent).write([record])
    (model,) = checkpoints(store)
    assert model.status == "READY"
    assert len(model.metrics) == 1
    assert len(store.client.get_run(parent).outputs.model_outputs) == 1
    assert history(store, parent, "val/accuracy") == [(2, 0.5)]

    RunWriter(store.client, parent).write([dataclasses.replace(record, epoch=3)])
    assert len(checkpoints(store)) == 2


def test_a_checkpoint_that_is_gone_makes_no_model(store: MlflowStore, parent: str, tmp_path: Path) -> None:
    tracker = tracker_of(store, parent)
    tracker.log_checkpoint(tmp_path / "gone.safetensors", name="best", epoch=1, metrics={})
    report = tracker.close("FINISHED")
    assert report.unsent == 1
    assert "gone.safetensors" in str(report.problem)
    assert checkpoints(store) == []
