"""Unknown: what is unlike all that was trained on says so, whichever way it is asked for."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from colours import (
    CLASSES,
    add_engine_files,
    features_of,
    folder_of,
    forget_digests,
    make_package,
    picture,
    register,
    trial_run,
)
from fastapi.testclient import TestClient
from PIL import Image
from pyfuncs import load_pyfunc

from thawline.backbones import networks
from thawline.cli.tables.models import predictions_table
from thawline.data import images
from thawline.engines import SAMPLE_FILE, choose, read_sample, write_sample
from thawline.exceptions import EngineError, RegistryError
from thawline.predict import predict_items
from thawline.registry import (
    MlflowRegistry,
    ModelName,
    Prediction,
    Reference,
    fit_reference,
    log_packaged_model,
    quantise,
    reference_rows,
    score,
)
from thawline.registry.servable import Servable, scaled
from thawline.registry.unknown import REFERENCE_FILE
from thawline.scoring import score_files
from thawline.serving.app import create_app
from thawline.serving.classifying import AppOptions
from thawline.serving.follower import Follower
from thawline.serving.metrics import Metrics
from thawline.tracking import MlflowStore

HEAD = "classifier.1"
RED = picture("red")


def noise(seed: int = 0) -> bytes:
    """Of no colour that was trained on."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def reference() -> Reference:
    """Of the three colours. The threshold is given: to a network of random weights two reds are as two colours."""
    features = scaled(features_of([picture(colour) for colour in CLASSES])).astype(np.float16)
    return Reference(features, HEAD, false_alarms=0.05, threshold=0.01, items=30)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return make_package(tmp_path / "package", reference=reference())


def champion_of(store: MlflowStore, folder: Path, name: str) -> ModelName:
    version = register(store, folder, name)
    MlflowRegistry(store).set_alias(name, "champion", version)
    return ModelName(name, None, version)


def test_a_threshold_calls_no_more_known_examples_unknown_than_was_asked_for() -> None:
    random = np.random.default_rng(0)
    shares = []
    for _ in range(40):
        known, fitted, tried = (random.normal(size=(n, 16)).astype(np.float32) + 2 for n in (50, 200, 2000))
        found = fit_reference(known, fitted, head="head", false_alarms=0.1)
        rows = found.features.astype(np.float32)
        cosines = tried @ rows.T / np.linalg.norm(tried, axis=1, keepdims=True)
        shares.append((1 - cosines.max(1) > found.threshold).mean())
    assert (found.items, found.features.shape, found.features.dtype) == (200, (50, 16), np.float16)
    assert abs(np.mean(shares) - 0.1) < 0.01


