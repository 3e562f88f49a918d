"""The HTTP application: every form of request, every mistake, and what it says then."""

import base64
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colours import picture, register
from fastapi.testclient import TestClient

from thawline.registry import Answer, MlflowRegistry, ModelName
from thawline.serving.app import AppOptions, create_app
from thawline.serving.follower import Follower
from thawline.serving.metrics import Metrics
from thawline.tracking import MlflowStore, connect

Open = Callable[..., TestClient]
PNG = {"Content-Type": "image/png"}
TOKEN = "0123456789abcdef"
RED, BLUE = picture("red"), picture("blue", "JPEG")


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def store(prepared: Callable[[Path], Path], folder: Path, tmp_path_factory: pytest.TempPathFactory) -> MlflowStore:
    """Of all these tests: none of them changes what it holds, the champion."""
    home = prepared(tmp_path_factory.mktemp("home"))
    store = connect(f"sqlite:///{home}/mlflow.db", home=home, experiment="thawline")
    version = register(store, folder)
    MlflowRegistry(store).promote("birds", version, judged_against=None, by="me", reason="a test")
    return store


def following(store: MlflowStore) -> Follower:
    follower = Follower(MlflowRegistry(store), ModelName("birds"), poll_seconds=60)
    follower.load_first()
    return follower


def client_of(follower: Follower, **options: Any) -> TestClient:
    return TestClient(create_app(follower, AppOptions(**options), Metrics()), base_url="http://127.0.0.1")


@pytest.fixture
def follower(store: MlflowStore) -> Follower:
    return following(store)


@pytest.fixture
def open_app(follower: Follower) -> Iterator[Open]:
    """Starts a server of the test's own."""
    with ExitStack() as opened:
        yield lambda **options: opened.enter_context(client_of(follower, **options))


@pytest.fixture(scope="module")
def client(store: MlflowStore) -> Iterator[TestClient]:
    """Asks one server, which whatever one test asks must leave as it is for the next."""
    with client_of(following(store), max_body=100_000) as client:
        yield client


def test_a_file_a_raw_body_and_json_are_answered_alike(client: TestClient) -> None:
    answers = [
        client.post("/predict", files={"file": ("red.png", RED, "image/png")}),
        client.post("/predict", content=RED, headers={"Content-Type": "image/png"}),
        client.post("/predict", json={"image": base64_of(RED)}),
        client.post("/predict", json={"image": f"data:image/png;base64,{base64_of(RED)}"}),
        client.post("/predict", json={"images": [base64_of(RED)]}),
    ]
    assert [answer.status_code for answer in answers] == [200] * 5
    first = answers[0].json()
    assert (first["model"], first["version"], len(first["predictions"])) == ("birds", "1", 1)
    assert first["predictions"][0]["label"] == "red"
    assert first["predictions"][0]["probability"] > 0.99
    assert next(iter(first["predictions"][0]["probabilities"])) == "red"
    for answer in answers[1:]:
        assert answer.json()["predictions"][0]["probabilities"] == pytest.approx(
            first["predictions"][0]["probabilities"], abs=1e-6
        )


def test_several_images_are_answered_in_order_and_only_the_best_classes_are_listed(client: TestClient) -> None:
    files = [("file", ("a.jpg", BLUE, "image/jpeg")), ("file", ("b.png", RED, "image/png"))]
    answer = client.post("/predict?top_k=1", files=files).json()
    assert [each["label"] for each in answer["predictions"]] == ["blue", "red"]
    assert [list(each["probabilities"]) for each in answer["predictions"]] == [["blue"], ["red"]]
    wrong = client.post("/predict?top_k=0", content=RED, headers={"Content-Type": "image/png"})
    assert (wrong.status_code, wrong.json()["error"][:6]) == (400, "top_k:")


def test_a_client_of_mlflow_models_serve_works_unchanged(client: TestClient, store: MlflowStore) -> None:
    (expected,) = MlflowRegistry(store).load(ModelName("birds")).predict([RED])
    assert not isinstance(expected, str)
    image = base64_of(RED)
    bodies = [
        {"dataframe_records": [{"image": image}]},
        {"dataframe_split": {"columns": ["image"], "data": [[image]]}},
        {"instances": [{"image": image}]},
        {"inputs": {"image": [image]}},
    ]
    for body in bodies:
        answer = client.post("/invocations", json=body)
        assert answer.status_code == 200, answer.text
        (row,) = answer.json()["predictions"]
        assert row["class"] == expected.class_name
        assert row["probability"] == pytest.approx(expected.probability, abs=1e-6)
        assert row["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    csv = client.post("/invocations", content=f"image\n{image}\n", headers={"Content-Type": "text/csv"})
    assert csv.json()["predictions"][0]["class"] == "red"
    assert client.get("/ping").status_code == 200


def big_picture() -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (2000, 1000)).save(file, "PNG")  # two million pixels in some kilobytes; the package allows one
    return file.getvalue()


