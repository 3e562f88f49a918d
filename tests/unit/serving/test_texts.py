"""The HTTP application with a model of texts: every form of request, every mistake, and a change of kind."""

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from colours import picture, register
from fastapi.testclient import TestClient
from notes import ADVERTISEMENTS, FRIENDLY

from thawline.registry import Answer, MlflowRegistry, ModelName
from thawline.serving.app import AppOptions, create_app
from thawline.serving.follower import Follower
from thawline.serving.metrics import Metrics
from thawline.tracking import MlflowStore

TEXTS = [FRIENDLY[0], ADVERTISEMENTS[0], FRIENDLY[2], ADVERTISEMENTS[2]]
LABELS = ["ham", "spam", "ham", "spam"]
PLAIN = {"Content-Type": "text/plain"}
RED = picture("red")


@pytest.fixture
def follower(store: MlflowStore, text_folder: Path) -> Follower:
    registry = MlflowRegistry(store)
    registry.set_alias("notes", "champion", register(store, text_folder, "notes"))
    follower = Follower(registry, ModelName("notes"), poll_seconds=60)
    follower.load_first()
    return follower


@pytest.fixture
def client(follower: Follower) -> Iterator[TestClient]:
    with TestClient(create_app(follower, AppOptions(max_items=50), Metrics()), base_url="http://127.0.0.1") as client:
        yield client


def labels(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [prediction["label"] for prediction in answer.json()["predictions"]]


def test_a_plain_body_and_json_are_answered_alike_and_several_texts_in_order(client: TestClient) -> None:
    answers = [
        client.post("/predict", json={"text": TEXTS[1]}),
        client.post("/predict", json={"texts": [TEXTS[1]]}),
        client.post("/predict", content=TEXTS[1].encode(), headers=PLAIN),
        client.post("/predict", content=TEXTS[1].encode(), headers={"Content-Type": 'text/plain; charset="UTF-8"'}),
        client.post("/predict", content=b"\xef\xbb\xbf" + TEXTS[1].encode(), headers=PLAIN),
        *(
            client.post("/predict", content=TEXTS[1].encode(), headers={"Content-Type": malformed})
            for malformed in ("text/plain; name*0*", "text/plain;8*", "text/plain;;charset", "text/plain; charset*=''")
        ),
    ]
    assert [labels(answer) for answer in answers] == [["spam"]] * 9
    first = answers[0].json()
    assert (first["model"], first["version"]) == ("notes", "1")
    assert sum(first["predictions"][0]["probabilities"].values()) == pytest.approx(1)
    for answer in answers[1:]:
        assert answer.json() == first
    assert labels(client.post("/predict?top_k=1", json={"texts": TEXTS})) == LABELS


def test_requests_in_flight_share_forward_passes_however_long_their_texts_are(client: TestClient) -> None:
    texts = TEXTS * 10

    def label(text: str) -> str:
        return labels(client.post("/predict", json={"text": text}))[0]

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(label, texts)) == LABELS * 10
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[:1] != "#")
    assert float(lines["thawline_batch_images_sum"]) == 40
    assert float(lines["thawline_batch_images_count"]) < 40


@pytest.mark.parametrize(
    ("request_", "status", "sentence"),
    [
        ({"json": {"text": ""}}, 400, "The text cannot be read: the text is empty."),
        ({"json": {"texts": ["a", " \n"]}}, 400, "Text 1 cannot be read: the text is empty."),
        ({"content": b"", "headers": PLAIN}, 400, "The text cannot be read: the text is empty."),
        ({"content": b'{"text": "\\ud800"}', "headers": {"Content-Type": "application/json"}}, 400, "a lone surrogate"),
        ({"content": b"caf\xe9", "headers": PLAIN}, 400, "The text is not UTF-8: byte 3 cannot be read."),
        (
            {"content": b"a", "headers": {"Content-Type": "text/plain; charset=latin-1"}},
            415,
            "its charset is 'latin-1'",
        ),
        ({"json": {"texts": ["a", 3]}}, 400, "Text 1 must be a string."),
        ({"json": {"texts": []}}, 400, "There is no text in the request"),
        ({"json": {"texts": ["a"] * 51}}, 413, "contains 51 texts; this server accepts at most 50"),
        (
            {"json": {"text": "a", "more": 1}},
            400,
            'must be {"text": TEXT} or {"texts": [TEXT, …]}, without other fields',
        ),
        ({"json": {"image": base64.b64encode(RED).decode()}}, 400, "This model classifies texts: the JSON must be"),
        ({"content": RED, "headers": {"Content-Type": "image/png"}}, 415, "classifies texts: send JSON"),
        ({"files": {"file": RED}}, 415, "not 'multipart/form-data'"),
        ({"content": b"a"}, 415, "with the matching Content-Type"),
    ],
)
def test_bad_input_and_that_of_a_model_of_images_get_one_clear_sentence(
    client: TestClient, request_: dict[str, Any], status: int, sentence: str
) -> None:
    answer = client.post("/predict", **request_)
    assert (answer.status_code, sentence in answer.json()["error"]) == (status, True), answer.text
    assert list(answer.json()) == ["error"]
    assert labels(client.post("/predict", json={"text": TEXTS[0]})) == ["ham"]


