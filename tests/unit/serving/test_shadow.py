"""A challenger beside the champion: compared, counted, and never heard by a client."""

import base64
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from live import Live, StandIn, live, tiny

from thawline.exceptions import RegistryError, ServingError
from thawline.registry import ModelName, read_shadow
from thawline.serving.metrics import Metrics
from thawline.serving.shadow import Shadow, parse_shadow

RED, BLUE = (base64.b64encode(tiny(colour)).decode() for colour in ("red", "blue"))


class Registry:
    """Has a challenger, version 2, which takes red for green."""

    def __init__(self, model: StandIn, version: str | None = "2") -> None:
        self.model, self.version = model, version
        self.loaded: list[str] = []

    def challenger(self, name: str) -> str | None:
        return self.version

    def load(self, name: ModelName, *, device: str, engine: str, lasting: bool) -> Any:
        self.loaded.append(f"{name} by {engine}")
        if name.version == "3":
            raise RegistryError("birds/3 cannot be loaded")
        servable = SimpleNamespace(
            classes=self.model.classes,
            device="cpu",
            prepare=self.model.prepare,
            answers=self.model.answers,
            row=self.model.row,
        )
        rest: dict[str, Any] = {"engine": "pytorch", "engines": (), "tested": None, "check": lambda: None}
        return SimpleNamespace(name=name, kind="images", servable=servable, **rest)


def shadow(registry: Registry, share: float = 1.0) -> Callable[[Metrics], Shadow]:
    def make(metrics: Metrics) -> Shadow:
        made = Shadow(
            registry,  # type: ignore[arg-type]
            "birds",
            share=share,
            poll_seconds=60,
            device="auto",
            engine="openvino",
            max_batch=2,
            metrics=metrics,
        )
        made.look()
        return made

    return make


