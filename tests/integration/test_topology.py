"""What `docker/compose.yaml` starts, as processes on loopback: a schedule retrains there on a folder that grows."""

import base64
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from databases import postgres_at
from topology import COMPOSE, Processes, Service, free_ports, load, on_loopback, processes, read_env, rewire

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("topology"), pytest.mark.timeout(1500)]

MODEL = "clothing"
CLASSES = ("dress", "hat", "pants", "shoes")
IMAGES = {"train": 12, "validation": 8, "test": 12}
"""Of each class, at first."""
MORE = 24
"""Training images of each class that come later."""
RECIPE: dict[str, Any] = {
    "data": {"workers": 1},
    "backbone": {"name": "squeezenet1_0", "image_size": 64},
    "space": {"freeze_depth": [4, 4], "learning_rate": [0.0005, 0.005]},
    "train": {"epochs": 3, "batch_size": 16, "device": "cpu", "precision": "fp32", "channels_last": False},
    "study": {"trials": 2},
    "tracking": {"tensorboard": False, "system_metrics": False},
}
PATHS = ("/var/lib/thawline", "/var/lib/prefect", "/var/lib/mlflow", "/etc/thawline", "/run/secrets", "/tmp")  # noqa: S108
SERVICES = ("mlflow", "prefect", "worker-cpu", "serve-cpu")
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
PATIENCE = 600
"""Seconds until anything must have happened, on a machine that is busy with other things."""


@dataclass(frozen=True)
class Stack:
    """The services, and how to ask them."""

    running: Processes
    services: dict[str, Service]
    environment: dict[str, str]
    """Of the file `.env`."""
    image: dict[str, str]
    """What the image gives every container."""
    ports: dict[str, int]
    folder: Path

    def up(self, name: str) -> None:
        """`docker compose up SERVICE`."""
        self.running.start(name, self.services[name])

    def healthy(self, name: str) -> None:
        self.running.wait_until_healthy(name, PATIENCE)

    def in_worker(self, *command: str | Path) -> str:
        """`docker compose exec worker-cpu COMMAND`; its output."""
        environment = self.image | self.services["worker-cpu"].environment
        ended = subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def mlflow(self, path: str, body: object = None, *, user: str | None = "admin") -> tuple[int, Any]:
        """Status and answer of MLflow's REST API."""
        login = f"{user}:{self.environment['MLFLOW_ADMIN_PASSWORD']}" if user else None
        return ask(f"http://127.0.0.1:{self.ports['mlflow:5000']}/api/2.0/mlflow/{path}", body, login=login)

    def prefect(self, path: str, body: object = None, *, user: str | None = "admin") -> tuple[int, Any]:
        """Status and answer of Prefect's REST API."""
        login = f"{user}:{self.environment['PREFECT_PASSWORD']}" if user else None
        return ask(f"http://127.0.0.1:{self.ports['prefect:4200']}/api/{path}", body, login=login)

    def predict(self, image: Path, token: str | None) -> tuple[int, Any]:
        """Status and answer of the model server."""
        return ask(f"http://127.0.0.1:{self.ports['serve-cpu:8000']}/predict", image.read_bytes(), token=token)

    @property
    def token(self) -> str:
        return Path(self.environment["SERVE_TOKEN_FILE"]).read_text()

    def champion(self) -> str:
        """Version of the champion, by the registry."""
        status, answer = self.mlflow(f"registered-models/alias?name={MODEL}&alias=champion")
        assert status == 200, answer
        return str(answer["model_version"]["version"])


def ask(url: str, body: object = None, *, login: str | None = None, token: str | None = None) -> tuple[int, Any]:
    """Status and JSON of a request: POST if there is a body, of an image or of JSON; GET otherwise."""
    request = urllib.request.Request(url)
    if isinstance(body, bytes):
        request.data = body
        request.add_header("Content-Type", "image/jpeg")
    elif body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    if login is not None:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def fill_in_env(folder: Path, data: Path) -> Path:
    """`.env` out of `.env.example`, as docker/README.md says."""
    token = folder / "serve-token"
    token.write_text(secrets.token_hex(24))
    values = {"DATA": data, "MODEL": MODEL, "SERVE_TOKEN_FILE": token}

    def value(line: re.Match[str]) -> str:
        is_secret = line[1].endswith(("_PASSWORD", "_KEY"))
        return f"{line[1]}={secrets.token_hex(24) if is_secret else values.get(line[1], line[2])}"

    file = folder / ".env"
    file.write_text(re.sub(r"(?m)^([A-Z_]+)=(.*)$", value, (COMPOSE.parent / ".env.example").read_text()))
    return file