def test_a_client_of_mlflow_models_serve_works_unchanged(client: TestClient, store: MlflowStore) -> None:
    answers = MlflowRegistry(store).load(ModelName("notes")).predict(TEXTS[:2])
    bodies = [
        {"dataframe_records": [{"text": text} for text in TEXTS[:2]]},
        {"dataframe_split": {"columns": ["text"], "data": [[text] for text in TEXTS[:2]]}},
        {"instances": [{"text": text} for text in TEXTS[:2]]},
        {"inputs": {"text": TEXTS[:2]}},
    ]
    for body in bodies:
        answer = client.post("/invocations", json=body)
        assert answer.status_code == 200, answer.text
        for row, expected in zip(answer.json()["predictions"], answers, strict=True):
            assert not isinstance(expected, str)
            assert row["class"] == expected.class_name
            assert row["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    csv = client.post("/invocations", content=f"text\n{TEXTS[1]}\n", headers={"Content-Type": "text/csv"})
    assert csv.json()["predictions"][0]["class"] == "spam"
    for wrong, sentence in (
        ({"dataframe_records": [{"text": "a"}, {"text": " "}]}, "Row 1 cannot be read: the text is empty."),
        ({"inputs": {"image": ["a"]}}, "The request cannot be read"),
        ({"dataframe_split": {"columns": ["text"], "data": []}}, "There is no text in the request"),
    ):
        answer = client.post("/invocations", json=wrong)
        assert (answer.status_code, sentence in answer.json()["error"]) == (400, True), answer.text
        assert "Traceback" not in answer.text


def test_a_model_of_another_kind_takes_over_while_a_request_in_flight_ends_with_its_own(
    client: TestClient, follower: Follower, store: MlflowStore, folder: Path
) -> None:
    def body() -> set[str]:
        described = client.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]
        return set(described["content"])

    assert [client.get(path).json()["kind"] for path in ("/ready", "/version")] == ["texts", "texts"]
    assert body() == {"application/json", "text/plain"}
    entered, go_on = threading.Event(), threading.Event()
    compute = follower.model.answers

    def slow(prepared: list[Any]) -> list[Answer]:
        entered.set()
        assert go_on.wait(60)
        return compute(prepared)

    follower.model.answers = slow  # type: ignore[method-assign]
    MlflowRegistry(store).set_alias("notes", "champion", register(store, folder, "notes"))
    with ThreadPoolExecutor(2) as pool:
        text = pool.submit(client.post, "/predict", json={"text": TEXTS[1]})
        assert entered.wait(60)
        follower._look()
        image = pool.submit(client.post, "/predict", content=RED, headers={"Content-Type": "image/png"})
        go_on.set()
        assert (labels(text.result()), text.result().json()["version"]) == (["spam"], "1")
        assert (labels(image.result()), image.result().json()["version"]) == (["red"], "2")
    assert client.get("/ready").json()["kind"] == "images"
    assert body() == {"application/json", "image/*", "multipart/form-data"}
    refused = client.post("/predict", json={"text": TEXTS[1]})
    assert (refused.status_code, "classifies images: the JSON must be" in refused.json()["error"]) == (400, True)
