"""A version is served, scored and asked by the engine that was chosen for it, and the server says by which."""

import importlib.metadata
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from colours import add_engine_files, picture, register
from fastapi.testclient import TestClient

from thawline.engines import EngineName, OnnxRuntime
from thawline.exceptions import EngineError
from thawline.predict import predict_items
from thawline.registry import MlflowRegistry, ModelName
from thawline.scoring import score_files
from thawline.serving.app import AppOptions, create_app
from thawline.serving.follower import Follower
from thawline.serving.metrics import Metrics
from thawline.tracking import MlflowStore


@pytest.fixture
def registry(store: MlflowStore, folder: Path, tmp_path: Path) -> MlflowRegistry:
    """Version 1 can be computed by ONNX Runtime too, version 2 by PyTorch alone, and version 3 answers otherwise."""
    shutil.copytree(folder, tmp_path / "both")
    register(store, add_engine_files(tmp_path / "both"), study="both")
    register(store, folder, study="one")
    shutil.copytree(folder, tmp_path / "wrong")
    register(store, add_engine_files(tmp_path / "wrong", wrong_by=0.1), study="wrong")
    registry = MlflowRegistry(store)
    registry.set_alias("birds", "champion", "1")
    return registry


def test_what_an_engine_computes_is_what_the_network_answers(registry: MlflowRegistry) -> None:
    first = ModelName("birds", None, "1")
    by_network, by_engine = registry.load(first), registry.load(first, engine="onnxruntime")
    assert (by_network.engine, by_engine.engine) == ("pytorch", "onnxruntime")
    for ours, theirs in zip(*(each.predict([picture("red"), picture("blue"), b""]) for each in (by_network, by_engine)),
                            strict=True):  # fmt: skip
        if isinstance(ours, str) or isinstance(theirs, str):
            assert ours == theirs
            continue
        assert ours.class_name == theirs.class_name
        assert theirs.probabilities == pytest.approx(ours.probabilities, abs=1e-3)
    with pytest.raises(EngineError, match=r"birds/2 cannot be computed by onnxruntime: .* no model\.onnx"):
        registry.load(ModelName("birds", None, "2"), engine="onnxruntime")


def test_the_server_says_which_engine_computes_and_which_was_refused_and_follows_with_the_next(
    registry: MlflowRegistry,
) -> None:
    follower = Follower(registry, ModelName("birds"), poll_seconds=60)
    follower.load_first()
    with TestClient(create_app(follower, AppOptions(), Metrics()), base_url="http://127.0.0.1") as client:
        first = client.get("/ready").json()
        refused = {each["name"]: each["refused"] for each in first["engines"]}
        assert refused.keys() == {"pytorch", "onnxruntime", "openvino", "openvino-bf16"}
        del refused["openvino-bf16"]  # not every processor has it
        assert set(refused.values()) == {None}
        assert first["engine"] in {each["name"] for each in first["engines"] if each["seconds"] is not None}
        registry.set_alias("birds", "champion", "3")
        follower._look()
        for path in ("/ready", "/version"):
            answer = client.get(path).json()
            assert (answer["version"], answer["engine"]) == ("3", "pytorch")
            for each in answer["engines"][1:3]:
                assert "a probability differs by 1.0e-01" in each["refused"]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_server_with_a_fixed_engine_refuses_a_version_that_it_cannot_compute_and_keeps_the_old_one(
    registry: MlflowRegistry, engine: EngineName
) -> None:
    follower = Follower(registry, ModelName("birds"), poll_seconds=60, engine=engine)
    follower.load_first()
    with TestClient(create_app(follower, AppOptions(), Metrics()), base_url="http://127.0.0.1") as client:
        version = client.get("/version").json()
        assert (version["engine"], version["device"]) == (engine, "cpu")
        assert version[engine] == importlib.metadata.version(engine)
        registry.set_alias("birds", "champion", "2")
        follower._look()
        ready = client.get("/ready").json()
        assert (ready["version"], ready["engine"], ready["refused"]["version"]) == ("1", engine, "2")
        assert "the package has no model.onnx" in ready["refused"]["reason"]
        answer = client.post("/predict", content=picture("blue"), headers={"Content-Type": "image/png"}).json()
        assert answer["predictions"][0]["label"] == "blue"


def test_predict_and_score_compute_with_the_engine_that_is_named(
    registry: MlflowRegistry, store: MlflowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, compute = [], OnnxRuntime.probabilities

    def counted(self: OnnxRuntime, prepared: list[object]) -> list[list[float]]:
        computed.append(len(prepared))
        return compute(self, prepared)

    monkeypatch.setattr(OnnxRuntime, "probabilities", counted)
    images = tmp_path / "images"
    images.mkdir()
    for colour in ("blue", "green"):
        (images / f"{colour}.png").write_bytes(picture(colour))
    for engine in ("pytorch", "onnxruntime"):
        computed.clear()
        found = predict_items("birds", [str(images)], tracking_uri=store.uri, home=store.home, engine=engine)
        out = tmp_path / f"{engine}.parquet"
        score_files("birds", images, out, tracking_uri=store.uri, home=store.home, engine=engine)
        assert [each["class"] for each in found] == pq.read_table(out)["class"].to_pylist() == ["blue", "green"]
        assert bool(computed) == (engine == "onnxruntime")