@pytest.mark.parametrize(
    ("request_", "status", "sentence"),
    [
        (
            {"content": b"no image", "headers": {"Content-Type": "image/png"}},
            400,
            "The image cannot be read: not an image",
        ),
        ({"content": RED[:60], "headers": {"Content-Type": "image/png"}}, 400, "The image cannot be read: "),
        (
            {"content": b"", "headers": {"Content-Type": "image/png"}},
            400,
            "The image cannot be read: the file is empty.",
        ),
        ({"content": big_picture(), "headers": {"Content-Type": "image/png"}}, 400, "it has 2,000,000 pixels"),
        ({"content": bytes(100_001), "headers": {"Content-Type": "image/png"}}, 413, "limit of 100,000 bytes"),
        ({"content": RED, "headers": {"Content-Type": "text/plain"}}, 415, "not 'text/plain'"),
        ({"content": RED}, 415, "with the matching Content-Type"),
        ({"json": {"image": "§§"}}, 400, "The image: the text is not base64."),
        ({"json": {"images": [base64_of(RED), 3]}}, 400, "Image 1 must be base64 text."),
        ({"json": {"path": "/etc/passwd"}}, 400, "without other fields"),
        ({"json": {"image": "file:///etc/passwd"}}, 400, "the text is not base64"),
        ({"json": {"images": []}}, 400, "There is no image in the request"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "The body is not JSON."),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "Missing boundary in multipart."),
        ({"data": {"path": "x"}, "files": {"file": RED}}, 400, "The form's field 'path' is not a file."),
        ({"files": [("file", ("a.png", RED)), ("file", ("b.png", b"?"))]}, 400, "b.png cannot be read: "),
    ],
)
def test_bad_input_gets_one_clear_sentence_and_the_server_keeps_running(
    client: TestClient, request_: dict[str, Any], status: int, sentence: str
) -> None:
    answer = client.post("/predict", **request_)
    assert (answer.status_code, sentence in answer.json()["error"]) == (status, True), answer.text
    assert list(answer.json()) == ["error"]
    assert "Traceback" not in answer.text
    assert client.post("/predict", json={"image": base64_of(RED)}).status_code == 200


def test_a_body_without_a_length_is_refused_while_it_is_read(client: TestClient) -> None:
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        while read < 10_000_000:
            read += 50_000
            yield bytes(50_000)

    answer = client.post("/predict", content=endless(), headers={"Content-Type": "image/png"})
    assert answer.status_code == 413


def test_bad_input_of_mlflows_protocol_names_the_row_and_leaks_nothing(client: TestClient) -> None:
    good = base64_of(RED)
    for body, sentence in (
        ({"dataframe_records": [{"image": good}, {"image": "bm8gaW1hZ2U="}]}, "Row 1 cannot be read"),
        ({"inputs": {"picture": [good]}}, "the only column must be 'image', but got picture"),
        ({"nonsense": 1}, "The request cannot be read"),
    ):
        answer = client.post("/invocations", json=body)
        assert (answer.status_code, sentence in answer.json()["error"]) == (400, True), answer.text
        assert "Traceback" not in answer.text
        assert good not in answer.text


def test_an_unknown_page_says_where_the_known_ones_are(client: TestClient) -> None:
    answer = client.get("/nothing")
    assert (answer.status_code, answer.json()["error"]) == (
        404,
        "Not Found: GET /nothing. See /docs for the available paths.",
    )
    assert client.get("/predict").status_code == 405
    assert {"/predict", "/invocations", "/health", "/ready", "/version", "/metrics"} <= client.get(
        "/openapi.json"
    ).json()["paths"].keys()
    assert client.get("/docs").status_code == 200
    assert "Drop images here" in client.get("/").text


def test_with_a_token_only_probes_and_the_page_are_open(open_app: Open) -> None:
    client = open_app(token=TOKEN)
    assert [client.get(path).status_code for path in ("/health", "/ready", "/")] == [200, 200, 200]
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        refused = client.post("/predict", json={"image": base64_of(RED)}, headers=headers)
        assert refused.status_code == 401
        assert "Authorization: Bearer" in refused.json()["error"]
    good = {"Authorization": f"Bearer {TOKEN}"}
    assert client.post("/predict", json={"image": base64_of(RED)}, headers=good).status_code == 200
    assert client.get("/metrics").status_code == 401


