"""`mlflow models serve` answers a real photograph sent with curl, as the docs show."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import free_port

from thawline.backbones import create
from thawline.registry import MlflowRegistry, log_packaged_model, package, parse_model
from thawline.tracking import MlflowStore

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("serving")]

CURL = (
    """printf '{"dataframe_records": [{"image": "%s"}]}' "$(base64 -w0 PHOTO)" | """
    """curl -s http://127.0.0.1:PORT/invocations -H 'Content-Type: application/json' --data-binary @-"""
)
"""The command of the docs."""


@pytest.fixture
def photograph(shared: Path) -> Path:
    return min((shared / "data" / "clothing" / "test" / "dress").iterdir())


@pytest.fixture
def store(store: MlflowStore, shared: Path, photograph: Path) -> MlflowStore:
    """A registered champion: a real pretrained network with an untrained head."""
    classes = sorted(path.name for path in (shared / "data" / "clothing" / "test").iterdir())
    weights = str(shared / "weights" / "squeezenet1_0_imagenet.safetensors")
    backbone = create("squeezenet1_0", num_classes=len(classes), weights=weights, image_size=128)
    folder = package(
        store.home / "package",
        state_dict=backbone.module.state_dict(),
        architecture=backbone.architecture,
        classes=classes,
        preprocessing=backbone.preprocessing,
        example=photograph.read_bytes(),
    )
    run_id = store.client.create_run(store.experiment_id).info.run_id
    registry = MlflowRegistry(store)
    uri = log_packaged_model(store, run_id, folder, "clothing")
    version = registry.register("clothing", uri, run_id=run_id, study="s", tags={})
    registry.promote("clothing", version, judged_against=None, by="me", reason="a test")
    return store


@pytest.fixture
def port(store: MlflowStore, tmp_path: Path) -> Iterator[int]:
    """`mlflow models serve`, up and answering; ended with all its processes."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("mlflow")), "models", "serve", "-m", "models:/clothing@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    # Away from the checkout, so that nothing of it can be imported by chance; with the PATH of the environment, in
    # which MLflow looks for uvicorn.
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": store.uri,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with subprocess.Popen(
        command,
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as server:
        assert server.stdout is not None
        try:
            log = []
            for line in server.stdout:
                log.append(line)
                if "Application startup complete" in line:
                    break
            else:
                pytest.fail("the server ended by itself:\n" + "".join(log))
            # Somebody must read what it says, or a full pipe would stop it.
            threading.Thread(target=server.stdout.read, daemon=True).start()
            yield port
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def post(port: int, body: object) -> tuple[int, str]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_docs_show_the_command_that_is_tested_here() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "serve.md"
    assert CURL.replace("PHOTO", "photo.jpg").replace("PORT", "5001") in page.read_text(encoding="utf-8")


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("base64")), reason="needs curl and base64")
def test_the_champion_answers_a_photograph_sent_with_curl_and_refuses_what_is_no_image(
    port: int, store: MlflowStore, photograph: Path
) -> None:
    command = CURL.replace("PHOTO", f"'{photograph}'").replace("PORT", str(port))
    answered = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=True)
    (answer,) = json.loads(answered.stdout)["predictions"]
    (expected,) = MlflowRegistry(store).load(parse_model("clothing")).predict([photograph])
    assert not isinstance(expected, str)
    assert answer["class"] == expected.class_name
    assert answer["probability"] == pytest.approx(expected.probability, abs=1e-4)
    assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)
    assert list(answer["probabilities"]) == list(expected.probabilities)
    assert len(answer["probabilities"]) == 10

    import base64

    image = base64.b64encode(photograph.read_bytes()).decode()
    other_forms = [
        {"instances": [{"image": image}, {"image": image}]},
        {"inputs": {"image": [image]}},
        {"dataframe_split": {"columns": ["image"], "data": [[image]]}},
    ]
    for body in other_forms:
        status, text = post(port, body)
        assert status == 200, text
        assert {row["class"] for row in json.loads(text)["predictions"]} == {expected.class_name}

    broken = base64.b64encode(photograph.read_bytes()[:300]).decode()
    bad_bodies = [
        ({"dataframe_records": [{"image": image}, {"image": broken}]}, "Row 1: "),
        ({"dataframe_records": [{"image": "bm8gaW1hZ2U="}]}, "Row 0: "),
        ({"dataframe_records": [{"image": ""}]}, "Row 0: "),
        ({"inputs": {"image": ["no image"]}}, "Row 0: "),
    ]
    for bad, row in bad_bodies:
        status, text = post(port, bad)
        assert status == 400, text
        assert row in json.loads(text)["message"]
        assert "Traceback" not in text
        assert "servable.py" not in text
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=30) as still_there:
        assert still_there.status == 200
