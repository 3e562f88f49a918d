"""Prediction sets: they hold the true class as often as promised, and every way of asking gives the same ones."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from colours import folder_of, make_package, picture, register, trial_run
from fastapi.testclient import TestClient
from pyfuncs import load_pyfunc

from thawline.predict import predict_items
from thawline.registry import (
    MlflowRegistry,
    ModelName,
    PredictionSets,
    fit_prediction_sets,
    log_packaged_model,
    score,
)
from thawline.scoring import score_files
from thawline.serving.app import create_app
from thawline.serving.classifying import AppOptions
from thawline.serving.follower import Follower
from thawline.serving.metrics import Metrics
from thawline.tracking import MlflowStore

RED = picture("red")


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    shares: np.ndarray = raised / raised.sum(1, keepdims=True)
    return shares


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("classes", [3, 20])
def test_sets_hold_the_true_class_as_often_as_promised_however_overconfident_the_network_is(
    coverage: float, classes: int
) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, classes)) * 1.5
    labels = np.array([random.choice(classes, p=row) for row in softmax(logits)])
    probabilities = softmax(3 * logits)  # overconfident
    held = []
    for _ in range(40):
        fitted, tried = np.split(random.permutation(len(labels)), [500])
        sets = fit_prediction_sets(probabilities[fitted], labels[fitted], coverage)
        assert (sets.coverage, sets.items) == (coverage, 500)
        held.append((probabilities[tried, labels[tried]] >= sets.threshold).mean())
    assert abs(np.mean(held) - coverage) < 0.01
    taken_at_its_word = (probabilities[np.arange(len(labels)), labels] >= 1 - coverage).mean()
    assert taken_at_its_word < coverage - 0.015


def test_too_few_examples_promise_nothing_and_every_class_is_in_the_set() -> None:
    probabilities = np.array([[0.98, 0.01, 0.01]] * 8)
    assert fit_prediction_sets(probabilities, np.zeros(8, np.int64), 0.9).threshold == 0.0
    assert fit_prediction_sets(probabilities, np.zeros(8, np.int64), 0.8).threshold == 0.98


def champion_of(store: MlflowStore, folder: Path, name: str) -> ModelName:
    version = register(store, folder, name)
    MlflowRegistry(store).set_alias(name, "champion", version)
    return ModelName(name, None, version)


def served(store: MlflowStore, name: str) -> TestClient:
    follower = Follower(MlflowRegistry(store), ModelName(name), poll_seconds=60)
    follower.load_first()
    return TestClient(create_app(follower, AppOptions(), Metrics()), base_url="http://127.0.0.1")


def test_every_way_of_asking_gives_the_same_set(store: MlflowStore, folder: Path, tmp_path: Path) -> None:
    plain = champion_of(store, folder, "plain")
    (known,) = MlflowRegistry(store).load(plain).predict([RED])
    assert not isinstance(known, str)
    ranked = sorted(known.probabilities, key=known.probabilities.__getitem__, reverse=True)
    two = sum(known.probabilities[name] for name in ranked[1:]) / 2
    sets = PredictionSets(0.9, threshold=two, items=50)
    expected = [name for name in ranked if name == ranked[0] or known.probabilities[name] >= two]
    assert len(expected) == 2

    file = tmp_path / "red.png"
    file.write_bytes(RED)
    name = champion_of(store, make_package(tmp_path / "package", prediction_sets=sets), "sets")
    asked = {"tracking_uri": store.uri, "home": store.home}
    (row,) = predict_items("sets", [str(file)], engine="pytorch", **asked)
    found: dict[str, Any] = {"predict": row["prediction_set"]}
    (tmp_path / "list.txt").write_text("red.png\n")
    score_files("sets", tmp_path / "list.txt", tmp_path / "answers.parquet", **asked)
    found["score"] = list(pd.read_parquet(tmp_path / "answers.parquet")["prediction_set"].iloc[0])
    with served(store, "sets") as client:
        answer = client.post("/predict", content=RED, headers={"Content-Type": "image/png"}).json()
        found["/predict"] = answer["predictions"][0]["prediction_set"]
        frame = {"dataframe_records": [{"image": base64.b64encode(RED).decode()}]}
        found["/invocations"] = client.post("/invocations", json=frame).json()["predictions"][0]["prediction_set"]
    uri = log_packaged_model(store, trial_run(store), tmp_path / "package", "sets")
    table = load_pyfunc(folder_of(store, uri)).predict(pd.DataFrame({"image": [RED]}))
    found["mlflow"] = list(table["prediction_set"].iloc[0])
    assert found == dict.fromkeys(found, expected)

    scores = score(MlflowRegistry(store).load(name), [RED, picture("green"), RED], [ranked[2], "green", "red"])
    assert scores.metrics["coverage"] == pytest.approx(2 / 3)
    assert scores.metrics["prediction_set_size"] >= 4 / 3


def test_a_version_without_sets_answers_as_before(store: MlflowStore, folder: Path, tmp_path: Path) -> None:
    name = champion_of(store, folder, "plain")
    file = tmp_path / "red.png"
    file.write_bytes(RED)
    (row,) = predict_items("plain", [str(file)], tracking_uri=store.uri, home=store.home)
    assert set(row) == {"path", "class", "probability", "probabilities"}
    assert "coverage" not in score(MlflowRegistry(store).load(name), [RED], ["red"]).metrics
    with served(store, "plain") as client:
        answer = client.post("/predict", content=RED, headers={"Content-Type": "image/png"}).json()
    assert answer["predictions"][0]["prediction_set"] is None