def test_with_too_few_examples_to_promise_anything_nothing_is_unknown() -> None:
    features = np.eye(18, 20, dtype=np.float32)
    assert fit_reference(features, -features, head="head", false_alarms=0.05).threshold == 2.0
    assert fit_reference(features, features, head="head", false_alarms=0.1).threshold < 1e-3


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((1000, 1000), (128, 128)), ((10, 1000), (10, 246)), ((3, 2), (3, 2)), ((2,) * 600, (1,) * 600)],
)
def test_the_reference_has_as_many_rows_of_each_class_and_is_bounded(
    sizes: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = reference_rows(labels)
    assert tuple(np.bincount(labels[rows])) == expected
    assert np.all(np.diff(rows) > 0)


def test_every_way_of_asking_says_what_is_unknown(store: MlflowStore, package: Path, tmp_path: Path) -> None:
    items = {"red.png": (RED, False), "noise.png": (noise(), True)}
    name = champion_of(store, package, "colours")
    for file, (content, _) in items.items():
        (tmp_path / file).write_bytes(content)
    asked = {"tracking_uri": store.uri, "home": store.home}
    predicted = predict_items("colours", [str(tmp_path / file) for file in items], **asked)
    found: dict[str, Any] = {"predict": [row["unknown"] for row in predicted]}
    assert [*predictions_table(predicted).columns[1].cells] == ["red", f"unknown ({predicted[1]['class']})"]
    (tmp_path / "list.txt").write_text("\n".join(items))
    score_files("colours", tmp_path / "list.txt", tmp_path / "answers.parquet", **asked)
    found["score"] = pd.read_parquet(tmp_path / "answers.parquet")["unknown"].tolist()
    follower = Follower(MlflowRegistry(store), ModelName("colours"), poll_seconds=60)
    follower.load_first()
    with TestClient(create_app(follower, AppOptions(), Metrics()), base_url="http://127.0.0.1") as client:
        encoded = [base64.b64encode(content).decode() for content, _ in items.values()]
        answer = client.post("/predict", json={"images": encoded}).json()
        found["/predict"] = [each["unknown"] for each in answer["predictions"]]
        frame = {"dataframe_records": [{"image": each} for each in encoded]}
        answer = client.post("/invocations", json=frame).json()
        found["/invocations"] = [each["unknown"] for each in answer["predictions"]]
    logged = folder_of(store, log_packaged_model(store, trial_run(store), package, "colours"))
    table = load_pyfunc(logged).predict(pd.DataFrame({"image": [content for content, _ in items.values()]}))
    found["mlflow"] = table["unknown"].tolist()
    assert found == {way: [unknown for _, unknown in items.values()] for way in found}
    assert "unknown" in (logged / "MLmodel").read_text()

    scores = score(MlflowRegistry(store).load(name), [RED, picture("green"), noise(), noise(1)], ["red"] * 4)
    assert scores.metrics["false_alarms"] == 0.5


def test_a_version_without_a_reference_answers_as_before(store: MlflowStore, folder: Path, tmp_path: Path) -> None:
    assert not list(folder.glob("reference*"))
    name = champion_of(store, folder, "birds")
    (tmp_path / "red.png").write_bytes(RED)
    settings = forget_digests(store) / "artifacts" / "model.json"  # as a Thawline that knew no references wrote it
    read = json.loads(settings.read_text())
    assert read.pop("unknown") is None
    settings.write_text(json.dumps(read))
    (row,) = predict_items("birds", [str(tmp_path / "red.png")], tracking_uri=store.uri, home=store.home)
    assert set(row) == {"path", "class", "probability", "probabilities"}
    assert "false_alarms" not in score(MlflowRegistry(store).load(name), [RED], ["red"]).metrics


def test_a_reference_that_was_changed_is_refused(store: MlflowStore, package: Path) -> None:
    name = champion_of(store, package, "colours")
    (file,) = store.home.rglob("artifacts/reference.safetensors")
    file.write_bytes(file.read_bytes()[:-2] + b"\0\0")
    with pytest.raises(RegistryError, match=r"artifacts/reference.safetensors has changed"):
        MlflowRegistry(store).load(name)


def test_an_engine_gives_the_same_features_by_the_same_pass_or_is_refused(tmp_path: Path) -> None:
    package = make_package(tmp_path, reference=reference(), exports=["onnx"], sample=[RED, noise()])
    session = onnxruntime.InferenceSession(package / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(each.name, each.shape[1]) for each in session.get_outputs()] == [("probabilities", 3), ("features", 1280)]
    servable = servable_of(package)
    chosen = choose(servable, package, "onnxruntime")
    prepared = [servable.prepare(item) for item in (RED, noise())]
    expected = servable.answers(prepared)
    servable.outputs = chosen.engine.outputs  # type: ignore[method-assign]
    found = servable.answers(prepared)
    assert [servable.unknown(each) for each in found] == [False, True]
    assert [each.distance for each in found] == pytest.approx([each.distance for each in expected], abs=1e-4)

    sample = read_sample(package / SAMPLE_FILE)
    assert sample is not None
    assert sample.features is not None
    shown, answers = list(sample.inputs), sample.probabilities.tolist()
    write_sample(package / SAMPLE_FILE, shown, answers, sample.features[::-1].copy())
    with pytest.raises(EngineError, match="its features differ from the trained network's: a cosine differs"):
        choose(servable, package, "onnxruntime")
    add_engine_files(package)  # a graph that does not give them
    colours = read_sample(package / SAMPLE_FILE)
    assert colours is not None
    write_sample(package / SAMPLE_FILE, list(colours.inputs), colours.probabilities.tolist(), np.ones((3, 1280), "f4"))
    with pytest.raises(
        EngineError, match="it does not return the features that the package needs to recognise unknown images"
    ):
        choose(servable, package, "onnxruntime")


def servable_of(package: Path) -> Servable:
    settings = json.loads((package / "model.json").read_text())
    files = {"weights": str(package / "model.safetensors"), "reference": str(package / REFERENCE_FILE)}
    return Servable(settings, files, networks=networks, inputs=images)


def test_a_copy_in_int8_is_told_by_the_examples_of_the_original_what_is_unknown(
    store: MlflowStore, tmp_path: Path
) -> None:
    package = make_package(tmp_path / "package", reference=reference(), exports=["onnx"], sample=[RED, noise()])
    registry, shown = MlflowRegistry(store), np.stack([seen(picture(colour)) for colour in CLASSES for _ in range(10)])
    original = champion_of(store, package, "colours")
    (tmp_path / "copy").mkdir()
    with registry.artifacts(original) as files:
        quantise(tmp_path / "copy", files, registry.load(original), shown, np.arange(30) // 10)
    assert (tmp_path / "copy" / REFERENCE_FILE).is_file()
    version = register(store, tmp_path / "copy", "colours")
    copy = registry.load(ModelName("colours", None, version))
    assert copy.is_quantised
    answers = copy.predict([RED, noise()])  # of random weights: what is asked is that it tells, by its own features
    assert all(isinstance(answer, Prediction) and answer.unknown is not None for answer in answers)
    assert copy.servable.settings["unknown"]["items"] == 30
    assert copy.servable.farthest != reference().threshold


def seen(content: bytes) -> Any:
    return images.seen(content, max_pixels=10**6, resize_size=36, crop_size=32, interpolation="bilinear")