def test_requests_in_flight_share_forward_passes_and_each_gets_its_own_answer(open_app: Open) -> None:
    client = open_app()
    colours = ["red", "green", "blue"] * 20

    def label(colour: str) -> str:
        answer = client.post("/predict", json={"image": base64_of(picture(colour))})
        return str(answer.json()["predictions"][0]["label"])

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(label, colours)) == colours
    text = client.get("/metrics").text
    count = float(next(line.split()[1] for line in text.splitlines() if line.startswith("thawline_batch_images_count")))
    images = float(next(line.split()[1] for line in text.splitlines() if line.startswith("thawline_batch_images_sum")))
    assert images == 60
    assert count < 60
    assert 'thawline_requests_total{path="/predict",status="200"} 60.0' in text


def test_a_full_queue_answers_503_with_retry_after_and_counts_it(open_app: Open, follower: Follower) -> None:
    import threading

    client = open_app(max_waiting=1)
    entered, go_on = threading.Event(), threading.Event()
    compute = follower.model.answers

    def slow(pixels: list[Any]) -> list[Answer]:
        entered.set()
        assert go_on.wait(60)
        return compute(pixels)

    follower.model.answers = slow  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/predict", json={"image": base64_of(RED)})
        assert entered.wait(60)
        second = client.post("/predict", json={"image": base64_of(RED)})
        go_on.set()
        assert first.result().status_code == 200
    assert second.status_code == 503
    assert second.headers["Retry-After"] == "1"
    assert "busy" in second.json()["error"]
    assert "thawline_refused_total 1.0" in client.get("/metrics").text


def test_a_failure_inside_is_a_500_without_its_trace(
    open_app: Open, follower: Follower, caplog: pytest.LogCaptureFixture
) -> None:
    client = open_app()

    def broken(pixels: list[Any]) -> list[Answer]:
        raise RuntimeError("secret")

    follower.model.answers = broken  # type: ignore[method-assign]
    answer = client.post("/predict", json={"image": base64_of(RED)})
    assert (answer.status_code, answer.json()) == (500, {"error": "Internal server error; see the server's log."})
    assert "secret" in caplog.text


def test_the_version_page_names_model_and_libraries(client: TestClient) -> None:
    answer = client.get("/version").json()
    assert (answer["model"], answer["version"], answer["device"]) == ("birds", "1", "cpu")
    assert {"thawline", "torch", "mlflow"} <= answer.keys()
    assert (len(answer["classes"]), answer["tested"]) == (3, None), "it was never judged"


def test_the_server_sees_what_the_package_sees(client: TestClient, store: MlflowStore) -> None:
    random = np.random.default_rng(0)
    import io

    from PIL import Image

    for size in ((40, 70), (33, 32), (200, 90)):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, "JPEG")
        (expected,) = MlflowRegistry(store).load(ModelName("birds")).predict([file.getvalue()])
        answer = client.post("/predict", content=file.getvalue(), headers={"Content-Type": "image/jpeg"}).json()
        assert not isinstance(expected, str)
        assert answer["predictions"][0]["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    assert json.dumps(answer)


def test_a_signed_webhook_makes_the_server_look_and_another_one_does_not(
    open_app: Open, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.webhooks.delivery import _generate_hmac_signature

    client = open_app(webhook_secret=TOKEN)
    looked: list[bool] = []
    monkeypatch.setattr(follower, "look", lambda: looked.append(True))
    now, body = str(int(time.time())), '{"event": "model_version_alias.created"}'

    def deliver(secret: str, sent_at: str) -> int:
        signature = _generate_hmac_signature(secret, "1", sent_at, body)
        headers = {"X-MLflow-Delivery-Id": "1", "X-MLflow-Timestamp": sent_at, "X-MLflow-Signature": signature}
        return client.post("/webhook", content=body, headers=headers).status_code

    assert [deliver("another secret", now), deliver(TOKEN, "1700000000")] == [403, 403]
    assert client.post("/webhook", content=body).status_code == 403
    assert looked == []
    assert deliver(TOKEN, now) == 202
    assert looked == [True]


def test_without_a_secret_there_is_no_webhook(client: TestClient) -> None:
    assert client.post("/webhook", content="{}").status_code == 404
