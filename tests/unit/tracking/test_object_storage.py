"""Artifacts of an experiment in a database, on object storage: against a real S3 server on loopback."""

import re
import sys
import tempfile
from pathlib import Path

import pytest
from colours import picture, register, trial_run
from object_storage import Bucket, bucket, s3_server

from thawline.config import TrackingConfig
from thawline.exceptions import TrackingError
from thawline.registry import MlflowRegistry, ModelName
from thawline.tracking import MlflowStore, MlflowTracker, connect, open_store, resolve_uri, start_study_run

__all__ = ["bucket", "s3_server"]  # fixtures


@pytest.fixture
def remote_store(store: MlflowStore, bucket: Bucket) -> MlflowStore:
    """A local database whose experiment ``photos`` keeps its files on object storage."""
    return connect(store.uri, home=store.home, experiment="photos", artifacts=f"{bucket.url}/thawline")


def test_what_a_run_logs_lies_on_object_storage_and_comes_back(
    remote_store: MlflowStore, bucket: Bucket, tmp_path: Path
) -> None:
    run_id = start_study_run(remote_store, study="shapes", params={}, tags={})
    (tmp_path / "checkpoint.safetensors").write_bytes(b"weights")
    tracker = MlflowTracker.for_study(remote_store, run_id=run_id, study="shapes")
    tracker.log_artifact(tmp_path / "checkpoint.safetensors", "checkpoints")
    tracker.log_text("name: shapes", "config.yaml")
    report = tracker.close("FINISHED")
    assert (report.unsent, report.problem) == (0, None)
    start = f"thawline/photos/{run_id}/artifacts"
    assert bucket.keys() == {f"{start}/checkpoints/checkpoint.safetensors", f"{start}/config.yaml"}
    assert not (remote_store.home / "artifacts" / "photos").exists()

    again = connect(remote_store.uri, home=remote_store.home, experiment="photos")  # who opens it need not know where
    local = again.client.download_artifacts(run_id, "checkpoints/checkpoint.safetensors", str(tmp_path))
    assert Path(local).read_bytes() == b"weights"


def test_a_registered_model_is_packaged_to_object_storage_and_predicts_from_there(
    remote_store: MlflowStore, bucket: Bucket, folder: Path
) -> None:
    version = register(remote_store, folder, "birds")
    assert [key for key in sorted(bucket.keys()) if key.endswith("artifacts/model.safetensors")]
    assert not list(remote_store.home.rglob("*.safetensors"))
    model = MlflowRegistry(open_store(remote_store.uri, remote_store.home)).load(ModelName("birds", None, version))
    answers = model.predict([picture("green"), picture("blue")])
    assert [answer if isinstance(answer, str) else answer.class_name for answer in answers] == ["green", "blue"]


def test_a_model_from_object_storage_leaves_no_copy_behind(
    remote_store: MlflowStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = register(remote_store, folder, "birds")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    MlflowRegistry(remote_store).load(ModelName("birds", None, version))
    assert list(temporary.iterdir()) == []


def test_an_experiment_that_keeps_its_files_elsewhere_is_not_taken_for_one_that_does_not(
    store: MlflowStore, remote_store: MlflowStore, bucket: Bucket
) -> None:
    with pytest.raises(TrackingError, match=r"'thawline' keeps its files in file:.*cannot move them to s3://.*"):
        connect(store.uri, home=store.home, experiment="thawline", artifacts=f"{bucket.url}/thawline")
    with pytest.raises(TrackingError, match=r"'photos' keeps its files in s3://.*tracking\.experiment=NAME"):
        connect(store.uri, home=store.home, experiment="photos", artifacts=f"{bucket.url}/thaw")
    same = connect(store.uri, home=store.home, experiment="photos", artifacts=f"{bucket.url}/thawline")
    assert same.experiment_id == remote_store.experiment_id
    assert connect(store.uri, home=store.home, experiment="photos").experiment_id == remote_store.experiment_id


def test_storage_that_cannot_be_used_is_known_before_the_search(
    store: MlflowStore, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.artifact.s3_artifact_repo import _cached_get_s3_client

    def attempt(artifacts: str) -> str:
        return connect(store.uri, home=store.home, experiment="photos", artifacts=artifacts).experiment_id

    with pytest.raises(TrackingError, match=r"s3://no-such-bucket, cannot be read: .*bucket does not exist"):
        attempt("s3://no-such-bucket")
    with pytest.raises(TrackingError, match=r"s4://bucket, cannot be read: Could not find a registered artifact"):
        attempt("s4://bucket")
    with monkeypatch.context() as without:
        _cached_get_s3_client.cache_clear()
        without.setitem(sys.modules, "boto3", None)
        with pytest.raises(TrackingError, match=re.escape("pip install 'thawline[s3]'")):
            attempt(f"{bucket.url}/x")
    assert store.client.get_experiment(attempt(bucket.url)).artifact_location == f"{bucket.url}/photos"


def test_a_server_decides_by_itself_where_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrackingConfig(artifacts="s3://bucket/thawline")
    assert resolve_uri(config, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    with pytest.raises(TrackingError, match=r"the server http://127\.0\.0\.1:5000 determines where.*remove tracking"):
        resolve_uri(config, tmp_path)


def test_a_study_run_is_made_only_where_its_files_are_wanted(store: MlflowStore, bucket: Bucket) -> None:
    """The run that `mlflow run` made belongs to an experiment of its own."""
    run_id = trial_run(store)
    with pytest.raises(TrackingError, match="cannot move them"):
        connect(store.uri, home=store.home, experiment="photos", artifacts=bucket.url, adopt_run_id=run_id)
    assert connect(store.uri, home=store.home, experiment="photos", adopt_run_id=run_id).experiment_id == (
        store.experiment_id
    )
