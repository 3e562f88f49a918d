"""The server of `thawline serve` in a thread behind a real socket, with a stand-in for the model."""

import http.client
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from colours import CLASSES
from PIL import Image

from thawline.data import images
from thawline.registry import Answer as Known
from thawline.serving.app import AppOptions, create_app
from thawline.serving.metrics import Metrics
from thawline.serving.server import ServeOptions, http_server
from thawline.serving.shadow import Shadow

__all__ = ["Live", "StandIn", "StandInFollower", "live", "one_bit", "tiny"]

MAX_PIXELS = 64_000_000


class StandIn:
    """Classifies the colour of an image; everything except the network is real."""

    name, version, kind, device = "birds", "1", "images", "cpu"

    def __init__(self, classes: Sequence[str] = CLASSES) -> None:
        self.classes = tuple(classes)
        self.computed = 0
        """Number of images computed by the network."""
        self.before_batch: Callable[[int], None] = lambda size: None

    def prepare(self, item: bytes) -> Any:
        return images.seen(item, max_pixels=MAX_PIXELS, resize_size=8, crop_size=8, interpolation="bilinear")

    def answers(self, prepared: list[Any]) -> list[Known]:
        self.before_batch(len(prepared))
        self.computed += len(prepared)
        means = np.stack(prepared).mean((1, 2)) + 1
        return [Known((row / row.sum()).tolist()) for row in means]

    def items_in(self, body: bytes, content_type: str) -> list[bytes | str]:
        return self._packaged.items_in(body, content_type)  # type: ignore[no-any-return]

    def row(self, answer: Known) -> dict[str, Any]:
        best = max(range(len(self.classes)), key=answer.probabilities.__getitem__)
        return {"class": self.classes[best], "probability": answer.probabilities[best]}

    def prediction_set(self, probabilities: list[float]) -> None:
        """Not supported."""

    def unknown(self, answer: Known) -> None:
        """Not supported."""

    @cached_property
    def _packaged(self) -> Any:
        from thawline.registry import ModelName
        from thawline.registry.contents import Description
        from thawline.registry.packaged import PackagedModel

        servable: Any = SimpleNamespace(settings={}, engine="pytorch")
        return PackagedModel(servable, Description("images", {}), b"", ModelName(self.name), size=0)


class StandInFollower:
    """A follower without a registry."""

    refused = registry_error = None

    def __init__(self, model: StandIn) -> None:
        self.model = model

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def look(self) -> None: ...


class Live:
    """A running server, with a client."""

    def __init__(self, port: int, model: StandIn) -> None:
        self.port, self.model = port, model

    def connect(self) -> socket.socket:
        """Open a connection without sending anything."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> "Answer":
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    def post(self, path: str, value: object, headers: dict[str, str] | None = None) -> "Answer":
        """Send JSON."""
        return self.ask(
            "POST", path, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def metric(self, line: str) -> float:
        """The value of a metric, named with its labels as in `/metrics`; 0 if it does not exist."""
        for each in self.ask("GET", "/metrics").body.decode().splitlines():
            if each.startswith(f"{line} "):
                return float(each.rpartition(" ")[2])
        return 0.0


class Answer:
    """Status, headers and body."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def error(self) -> str:
        """The error message."""
        (sentence,) = json.loads(self.body).values()
        return str(sentence)

    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def live(
    *,
    model: StandIn | None = None,
    max_connections: int = 512,
    shadow: Callable[[Metrics], Shadow] | None = None,
    **options: Any,
) -> Iterator[Live]:
    """Serve on a free port within the block.

    Args:
        model: the model to serve.
        max_connections: connection limit of the server.
        shadow: creates the comparison with a challenger.
        options: options of :class:`~thawline.serving.app.AppOptions`.
    """
    model = model or StandIn()
    metrics = Metrics()
    beside = shadow(metrics) if shadow is not None else None
    app = create_app(StandInFollower(model), AppOptions(**options), metrics, beside)  # type: ignore[arg-type]
    serve_options = ServeOptions(
        model="birds",
        tracking_uri=None,
        home=Path(),
        max_connections=max_connections,
        client_seconds=AppOptions(**options).client_seconds,
    )
    server = http_server(app, serve_options)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            found = Live(listening.getsockname()[1], model)
            assert found.ask("GET", "/health").status == 200
            yield found
        finally:
            server.should_exit = True
            thread.join(60)
    assert not thread.is_alive()


def tiny(colour: str = "red") -> bytes:
    """A PNG of one pixel."""
    pixels = np.zeros((1, 1, 3), np.uint8)
    pixels[..., CLASSES.index(colour)] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def one_bit(width: int, height: int) -> bytes:
    """A PNG with one bit per pixel, whose file size does not reflect its cost."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()
