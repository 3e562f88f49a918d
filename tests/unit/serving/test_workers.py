"""Several processes behind one port."""

import base64
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import live_workers
import pytest
from live import Live, StandIn, tiny
from said import Said

RED = base64.b64encode(tiny()).decode()


@pytest.mark.slow
def test_what_a_process_held_when_it_died_leaves_the_metrics() -> None:
    search = os.pathsep.join([str(Path(live_workers.__file__).parent), *filter(None, sys.path)])
    with (
        subprocess.Popen(
            [sys.executable, live_workers.__file__],
            env=os.environ | {"PYTHONPATH": search},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process,
        ThreadPoolExecutor() as pool,
    ):
        said = Said(process.stderr)
        try:
            server = Live(int(said.wait_for(r"port (\d+)")[1]), StandIn())
            assert said.wait_for("answers")
            asked = pool.submit(_ask, server)
            worker = int(said.wait_for(r"computing in (\d+)")[1])
            assert server.metric("thawline_images_inside") == 100
            os.kill(worker, signal.SIGKILL)
            deadline = time.monotonic() + 120
            while server.metric("thawline_images_inside"):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            asked.result()
            assert process.poll() is None
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _ask(server: Live) -> None:
    with suppress(ConnectionError):  # the process dies with the request
        server.post("/predict", {"images": [RED] * 100})
