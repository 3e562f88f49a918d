"""Two processes behind one port, as in `thawline serve --workers 2`; their batches never end."""

import os
import socket
import sys
import tempfile
import threading
from pathlib import Path

from fastapi import FastAPI
from live import StandIn, StandInFollower

from thawline.serving.app import AppOptions, create_app
from thawline.serving.metrics import Metrics
from thawline.serving.server import ServeOptions, config_of
from thawline.serving.workers import Start, Workers, when_it_answers


def make_app() -> FastAPI:
    def stay(size: int) -> None:
        sys.stderr.write(f"computing in {os.getpid()}\n")
        threading.Event().wait()

    model = StandIn()
    model.before_batch = stay
    Start(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])).loaded()
    return create_app(StandInFollower(model), AppOptions(), Metrics())  # type: ignore[arg-type]


def _say_that_it_answers() -> None:
    sys.stderr.write("answers\n")


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0), backlog=64) as listening,
    ):
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        options = ServeOptions(model="birds", tracking_uri=None, home=Path())
        config = config_of("live_workers:make_app", options, factory=True, workers=2)
        port = listening.getsockname()[1]
        sys.stderr.write(f"port {port}\n")
        when_it_answers("127.0.0.1", port, _say_that_it_answers)
        Workers(config, [listening], Start(Path(folder))).run()


if __name__ == "__main__":
    main()
