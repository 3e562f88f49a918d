"""Clients that leave, stall or send rubbish, over real sockets: what they held is free again."""

import base64
import hmac
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from live import Live, StandIn, live, tiny
from servers import memory_of

RED = base64.b64encode(tiny("red")).decode()
HEAD = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture
def server() -> Iterator[Live]:
    with live() as found:
        yield found


def until(true: Callable[[], bool]) -> None:
    """Wait for what other threads do."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def closed(connection: socket.socket) -> bytes:
    """What the server still says before it closes the connection."""
    said = b""
    try:
        while chunk := connection.recv(65536):
            said += chunk
    except ConnectionResetError:
        pass
    return said


def test_what_a_client_asked_for_is_not_computed_once_it_has_left(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "thawline")
    model, entered, gone = StandIn(), threading.Event(), threading.Event()

    def wait(size: int) -> None:
        entered.set()
        assert gone.wait(60)

    model.before_batch = wait
    with live(model=model, max_batch=8) as server:
        body = json.dumps({"images": [RED] * 200}).encode()
        with server.connect() as leaving:
            leaving.sendall(HEAD % (b"/predict", len(body)) + body)
            assert entered.wait(60)
        until(lambda: server.metric("thawline_images_inside") == 0)
        gone.set()
        assert server.post("/predict", {"image": RED}).status == 200
        assert model.computed == 8 + 1, "the batch that was running, and the other client's"
        assert server.metric("thawline_cancelled_total") == 1
        assert server.metric('thawline_requests_total{path="/predict",status="499"}') == 1
    lines = [record for record in caplog.records if record.name == "thawline.serving"]
    assert [record.getMessage() for record in lines] == ["POST /predict: the client left before the response"]


def test_a_broken_upload_is_one_line_and_499(server: Live, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "thawline")
    for path in (b"/predict", b"/invocations"):
        with server.connect() as leaving:
            leaving.sendall(HEAD % (path, 1000) + b"{")
            until(lambda: server.ask("GET", "/health").status == 200)
    until(lambda: server.metric("thawline_cancelled_total") == 2)
    assert server.metric('thawline_requests_total{path="/predict",status="499"}') == 1
    assert [record.exc_info for record in caplog.records if record.name == "thawline.serving"] == [None, None]


def test_a_body_that_does_not_come_is_408_and_its_connection_is_closed() -> None:
    with live(client_seconds=0.5) as server, server.connect() as slow:
        slow.sendall(HEAD % (b"/predict", 1000) + b"{")
        said = closed(slow)
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b"did not arrive within 0.5 seconds" in said
        assert server.metric('thawline_requests_total{path="/predict",status="408"}') == 1


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /health HTTP/1.1\r\nHost:", HEAD % (b"/nothing", 10_000) + b"{"],
    ids=["nothing", "half a head", "half a body that is refused"],
)
def test_a_connection_on_which_no_more_comes_is_closed(sent: bytes) -> None:
    with live(client_seconds=0.5) as server, server.connect() as slow:
        slow.sendall(sent)
        assert closed(slow)[:12] in (b"", b"HTTP/1.1 404")
        assert server.ask("GET", "/health").status == 200


def test_a_client_that_drips_gains_no_time() -> None:
    with live(client_seconds=0.5) as server, server.connect() as slow:
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            _drip(slow)
        assert server.ask("GET", "/health").status == 200


def _drip(slow: socket.socket) -> None:
    for _ in range(3000):
        slow.sendall(b"G")
        time.sleep(0.02)


def test_one_connection_too_many_is_503_and_the_others_stay() -> None:
    with live(max_connections=3) as server:
        held = [server.connect() for _ in range(3)]
        try:
            held[0].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert held[0].recv(65536).startswith(b"HTTP/1.1 200 ")
            with server.connect() as one_more:
                assert closed(one_more).startswith(b"HTTP/1.1 503 ")
        finally:
            for each in held:
                each.close()
        until(lambda: _answers(server))


def _answers(server: Live) -> bool:
    try:
        return server.ask("GET", "/health").status == 200
    except (ConnectionError, OSError):
        return False


def test_half_sent_bodies_hold_no_more_than_they_may_and_small_requests_pass() -> None:
    megabyte = 1_000_000
    with live(max_body=10 * megabyte, max_bodies=20 * megabyte) as server:
        before, held = memory_of(None), []
        try:
            for _ in range(30):
                each = server.connect()
                held.append(each)
                each.settimeout(60)
                each.sendall(HEAD % (b"/predict", 10 * megabyte))
                for _ in range(9):
                    each.sendall(b"x" * megabyte)  # the server takes it, or answers 503 and throws it away
            until(lambda: server.metric('thawline_requests_total{path="/predict",status="503"}') >= 27)
            assert memory_of(None) - before < 100 * megabyte, "30 bodies of 9 MB would be 270"
            assert server.post("/predict", {"image": RED}).status == 200
        finally:
            for each in held:
                each.close()
        until(lambda: server.metric("thawline_cancelled_total") >= 1)
        assert server.post("/predict", {"image": RED}).status == 200


def test_a_webhook_is_not_read_before_its_headers_are_mlflows() -> None:
    secret = "0123456789abcdef"
    now = str(int(time.time()))
    good = {"X-MLflow-Delivery-Id": "1", "X-MLflow-Timestamp": now, "X-MLflow-Signature": "v1,abc"}
    with live(webhook_secret=secret) as server:
        for headers, status in (
            ({}, b"403"),
            ({**good, "X-MLflow-Timestamp": "1700000000"}, b"403"),
            ({**good, "X-MLflow-Timestamp": "²"}, b"403"),
            ({**good, "X-MLflow-Signature": "abc"}, b"403"),
            (good, b"413"),
        ):
            with server.connect() as connection:
                head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                # A body of 30 MB is announced, and nothing of it is ever sent.
                connection.sendall(
                    f"POST /webhook HTTP/1.1\r\nHost: localhost\r\n{head}Content-Length: 30000000\r\n\r\n".encode(
                        "latin-1"
                    )
                )
                assert connection.recv(65536)[9:12] == status, headers
        signature = hmac.digest(secret.encode(), b".".join([b"1", now.encode(), b"{}"]), "sha256")
        good["X-MLflow-Signature"] = "v1," + base64.b64encode(signature).decode()
        assert server.ask("POST", "/webhook", b"{}", good).status == 202


@pytest.mark.parametrize("depth", [500, 900, 100_000])
@pytest.mark.parametrize("path", ["/invocations", "/predict"])
def test_deep_json_is_the_clients_mistake(server: Live, path: str, depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    for body in (b'{"inputs": %s}' % deep, b'{"instances": %s}' % deep, deep):
        answer = server.ask("POST", path, body, {"Content-Type": "application/json"})
        assert answer.status in (400, 413), answer.body
        assert b"Traceback" not in answer.body
    assert server.metric(f'thawline_requests_total{{path="{path}",status="500"}}') == 0


def test_half_a_character_and_a_long_value_are_the_clients_mistake_too(server: Live) -> None:
    for value in ("\ud800", "x" * 100_000):
        for path, body in (
            ("/invocations", {"dataframe_split": {"columns": ["image"], "data": [[value]]}}),
            ("/invocations", {"inputs": {value: [RED]}}),
            ("/predict", {"image": value}),
            ("/v2/models/birds/infer", {"inputs": [{"name": value}]}),
        ):
            answer = server.post(path, body)
            assert answer.status == 400, (path, answer.body)
            assert len(answer.error) < 1100


@pytest.mark.parametrize("cut", [2, 6, 20, 60])
def test_a_form_that_is_cut_off_inside_its_second_file_is_400(server: Live, cut: int) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n%s\r\n' % tiny()
    whole = part * 2 + b"--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert server.ask("POST", "/predict", whole, headers).status == 200
    answer = server.ask("POST", "/predict", whole[: -cut - 2], headers)
    assert answer.status == 400
    assert "truncated" in answer.error
