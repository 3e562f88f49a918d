"""The Open Inference Protocol: requests and answers have the shapes of KServe's specification of version 2."""

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from live import Answer, Live, live, tiny

RED, BLUE = tiny("red"), tiny("blue")
TOKEN = "0123456789abcdef"
INFER = "/v2/models/birds/infer"


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def tensor(*data: Any, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "shape": [len(data)], "datatype": "BYTES", "data": list(data)}], **more}


def packed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(each)) + each for each in elements)


def in_binary(server: Live, asked: object, data: bytes, length: str | None = None) -> Answer:
    """As Triton's client sends it: the tensors behind the JSON."""
    head = json.dumps(asked).encode()
    headers = {"Inference-Header-Content-Length": length or str(len(head)), "Content-Type": "application/octet-stream"}
    return server.ask("POST", INFER, head + data, headers)


def binary_request(*elements: bytes, **more: Any) -> tuple[dict[str, Any], bytes]:
    data = packed(*elements)
    described = {"name": "image", "shape": [len(elements)], "datatype": "BYTES"}
    return {"inputs": [{**described, "parameters": {"binary_data_size": len(data)}}], **more}, data


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(max_items=8) as found:
        yield found


def test_health_and_metadata_have_the_shapes_of_the_specification(server: Live) -> None:
    assert server.ask("GET", "/v2/health/live").json() == {"live": True}
    assert server.ask("GET", "/v2/health/ready").json() == {"ready": True}
    about = server.ask("GET", "/v2").json()
    assert (about["name"], about["extensions"], about.keys()) == (
        "thawline",
        ["binary_tensor_data"],
        {"name", "version", "extensions"},
    )
    for path in ("/v2/models/birds", "/v2/models/birds/versions/1"):
        assert server.ask("GET", f"{path}/ready").json() == {"name": "birds", "ready": True}
        described = server.ask("GET", path).json()
        assert (described["name"], described["versions"], described["platform"]) == ("birds", ["1"], "thawline")
        assert described["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
        outputs = {each["name"]: (each["datatype"], each["shape"]) for each in described["outputs"]}
        assert outputs == {
            "label": ("BYTES", [-1]),
            "probability": ("FP32", [-1]),
            "probabilities": ("FP32", [-1, 3]),
        }
        assert described["outputs"][2]["parameters"]["labels"] == ["red", "green", "blue"]


def test_images_in_json_are_answered_as_predict_does(server: Live) -> None:
    for path in (INFER, "/v2/models/birds/versions/1/infer"):
        answer = server.post(path, tensor(base64_of(BLUE), base64_of(RED), id="7")).json()
        assert answer.keys() == {"model_name", "model_version", "id", "outputs"}
        assert (answer["model_name"], answer["model_version"], answer["id"]) == ("birds", "1", "7")
        label, probability, probabilities = answer["outputs"]
        assert label == {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["blue", "red"]}
        assert (probability["datatype"], probability["shape"]) == ("FP32", [2])
        assert (probabilities["datatype"], probabilities["shape"]) == ("FP32", [2, 3])
        assert len(probabilities["data"]) == 6
        predicted = server.post("/predict", {"images": [base64_of(BLUE), base64_of(RED)]}).json()["predictions"]
        assert probability["data"] == pytest.approx([each["probability"] for each in predicted])


def test_rows_of_one_value_and_chosen_outputs_are_understood(server: Live) -> None:
    asked = tensor([base64_of(RED)], outputs=[{"name": "label"}])
    asked["inputs"][0]["shape"] = [1, 1]
    answer = server.post(INFER, asked).json()
    assert answer["outputs"] == [{"name": "label", "datatype": "BYTES", "shape": [1], "data": ["red"]}]
    assert "id" not in answer


def test_tensors_in_binary_go_in_and_come_out_as_tritons_client_has_them(server: Live) -> None:
    answer = in_binary(server, *binary_request(BLUE, RED, parameters={"binary_data_output": True}))
    assert answer.status == 200, answer.body
    length = int(answer.headers["inference-header-content-length"])
    outputs, rest = json.loads(answer.body[:length])["outputs"], answer.body[length:]
    found = {}
    for output in outputs:
        size = output["parameters"]["binary_data_size"]
        found[output["name"]], rest = rest[:size], rest[size:]
    assert rest == b""
    assert found["label"] == packed(b"blue", b"red")
    assert np.frombuffer(found["probabilities"], "<f4").reshape(2, 3).argmax(1).tolist() == [2, 0]
    assert np.frombuffer(found["probability"], "<f4").shape == (2,)
    one = in_binary(
        server, *binary_request(RED, outputs=[{"name": "probability", "parameters": {"binary_data": True}}])
    )
    assert len(one.body) == int(one.headers["inference-header-content-length"]) + 4
    in_json = in_binary(server, *binary_request(base64_of(RED).encode()))
    assert in_json.json()["outputs"][0]["data"] == ["red"]


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({}, 400, "must have one input, 'image'"),
        ([], 400, "must be a JSON object"),
        ({"inputs": [{}, {}]}, 400, "must have one input"),
        (
            {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}]},
            400,
            "got 'text' of 'BYTES'",
        ),
        ({"inputs": [{"name": "image", "datatype": "FP32", "shape": [1], "data": [1]}]}, 400, "of 'FP32'"),
        ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}]}, 400, "a list of data"),
        ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": ["a"]}]}, 400, "must be [1]"),
        (tensor(), 400, "There is no image"),
        (tensor(1), 400, "Image 0: an image must be bytes or base64 text, but got int."),
        (tensor("§"), 400, "Image 0: the text is not base64."),
        (tensor(base64_of(RED), base64_of(b"none")), 400, "Image 1 cannot be read"),
        (tensor(base64_of(RED), id=7), 400, "id must be a string"),
        (tensor(base64_of(RED), id="\ud800"), 400, "id must be a string of printable characters"),
        (tensor(base64_of(RED), parameters=[1]), 400, "Parameters must be"),
        (tensor(base64_of(RED), outputs=[{"name": "colour"}]), 400, "label, probability, probabilities, but got"),
        (tensor(base64_of(RED), outputs={"name": "label"}), 400, "must be a list"),
        (tensor(*[base64_of(RED)] * 9), 413, "contains 9 images; this server accepts at most 8"),
        (tensor(*[base64_of(RED)] * 9000), 413, "too many values"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(server: Live, body: Any, status: int, sentence: str) -> None:
    answer = server.post(INFER, body)
    assert (answer.status, sentence in answer.error) == (status, True), answer.body


@pytest.mark.parametrize(
    ("asked", "data", "length", "status", "sentence"),
    [
        (*binary_request(RED), "x", 400, "must be at most the length of the body"),
        (*binary_request(RED), "999999", 400, "must be at most the length of the body"),
        (*binary_request(RED), "9" * 5000, 400, "must be at most the length of the body"),
        (*binary_request(RED), "0" * 5000, 400, "must be at most the length of the body"),
        (binary_request(RED)[0], packed(RED)[:-1], None, 400, "bytes follow the JSON"),
        (tensor(base64_of(RED)), b"more", None, 400, "a list of data"),
        (binary_request(b"\xff\xff\xff\xff")[0], b"\xff" * 8, None, 400, "truncated"),
        (*binary_request(*[b""] * 9), None, 413, "more than 8 images"),
    ],
)
def test_binary_data_that_does_not_fit_its_json_is_refused(
    server: Live, asked: dict[str, Any], data: bytes, length: str | None, status: int, sentence: str
) -> None:
    answer = in_binary(server, asked, data, length)
    assert (answer.status, sentence in answer.error) == (status, True), answer.body


def test_a_model_or_a_version_that_is_not_served_is_404(server: Live) -> None:
    for path in ("/v2/models/fish", "/v2/models/birds/versions/2", "/v2/models/fish/ready"):
        answer = server.ask("GET", path)
        assert answer.status == 404
        assert "it serves birds version 1" in answer.error
    assert server.post("/v2/models/birds/versions/2/infer", tensor(base64_of(RED))).status == 404


def test_a_token_is_asked_for_and_probes_need_none() -> None:
    with live(token=TOKEN) as server:
        assert server.ask("GET", "/v2/health/ready").status == 200
        assert server.post(INFER, tensor(base64_of(RED))).status == 401
        assert server.post(INFER, tensor(base64_of(RED)), {"Authorization": f"Bearer {TOKEN}"}).status == 200
        assert server.ask("GET", "/v2/models/birds").status == 401
