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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml
from databases import postgres_at
from servers import ASKS_OFTEN
from topology import COMPOSE, Processes, Service, free_ports, load, on_loopback, processes, read_env, rewire

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("topology"), pytest.mark.timeout(1500)]

T = TypeVar("T")

MODEL = "clothing"
CLASSES = ("dress", "hat", "pants", "shoes")
FIRST = {"train": range(2), "validation": range(8), "test": range(12)}
"""Photographs of each class that are there when the schedule begins: few, so that more make a better model."""
MORE = {"train": range(2, 62)}
"""Those that come later; the test images stay as they are."""
RECIPE = {
    "data": {"workers": 1},
    "space": {"freeze_depth": [4, 4], "learning_rate": [0.001, 0.01]},
    "train": {"epochs": 4, "batch_size": 16, "device": "cpu", "precision": "fp32", "channels_last": False},
    "study": {"trials": 2},
    "tracking": {"tensorboard": False, "system_metrics": False, "report": False, "observe": False},
    # Accuracy decides: of two images a class nothing good is learnt, but nothing overconfident either.
    "promotion": {"max_calibration_loss": 1, "max_recall_loss": 1, "max_latency_ratio": 1000, "exports": []},
}
ADDRESSES = ("postgres:5432", "mlflow:5000", "prefect:4200", "worker-cpu:8080", "serve-cpu:8000")
FOLDERS = ("/var/lib/thawline", "/var/lib/prefect", "/var/lib/mlflow", "/etc/thawline", "/run/secrets", "/tmp")  # noqa: S108
"""Of the containers; here each is a folder below the test's own."""
PATIENCE = 600
"""Seconds within which whatever is waited for must happen, on a machine that is busy with other things."""