@contextmanager
def stack(folder: Path, data: Path) -> Iterator[Stack]:
    """PostgreSQL, up; the other services, to be started."""
    environment = read_env(fill_in_env(folder, data))
    containers = load(environment)
    addresses = ("postgres:5432", "mlflow:5000", "prefect:4200", "worker-cpu:8080", "serve-cpu:8000")
    ports = dict(zip(addresses, free_ports(len(addresses)), strict=True))
    paths = {path: f"{folder}/files{path}" for path in PATHS}
    for path in paths.values():
        Path(path).mkdir(parents=True)
    settings = Path(paths["/etc/thawline"]) / "mlflow-auth.ini"
    settings.write_text(rewire((COMPOSE.parent / settings.name).read_text(), ports, paths))
    shutil.copy(environment["SERVE_TOKEN_FILE"], Path(paths["/run/secrets"]) / "serve-token")
    services = on_loopback(containers, ports, paths)
    image = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    logs = folder / "logs"
    logs.mkdir()
    with (
        postgres_at(
            ports["postgres:5432"],
            environment=services["postgres"].environment,
            script=COMPOSE.parent / "postgres-init.sql",
            log=logs / "postgres.log",
        ) as extensions,
        processes(logs, image) as running,
    ):
        if "pg_trgm" not in extensions:  # the wheel's PostgreSQL: Prefect stays on its SQLite then
            own = dict(services["prefect"].environment)
            del own["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
            services["prefect"] = replace(services["prefect"], environment=own)
        yield Stack(running, services, environment, image, ports, folder)


def add_images(source: Path, target: Path, split: str, numbers: range) -> None:
    """Photographs of each class, by their place in the alphabet."""
    for name in CLASSES:
        (target / split / name).mkdir(parents=True, exist_ok=True)
        files = sorted((source / split / name).iterdir())[numbers.start : numbers.stop]
        assert len(files) == len(numbers)
        for file in files:
            shutil.copyfile(file, target / split / name / file.name)


def flow_runs(stack: Stack) -> list[dict[str, Any]]:
    """Every run of the deployment that is due or was, by when it was due."""
    question = {"deployments": {"name": {"any_": [MODEL]}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 200}
    status, runs = stack.prefect("flow_runs/filter", question)
    assert status == 200, runs
    now = datetime.now(UTC)
    return [run for run in runs if datetime.fromisoformat(run["expected_start_time"]) <= now]


def until(found: Callable[[], Any], what: str) -> Any:
    """What is found, as soon as it is something."""
    deadline = time.monotonic() + PATIENCE
    while not (value := found()):
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE} seconds"
        time.sleep(0.5)  # neither API tells anybody that something has happened
    return value


def next_run(stack: Stack, *before: dict[str, Any], name: str) -> dict[str, Any]:
    """The next run that ended in a state of this name, beyond those that are known; none may fail meanwhile."""
    known = {run["id"] for run in before}

    def found() -> dict[str, Any] | None:
        runs = flow_runs(stack)
        failed = [run["state"] for run in runs if run["state_type"] in {"FAILED", "CRASHED"}]
        assert not failed
        ended = [run for run in runs if run["state_type"] == "COMPLETED" and run["id"] not in known]
        return next((run for run in ended if run["state_name"] == name), None)

    run: dict[str, Any] = until(found, f"a run that ends as {name}")
    return run


def test_a_schedule_trains_skips_and_trains_again_as_the_folder_grows_and_the_champion_is_served(
    shared: Path, tmp_path: Path
) -> None:
    source, data = shared / "data" / "clothing", tmp_path / "images" / MODEL
    for split, count in IMAGES.items():
        add_images(source, data, split, range(count))
    recipe = tmp_path / "recipe.yaml"
    weights = shared / "weights" / "squeezenet1_0_imagenet.safetensors"
    recipe.write_text(yaml.safe_dump(RECIPE | {"backbone": {**RECIPE["backbone"], "weights": str(weights)}}))
    t0 = time.time()
    def tick(what):
        print(f"{time.time()-t0:7.1f} {what}", flush=True)
    with stack(tmp_path, data.parent) as it:
        tick("pg")
        it.up("mlflow"); it.up("prefect"); it.healthy("prefect"); tick("prefect")
        print(it.in_worker("thawline", "deploy", "retrain", "--data", data, "--cron", "* * * * *", "--pool", "thawline", "--recipe", recipe))
        tick("deployed")
        it.healthy("mlflow"); tick("mlflow")
        until(lambda: len(flow_runs(it)) >= 2, "two due runs"); tick("two due")
        it.up("worker-cpu"); it.healthy("worker-cpu"); tick("worker")
        first = next_run(it, name="Completed"); tick(first["state"]["message"])
        it.up("serve-cpu"); it.healthy("serve-cpu"); tick("serve")
        photo = min((source/"test"/"dress").iterdir())
        print(it.predict(photo, None), it.predict(photo, it.token))
        second = next_run(it, first, name="Skipped"); tick(second["state"]["message"])
        add_images(source, data, "train", range(IMAGES["train"], IMAGES["train"]+MORE)); tick("grown")
        third = next_run(it, first, second, name="Completed"); tick(third["state"]["message"])
        print(it.champion())
        until(lambda: it.predict(photo, it.token)[1]["version"] == it.champion(), "v"); tick("v")
        for run in flow_runs(it): print({k: run[k] for k in ("name","expected_start_time","start_time","end_time","state_name","auto_scheduled")}, run["state"]["message"])
        print(it.mlflow(f"registered-models/alias?name={MODEL}&alias=champion", user=None))
        print(it.prefect("flow_runs/count", {}, user=None))
        import subprocess as sp
        print(sp.run(["ps","-eo","pid,pgid,sid,ppid,args"],capture_output=True,text=True).stdout)
        t0=time.time()
        for name in ("serve-cpu","worker-cpu","prefect","mlflow"):
            it.running.stop(name); tick(f"stopped {name}")
        print(it.running.logs(400))
