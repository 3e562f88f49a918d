"""What MLflow is told late has the times at which it happened, and is there once."""

import base64
import io
import json
import threading
from pathlib import Path

import pytest
from PIL import Image as Pillow

from thawline.tracking import MlflowStore, MlflowTracker, find_trial_run, now_ms, replay_unsent, start_study_run
from thawline.tracking.mlflow.store import uri_digest


@pytest.fixture
def parent(store: MlflowStore) -> str:
    return start_study_run(store, study="birds", params={}, tags={})


def tracker_of(store: MlflowStore, parent: str, grace_seconds: float = 60.0) -> MlflowTracker:
    return MlflowTracker.for_trial(
        store,
        parent_run_id=parent,
        study="birds",
        number=7,
        run_name="trial-07",
        system_metrics=False,
        grace_seconds=grace_seconds,
    )


def later() -> int:
    """A time, which has passed when this returns."""
    before = now_ms()
    while now_ms() <= before:
        pass
    return before


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once the server can be reached; until then no run is created."""
    from mlflow import MlflowClient

    there, real = threading.Event(), MlflowClient.create_run

    def create_run(*arguments: object, **options: object) -> object:
        if not there.is_set():
            raise ConnectionError("no server")
        return real(*arguments, **options)

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    return there


def history(store: MlflowStore, run_id: str | None, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in store.client.get_metric_history(run_id, key)]


def test_a_run_begins_when_its_trial_did_however_late_the_server_hears_of_it(
    store: MlflowStore, parent: str, server: threading.Event
) -> None:
    tracker = tracker_of(store, parent)
    begun = later()
    tracker.begin_close("FINISHED")
    ended = later()
    server.set()
    assert tracker.close("FINISHED").unsent == 0
    run = store.client.get_run(tracker.run_id).info
    assert run.start_time <= begun
    assert begun < run.end_time <= ended


def test_a_replay_tells_the_times_at_which_things_happened_and_not_its_own(
    store: MlflowStore, parent: str, server: threading.Event
) -> None:
    of_others = set(threading.enumerate())
    before = later()
    tracker = tracker_of(store, parent, grace_seconds=0.0)
    begun = later()
    tracker.log_metrics({"val/accuracy": 0.5}, step=1)
    measured = later()
    tracker.log_tags({"thawline.state": "complete"})
    assert tracker.close("FINISHED").unsent == 3
    ended = later()

    for thread in set(threading.enumerate()) - of_others:
        if thread.name.startswith("thawline-tracking"):
            thread.join()
    server.set()
    assert replay_unsent(store) == 3
    run_id = find_trial_run(store, parent_run_id=parent, number=7)
    assert run_id is not None
    run = store.client.get_run(run_id)
    assert before < run.info.start_time <= begun
    assert measured < run.info.end_time <= ended
    (point,) = store.client.get_metric_history(run_id, "val/accuracy")
    assert begun < point.timestamp <= measured
    assert run.data.tags["thawline.state"] == "complete"


def test_a_replay_overrules_nothing_that_was_told_later(store: MlflowStore, parent: str, tmp_path: Path) -> None:
    down = MlflowStore("http://127.0.0.1:9", "http://127.0.0.1:9", store.experiment_id, store.home)
    first = MlflowTracker.for_study(down, run_id=parent, study="birds", grace_seconds=0.0)
    first.log_tags({"mlflow.note.content": "two trials", "only": "once"})
    kept = first.close("FAILED").where
    assert kept is not None
    later()
    second = MlflowTracker.for_study(store, run_id=parent, study="birds")
    second.log_tags({"mlflow.note.content": "nine trials"})
    assert second.close("FINISHED").unsent == 0
    ended = store.client.get_run(parent).info.end_time

    kept.write_text(kept.read_text().replace(uri_digest(down.uri), uri_digest(store.uri)))
    assert replay_unsent(store) == 2
    run = store.client.get_run(parent)
    assert (run.info.status, run.info.end_time) == ("FINISHED", ended)
    assert run.data.tags["mlflow.note.content"] == "nine trials"
    assert run.data.tags["only"] == "once"


def test_a_value_at_an_unchanged_step_is_there_once_and_a_changed_one_is_added(store: MlflowStore, parent: str) -> None:
    tracker = MlflowTracker.for_study(store, run_id=parent, study="birds")
    for value in (0.5, 0.5, 0.5, 0.75, 0.75):
        tracker.log_metrics({"best/accuracy": value}, step=3)
        later()
    tracker.log_metrics({"best/accuracy": 0.75}, step=4)
    assert tracker.close("FINISHED").unsent == 0
    assert history(store, parent, "best/accuracy") == [(3, 0.5), (3, 0.75), (4, 0.75)]


def test_a_resumed_search_doubles_no_value_that_its_run_has(store: MlflowStore, parent: str) -> None:
    for trials in (3, 3, 5):
        tracker = MlflowTracker.for_study(store, run_id=parent, study="birds")
        tracker.log_metrics({"plan/search_seconds": 40.0}, step=0)
        for depth in (0, 1, 2):
            tracker.log_metrics({"probe/accuracy": depth / 4}, step=depth)
        tracker.log_metrics({"test/accuracy": 0.5}, step=trials)
        assert tracker.close("FINISHED").unsent == 0
        later()
    assert history(store, parent, "plan/search_seconds") == [(0, 40.0)]
    assert history(store, parent, "probe/accuracy") == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert history(store, parent, "test/accuracy") == [(3, 0.5), (5, 0.5)]


def test_records_that_version_0_1_0_kept_are_sent_with_the_times_they_have(
    store: MlflowStore, parent: str, tmp_path: Path
) -> None:
    picture = io.BytesIO()
    Pillow.new("RGB", (2, 3), (1, 2, 3)).save(picture, "PNG")
    weights = tmp_path / "epoch-0001.safetensors"
    weights.write_bytes(b"weights")
    at = 1_700_000_000_000
    checkpoint = {"kind": "checkpoint", "path": str(weights), "name": "best", "epoch": 1, "params": {"a": "1"}}
    records = [
        {"kind": "params", "params": {"freeze_depth": "3"}},
        {"kind": "metrics", "metrics": [["val/accuracy", 0.5, at, 1], ["train/loss", 2.0, at, 1]]},
        {"kind": "image", "picture": base64.b64encode(picture.getvalue()).decode(), "file": "val~pictures+step+1"},
        {"kind": "table", "text": "{}", "file": "tables/a.json"},
        {"kind": "text", "text": "x: 1", "file": "config.yaml"},
        {"kind": "artifact", "path": str(weights), "folder": "checkpoints"},
        {**checkpoint, "metrics": {"val/accuracy": 0.5}, "timestamp": at + 1000, "dataset": ["pets", "d"]},
        {"kind": "dataset", "name": "pets", "digest": "d", "source": "{}", "profile": "{}", "context": "train"},
        {"kind": "tags", "tags": {"thawline.state": "complete"}},
        {"kind": "status", "status": "KILLED", "end_time": at + 2000},
    ]
    run = {"study": "birds", "trial": 7, "run_id": None, "parent_run_id": parent, "run_name": "trial-07"}
    of = {"store": uri_digest(store.uri), "experiment_id": store.experiment_id, "run": run}
    (store.home / "unsent").mkdir()
    kept = store.home / "unsent" / "birds-007.jsonl"
    kept.write_text("".join(json.dumps({**of, "record": record}) + "\n" for record in records))

    assert replay_unsent(store) == len(records)
    assert not kept.exists()
    run_id = find_trial_run(store, parent_run_id=parent, number=7)
    assert run_id is not None
    sent = store.client.get_run(run_id)
    assert (sent.info.start_time, sent.info.end_time, sent.info.status) == (at, at + 2000, "KILLED")
    assert sent.data.params == {"freeze_depth": "3"}
    assert sent.data.tags["thawline.state"] == "complete"
    (point,) = store.client.get_metric_history(run_id, "val/accuracy")
    assert (point.step, point.value, point.timestamp) == (1, 0.5, at)
    files = {item.path for folder in ("", "images") for item in store.client.list_artifacts(run_id, folder)}
    assert {"images/val~pictures+step+1.png", "tables", "config.yaml", "checkpoints"} <= files
    assert len(sent.inputs.dataset_inputs) == len(sent.outputs.model_outputs) == 1


def test_the_value_that_an_outage_kept_and_a_later_search_told_is_there_once(store: MlflowStore, parent: str) -> None:
    down = MlflowStore("http://127.0.0.1:9", "http://127.0.0.1:9", store.experiment_id, store.home)
    for _ in range(2):
        tracker = MlflowTracker.for_study(down, run_id=parent, study="birds", grace_seconds=0.0)
        tracker.log_metrics({"test/accuracy": 0.5}, step=3)
        kept = tracker.close("FINISHED").where
        later()
    assert kept is not None
    kept.write_text(kept.read_text().replace(uri_digest(down.uri), uri_digest(store.uri)))
    assert replay_unsent(store) == 4
    assert history(store, parent, "test/accuracy") == [(3, 0.5)]
