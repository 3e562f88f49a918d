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
from uvicorn.config import STARTUP_FAILURE

from thawline.config import TrackingConfig
from thawline.serving.workers import Start
from thawline.tracking import connect, resolve_uri

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


@pytest.mark.slow
def test_several_processes_that_cannot_load_the_model_end_the_server_with_the_reason(tmp_path: Path) -> None:
    store = connect(resolve_uri(TrackingConfig(), tmp_path), home=tmp_path, experiment="birds")
    store.client.create_registered_model("birds")
    store.client.create_model_version("birds", source=str(tmp_path / "gone"))
    done = subprocess.run(
        [sys.executable, "-m", "thawline", "serve", "birds/1", "--workers", "2", "--port", "0"],
        env=os.environ | {"THAWLINE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert done.stderr.count("birds/1 cannot be loaded") == 1
    assert "Traceback" not in done.stderr


def test_a_server_that_has_answered_replaces_a_process_that_cannot_load_the_model_now(tmp_path: Path) -> None:
    start = Start(tmp_path)
    with pytest.raises(SystemExit) as first:
        start.refuse("birds/1 cannot be loaded")
    assert (first.value.code, start.reason) == (STARTUP_FAILURE, "birds/1 cannot be loaded")
    later = Start(tmp_path / "later")
    (tmp_path / "later").mkdir()
    later.answered()
    with pytest.raises(SystemExit) as second:
        later.refuse("birds/1 cannot be loaded")
    assert second.value.code not in (0, STARTUP_FAILURE)  # uvicorn ends the server at the latter
    assert later.reason is None