def until(true: Callable[[], bool]) -> None:
    """Wait for what other threads do."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def compared(server: Live) -> tuple[float, float]:
    """Items of the same class, and of another."""
    agree, differ = (
        server.metric(f'thawline_shadow_items_total{{agrees="{agrees}",version="2"}}') for agrees in ("true", "false")
    )
    return agree, differ


def test_agreement_and_time_are_counted_and_the_champion_answers() -> None:
    with live(shadow=shadow(Registry(StandIn(classes=("green", "red", "blue"))))) as server:
        answer = server.post("/predict", {"images": [RED, BLUE, BLUE]})
        assert [each["label"] for each in answer.json()["predictions"]] == ["red", "blue", "blue"]
        until(lambda: compared(server) == (2, 1))
        assert server.metric('thawline_shadow_seconds_count{version="2"}') == 1


def test_what_was_counted_of_a_version_is_read_from_the_server(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    header = {"Authorization": f"Bearer {token.read_text().strip()}"}
    challenger = Registry(StandIn(classes=("green", "red", "blue")))
    with live(shadow=shadow(challenger), token=token.read_text().strip()) as server:
        address = f"http://127.0.0.1:{server.port}/"
        with pytest.raises(RegistryError, match="no requests with version 2: run it with --shadow challenger"):
            read_shadow(address, "2", token_file=token)
        for images in ([RED, BLUE, BLUE], [BLUE]):
            assert server.post("/predict", {"images": images}, header).status == 200
            until(lambda: challenger.model.computed in (3, 4))
        until(lambda: read_shadow(address, "2", token_file=token).items == 4)
        found = read_shadow(address, "2", token_file=token)
        with pytest.raises(RegistryError, match="requires a token: --token-file FILE"):
            read_shadow(address, "2")
        with pytest.raises(RegistryError, match="compared no requests with version 1"):
            read_shadow(address, "1", token_file=token)
    assert (found.server, found.agreeing, found.uncompared) == (address, 3, 0)
    assert found.seconds > 0
    assert "the champion's class for 3 of 4 (75.0%)" in found.sentence()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("http://127.0.0.1:9", "http://127.0.0.1:9/metrics does not respond"),
        ("file:///etc/passwd", "must start with http:// or https://"),
        ("http://[", "does not respond"),
    ],
)
def test_a_server_that_cannot_be_asked_is_one_sentence(address: str, sentence: str) -> None:
    with pytest.raises(RegistryError, match=sentence):
        read_shadow(address, "2")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not respond: SSH-2.0-OpenSSH_9.6"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nx", "is not a page of metrics"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>", "is not a page of metrics. Is this the addr"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n{} {} ", "is not a page of metrics"),
    ],
)
def test_a_port_of_another_program_is_one_sentence(answer: bytes, sentence: str) -> None:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(RegistryError, match=re.escape(sentence)):
            read_shadow(f"http://127.0.0.1:{listener.getsockname()[1]}", "2")
        thread.join()


def test_a_share_of_the_requests_is_compared() -> None:
    challenger = StandIn()
    with live(shadow=shadow(Registry(challenger), share=0.25)) as server:
        for count in range(1, 9):
            assert server.post("/predict", {"image": RED}).status == 200
            until(lambda count=count: sum(compared(server)) == count // 4)  # type: ignore[misc]
    assert challenger.computed == 2


def test_a_slow_challenger_keeps_nobody_waiting_and_what_it_misses_is_counted() -> None:
    challenger, entered, go_on = StandIn(), threading.Event(), threading.Event()

    def wait(size: int) -> None:
        entered.set()
        assert go_on.wait(60)

    challenger.before_batch = wait
    with live(shadow=shadow(Registry(challenger))) as server:
        for _ in range(3):
            assert server.post("/predict", {"image": RED}).status == 200
            assert entered.wait(60)
        busy = server.metric('thawline_shadow_uncompared_total{reason="busy",version="2"}')
        go_on.set()
        until(lambda: sum(compared(server)) == 1)
    assert busy == 2


def test_a_challenger_that_was_promoted_is_not_compared_with_itself() -> None:
    """It keeps its alias until the next challenger; agreeing with itself, it would look like evidence."""
    registry, made = Registry(StandIn(), version="1"), list[Shadow]()

    def make(metrics: Metrics) -> Shadow:
        made.append(shadow(registry)(metrics))
        return made[0]

    with live(shadow=make) as server:
        for _ in range(2):
            assert server.post("/predict", {"image": RED}).status == 200  # by version 1, too
        registry.version = "2"
        made[0].look()
        assert server.post("/predict", {"image": RED}).status == 200
        until(lambda: sum(compared(server)) == 1)
    assert registry.model.computed == 1, "in the order of the requests, by one thread"


def test_a_challenger_that_fails_or_cannot_be_loaded_is_no_matter_of_clients() -> None:
    challenger = StandIn()

    def fail(size: int) -> None:
        raise RuntimeError("broken")

    challenger.before_batch = fail
    with live(shadow=shadow(Registry(challenger))) as server:
        assert server.post("/predict", {"image": RED}).status == 200
        until(lambda: server.metric('thawline_shadow_uncompared_total{reason="failed",version="2"}') == 1)
    registry = Registry(StandIn(), version="3")
    follower = shadow(registry)(Metrics())
    follower.look()
    assert (follower.model, registry.loaded) == (None, ["birds/3 by openvino"])  # and it is not tried again at once
    registry.version = "2"
    follower.look()
    assert follower.model is not None
    registry.version = None
    follower.look()
    assert follower.model is None


@pytest.mark.parametrize(("text", "share"), [("challenger", 1.0), ("challenger:0.1", 0.1), ("challenger:1", 1.0)])
def test_the_option_names_the_alias_and_a_share(text: str, share: float) -> None:
    assert parse_shadow(text) == share


@pytest.mark.parametrize("text", ["", "champion", "challenger:", "challenger:0", "challenger:2", "challenger:nan"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ServingError, match=r"--shadow must be challenger or challenger:SHARE"):
        parse_shadow(text)