@dataclass(frozen=True)
class Stack:
    """The services of the compose file, and how to ask them."""

    services: dict[str, Service]
    running: Processes
    ports: dict[str, int]
    folders: dict[str, Path]
    """By the path in a container, the folder that stands for it."""
    image: dict[str, str]
    """Environment that the image gives every container."""
    secrets: dict[str, str] = field(repr=False)
    """Of the file `.env`."""

    def up(self, name: str) -> None:
        """`docker compose up --detach NAME`."""
        self.running.start(name, self.services[name])

    def healthy(self, name: str) -> None:
        """Wait for it."""
        self.running.wait_until_healthy(name, PATIENCE)

    def once(self, name: str) -> None:
        """Run a service that ends by itself."""
        service = self.services[name]
        ended = subprocess.run(
            service.command, env=self.image | service.environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert ended.returncode == 0, ended.stderr

    def in_worker(self, *command: str | Path) -> str:
        """`docker compose exec worker-cpu COMMAND`; what it prints."""
        environment = self.image | self.services["worker-cpu"].environment
        ended = subprocess.run(
            command,
            env=environment,
            cwd=self.folders["/var/lib/thawline"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def mlflow(self, path: str, body: object = None, *, login: bool = True) -> tuple[int, Any]:
        """Status and answer of MLflow's REST API."""
        user = f"admin:{self.secrets['MLFLOW_ADMIN_PASSWORD']}" if login else None
        return ask(f"http://127.0.0.1:{self.ports['mlflow:5000']}/api/2.0/mlflow/{path}", body, user=user)

    def prefect(self, path: str, body: object = None, *, login: bool = True) -> tuple[int, Any]:
        """Status and answer of Prefect's REST API."""
        user = f"admin:{self.secrets['PREFECT_PASSWORD']}" if login else None
        return ask(f"http://127.0.0.1:{self.ports['prefect:4200']}/api/{path}", body, user=user)

    def predict(self, image: Path, *, login: bool = True) -> tuple[int, Any]:
        """Status and answer of the model server."""
        token = Path(self.secrets["SERVE_TOKEN_FILE"]).read_text() if login else None
        return ask(f"http://127.0.0.1:{self.ports['serve-cpu:8000']}/predict", image.read_bytes(), token=token)

    def champion(self) -> str:
        """Version of the champion, by the registry."""
        status, answer = self.mlflow(f"registered-models/alias?name={MODEL}&alias=champion")
        assert status == 200, answer
        return str(answer["model_version"]["version"])

    def test_accuracy(self, version: str) -> float:
        """What the registry's evidence says of a version."""
        _, answer = self.mlflow(f"model-versions/get?name={MODEL}&version={version}")
        _, answer = self.mlflow(f"runs/get?run_id={answer['model_version']['run_id']}")
        metrics = {metric["key"]: metric["value"] for metric in answer["run"]["data"]["metrics"]}
        return float(metrics["test/accuracy"])

    def runs_in_mlflow(self) -> Counter[tuple[str, str]]:
        """How many there are of each role and status."""
        _, found = self.mlflow("experiments/get-by-name?experiment_name=thawline")
        _, found = self.mlflow("runs/search", {"experiment_ids": [found["experiment"]["experiment_id"]]})
        roles = [{tag["key"]: tag["value"] for tag in run["data"]["tags"]}["thawline.role"] for run in found["runs"]]
        return Counter(zip(roles, (run["info"]["status"] for run in found["runs"]), strict=True))

    def scheduled_runs(self) -> list[dict[str, Any]]:
        """The deployment's flow runs that are due or were, in the order of the schedule."""
        question = {"deployments": {"name": {"any_": [MODEL]}}, "sort": "EXPECTED_START_TIME_ASC", "limit": 200}
        status, runs = self.prefect("flow_runs/filter", question)
        assert status == 200, runs
        assert all(run["auto_scheduled"] for run in runs)
        now = datetime.now(UTC)
        return [run for run in runs if time_of(run, "expected_start_time") <= now]

    def plan_what_was_missed(self, days: range) -> None:
        """Have the server plan the runs that were due so many days ago, as it had if the deployment were so old."""
        status, known = self.prefect(f"deployments/name/retrain/{MODEL}")
        assert status == 200, known
        now, runs = datetime.now(UTC), len(days)
        start, end = (now - timedelta(days=ago) for ago in (days.stop, days.start))
        span = {"start_time": start.isoformat(), "end_time": end.isoformat(), "min_runs": runs, "max_runs": runs}
        status, answer = self.prefect(f"deployments/{known['id']}/schedule", span)
        assert status == 200, answer

    def next_run(self, *before: dict[str, Any], end: str) -> dict[str, Any]:
        """Wait for one that ends in a state of this name, beside those that are known; none may fail meanwhile."""

        def ended() -> dict[str, Any] | None:
            runs = self.scheduled_runs()
            failed = [run["state"]["message"] for run in runs if run["state_type"] in {"FAILED", "CRASHED"}]
            assert not failed, "\n".join(failed)
            return next((run for run in runs if run["state_name"] == end and run["id"] not in known), None)

        known = {run["id"] for run in before}
        return until(f"a run ends as {end}", ended)


def time_of(run: Mapping[str, Any], name: str) -> datetime:
    return datetime.fromisoformat(run[name])


def ask(url: str, body: object = None, *, user: str | None = None, token: str | None = None) -> tuple[int, Any]:
    """Status and answer; a POST if there is a body, which is an image or becomes JSON."""
    request = urllib.request.Request(url)
    if body is not None:
        request.data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request.add_header("Content-Type", "image/jpeg" if isinstance(body, bytes) else "application/json")
    if user is not None:
        request.add_header("Authorization", f"Basic {base64.b64encode(user.encode()).decode()}")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def until(what: str, answer: Callable[[], T | None]) -> T:
    """Ask until there is an answer, and return it."""
    deadline = time.monotonic() + PATIENCE
    while not (found := answer()):
        assert time.monotonic() < deadline, f"not within {PATIENCE} seconds: {what}"
        time.sleep(1)  # none of the servers tells that something has happened
    return found


def fill_in(folder: Path, data: Path) -> Path:
    """`.env` out of `.env.example`, as docker/README.md says."""
    token = folder / "serve-token"
    token.write_text(secrets.token_hex(24))
    chosen = {"DATA": data, "MODEL": MODEL, "SERVE_TOKEN_FILE": token}

    def filled(line: re.Match[str]) -> str:
        name, value = line.groups()
        if name.endswith(("_PASSWORD", "_KEY")):
            value = secrets.token_hex(24)
        return f"{name}={chosen.get(name, value)}"

    file = folder / ".env"
    file.write_text(re.sub(r"(?m)^([A-Z_]+)=(.*)$", filled, (COMPOSE.parent / ".env.example").read_text()))
    return file


@contextmanager
def stack(folder: Path, data: Path) -> Iterator[Stack]:
    """PostgreSQL is up; the other services are yet to be started."""
    environment = read_env(fill_in(folder, data))
    ports = dict(zip(ADDRESSES, free_ports(len(ADDRESSES)), strict=True))
    folders = {inside: folder / f"root{inside}" for inside in FOLDERS}
    for path in (logs := folder / "logs", *folders.values()):
        path.mkdir(parents=True)
    paths = {inside: str(path) for inside, path in folders.items()}
    settings = (COMPOSE.parent / "mlflow-auth.ini").read_text()
    (folders["/etc/thawline"] / "mlflow-auth.ini").write_text(rewire(settings, ports, paths))
    shutil.copy(COMPOSE.parent / "mlflow_reader.py", folders["/etc/thawline"])
    shutil.copy(environment["SERVE_TOKEN_FILE"], folders["/run/secrets"] / "serve-token")
    services = on_loopback(load(environment), ports, paths)
    image = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    database = postgres_at(
        ports["postgres:5432"],
        environment=services["postgres"].environment,
        script=COMPOSE.parent / "postgres-init.sql",
        log=logs / "postgres.log",
    )
    with database as extensions, processes(logs, image) as running:
        if "pg_trgm" not in extensions:
            services["prefect"] = without(services["prefect"], "PREFECT_SERVER_DATABASE_CONNECTION_URL")
        worker = services["worker-cpu"]
        services["worker-cpu"] = replace(worker, environment={**worker.environment, **ASKS_OFTEN})
        yield Stack(services, running, ports, folders, image, environment)


def without(service: Service, name: str) -> Service:
    """Without a variable."""
    return replace(service, environment={key: value for key, value in service.environment.items() if key != name})


def add_images(source: Path, target: Path, numbers: Mapping[str, range]) -> None:
    """Photographs of every class, by their place in the alphabet, as copies."""
    for split, wanted in numbers.items():
        for name in CLASSES:
            files = sorted((source / split / name).iterdir())
            (target / split / name).mkdir(parents=True, exist_ok=True)
            for number in wanted:
                shutil.copyfile(files[number], target / split / name / files[number].name)


@pytest.fixture
def photographs(shared: Path) -> Path:
    return shared / "data" / "clothing"


@pytest.fixture
def recipe(shared: Path, tmp_path: Path) -> Path:
    weights = shared / "weights" / "squeezenet1_0_imagenet.safetensors"
    backbone = {"name": "squeezenet1_0", "weights": str(weights), "image_size": 96}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({**RECIPE, "backbone": backbone}))
    return file


def test_a_schedule_trains_then_skips_then_trains_on_what_has_come_and_the_better_model_is_served(
    photographs: Path, recipe: Path, tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    data = tmp_path / "images" / MODEL
    add_images(photographs, data, FIRST)
    photo = min((photographs / "test" / "dress").iterdir())
    with stack(tmp_path, data.parent) as it:
        it.up("mlflow")
        it.up("prefect")
        it.healthy("prefect")
        # Prefect needs extensions that not every PostgreSQL server has, see postgres_at.
        in_postgres = "PREFECT_SERVER_DATABASE_CONNECTION_URL" in it.services["prefect"].environment
        record_testsuite_property("Prefect's database", "PostgreSQL" if in_postgres else "SQLite")
        assert (it.folders["/var/lib/prefect"] / "prefect.db").exists() != in_postgres

        command = ["thawline", "deploy", "retrain", "--cron", "0 3 * * *", "--pool", "thawline"]
        said = it.in_worker(*command, "--data", data, "--recipe", recipe)
        assert f"Deployed retrain/{MODEL} to the work pool thawline." in said
        it.healthy("mlflow")

        # Nobody worked for three days.
        it.plan_what_was_missed(range(3))
        assert len(it.scheduled_runs()) >= 2
        it.up("worker-cpu")
        it.healthy("worker-cpu")

        first = it.next_run(end="Completed")
        assert re.fullmatch(
            r"first champion; its accuracy is [\d.]+, .* majority class's [\d.]+", first["state"]["message"]
        )
        assert it.champion() == "1"
        it.once("mlflow-reader")
        it.up("serve-cpu")  # there is something to serve now
        it.healthy("serve-cpu")
        status, answer = it.predict(photo)
        assert (status, answer["version"]) == (200, "1")
        assert set(answer["predictions"][0]["probabilities"]) == set(CLASSES)

        it.plan_what_was_missed(range(20, 22))  # the next by the clock would be due at night
        second = it.next_run(first, end="Skipped")
        assert second["state"]["message"].startswith(f"nothing has changed since {MODEL} version 1 (verdict: promote)")

        add_images(photographs, data, MORE)
        assert it.predict(photo, login=False)[0] == 401
        assert it.mlflow(f"registered-models/get?name={MODEL}", login=False)[0] == 401
        assert it.prefect("flow_runs/count", {}, login=False)[0] == 401
        assert it.prefect("flow_runs/count", {})[0] == 200

        it.plan_what_was_missed(range(30, 32))
        third = it.next_run(first, second, end="Completed")
        judged = re.fullmatch(
            r"the challenger is better: accuracy ([\d.]+) against ([\d.]+) on the same 48 test images; "
            r"\d+ images? of 48 better, 95% interval \S+ to \S+",
            third["state"]["message"],
        )
        assert judged, third["state"]["message"]
        assert [float(value) for value in judged.groups()] == [
            pytest.approx(it.test_accuracy(version), abs=1e-4) for version in ("2", "1")
        ]
        assert it.champion() == "2"
        until("the new champion is served", lambda: it.predict(photo)[1]["version"] == "2")
        assert it.runs_in_mlflow() == {("study", "FINISHED"): 2, ("trial", "FINISHED"): 4}

        runs = it.scheduled_runs()
        check_that_no_two_ran_at_once(runs)
        check_that_what_was_missed_was_dropped(runs, first, third)

        leaderboard = json.loads(it.in_worker("thawline", "leaderboard", "--json"))
        assert leaderboard["study"].startswith(f"{MODEL}-squeezenet1_0-")
        assert len(leaderboard["trials"]) == 2
        home = it.folders["/var/lib/thawline"]
        assert not (home / "optuna.journal").exists()
        assert not (home / "mlflow.db").exists()


def check_that_no_two_ran_at_once(runs: list[dict[str, Any]]) -> None:
    ran = [(time_of(run, "start_time"), time_of(run, "end_time")) for run in runs if run["state_type"] == "COMPLETED"]
    assert len(ran) >= 3
    assert all(end <= start for (_, end), (start, _) in pairwise(sorted(ran)))


def check_that_what_was_missed_was_dropped(
    runs: list[dict[str, Any]], first: dict[str, Any], last: dict[str, Any]
) -> None:
    """Neither does what nobody was there for wait for its turn, nor what a run was busy for."""
    due = {run["id"]: Counter(other["state_name"] for other in runs if due_before(other, run)) for run in (first, last)}
    assert due[first["id"]]["Completed"] == 1
    assert due[first["id"]]["Cancelled"] == due[first["id"]].total() - 1 >= 1
    assert set(due[last["id"]]) == {"Completed", "Skipped", "Cancelled"}


def due_before(other: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
    """Whether another was due, and planned, when a run began."""
    return max(time_of(other, "expected_start_time"), time_of(other, "created")) <= time_of(run, "start_time")
