"""`thawline deploy` and prefect.yaml, on a real Prefect server and with a real worker."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Forks
from said import Said
from servers import ASKS_OFTEN, PREFECT, ask_prefect, prefect_worker

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("deploy"), pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
PATIENCE = 400
"""Seconds until anything must have happened, on a machine that is busy with other things."""
RECIPE: dict[str, Any] = {
    "data": {"workers": 1},
    "backbone": {"name": "mobilenet_v3_small", "weights": "starter", "image_size": 32},
    "train": {"epochs": 1, "batch_size": 16, "device": "cpu"},
    "study": {"trials": 1},
    "space": {"freeze_depth": [6, 6]},
    "promotion": {"exports": []},
    "tracking": {"tensorboard": False, "system_metrics": False, "report": False, "observe": False},
}
MISSED = 10
DRIFT = """
from prefect.events import emit_event
emit_event("thawline.drift.detected", resource={"prefect.resource.id": "thawline.model.shapes"})
"""
REFUSED = """
import json, sys
from thawline import environment
environment.prepare()
from thawline.cli import app
from thawline.exceptions import ThawlineError
for arguments in json.loads(sys.argv[1]):
    try:
        app(arguments, standalone_mode=False)
    except ThawlineError as error:
        print(json.dumps(str(error)))
    else:
        print(json.dumps("it was deployed"))
"""
"""The command line, many times in one process: it takes seconds to start."""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path / "recipe.yaml"


@pytest.fixture
def shapes(tmp_path: Path, draw_pictures: Callable[..., Path]) -> Path:
    return draw_pictures(tmp_path / "shapes")


def until(found: Callable[[], Any], what: str) -> Any:
    """What is found, as soon as it is something."""
    deadline = time.monotonic() + PATIENCE
    while not (value := found()):
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE} seconds"
        time.sleep(0.3)  # the API tells nobody that something has happened
    return value


def deployment(client: dict[str, str], name: str) -> dict[str, Any]:
    found: dict[str, Any] = ask_prefect(client, f"deployments/name/{name}")
    return found


def runs_of(client: dict[str, str], which: str, **state: list[str]) -> list[dict[str, Any]]:
    """Runs of a deployment in a state, the first that was due first."""
    flow, _, own = which.partition("/")
    question = {
        "flows": {"name": {"any_": [flow]}},
        "deployments": {"name": {"any_": [own]}},
        "flow_runs": {"state": {key: {"any_": values} for key, values in state.items()}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    found: list[dict[str, Any]] = ask_prefect(client, "flow_runs/filter", question)
    return found


def test_a_worker_that_was_off_starts_one_run_then_skips_what_did_not_change_and_drift_asks_again(
    shapes: Path,
    recipe: Path,
    tmp_path: Path,
    prefect: dict[str, str],
    prepared: Callable[[Path], Path],
    thawline: Callable[..., Any],
    forked: Callable[..., Any],
    environment_of: Callable[[Path], dict[str, str]],
) -> None:
    home = prepared(tmp_path / "home")
    # From the folder that holds the images, by a relative path.
    made = thawline(
        *("deploy", "retrain", "--data", "shapes", "--recipe", recipe.name, "--cron", "0 3 * * *"),
        *("--pool", "local", "--on-drift"),
        home=home,
        **prefect,
    )
    assert made.code == 0, made.err
    assert "Deployed retrain/shapes to the work pool local." in made.out
    assert "prefect worker start --pool local" in made.out
    assert "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE" not in made.out  # this server keeps them on disk
    name = "retrain/shapes"
    known = deployment(prefect, name)
    assert known["parameters"]["config"]["data"]["path"] == str(shapes)
    assert known["entrypoint"] == "thawline.flows.retrain.retrain"
    assert ask_prefect(prefect, "work_pools/local")["type"] == "process"

    # The server plans the runs of days on which no worker was up.
    now = datetime.now(UTC)

    def plan(first: int, runs: int) -> None:
        span = {"start_time": (now - timedelta(days=first)).isoformat(), "end_time": now.isoformat()}
        ask_prefect(prefect, f"deployments/{known['id']}/schedule", {**span, "min_runs": runs, "max_runs": runs})

    plan(MISSED + 1, MISSED)
    planned = runs_of(prefect, name, type=["SCHEDULED"])
    missed = {run["id"] for run in planned if datetime.fromisoformat(run["expected_start_time"]) <= now}
    assert len(missed) >= MISSED

    worker = environment_of(tmp_path / "elsewhere") | prefect | ASKS_OFTEN
    with prefect_worker("local", worker, tmp_path / "worker.log"):
        trained = until(lambda: runs_of(prefect, name, name=["Completed"]), "a scheduled run that trains")
        assert trained[0]["auto_scheduled"]
        assert trained[0]["state"]["message"].startswith("first champion; its accuracy is")
        plan(MISSED + 3, 1)
        skipped = until(lambda: runs_of(prefect, name, name=["Skipped"]), "a scheduled run that skips")
        assert skipped[0]["auto_scheduled"]
        assert skipped[0]["state"]["message"].startswith("nothing has changed since shapes version 1")

        begun = [run for run in runs_of(prefect, name, type=["COMPLETED", "RUNNING"]) if run["id"] in missed]
        assert len(begun) == 1, "one run replaces all that were missed"
        cancelled = {run["id"] for run in runs_of(prefect, name, type=["CANCELLED"])}
        assert missed - {begun[0]["id"]} <= cancelled

        ask_prefect(prefect, f"deployments/{known['id']}/pause_deployment", {})
        assert forked("-c", DRIFT, home=tmp_path / "elsewhere", **prefect).code == 0
        by_drift = until(
            lambda: [
                run
                for run in runs_of(prefect, name, type=["COMPLETED", "CANCELLED"])
                if (run["created_by"] or {}).get("type") == "AUTOMATION"
            ],
            "a run that drift asked for",
        )
        assert by_drift[0]["state_name"] in {"Skipped", "Cancelled"}
    assert forked("history", "shapes", "--json", home=home).json[0]["version"] == "1"
    log = (tmp_path / "worker.log").read_text()
    assert "Traceback" not in log


def test_served_from_here_a_run_that_is_stopped_is_said_to_be_cancelled_and_holds_nothing(
    shapes: Path,
    recipe: Path,
    tmp_path: Path,
    prefect: dict[str, str],
    first_process: Forks,
    environment_of: Callable[[Path], dict[str, str]],
) -> None:
    command = ["deploy", "--data", str(shapes), "--recipe", str(recipe), "--name", "stopped"]
    longer = ["--set", "train.epochs=1000", "--set", "study.trials=100", "--set", "activations.store=false"]
    environment = environment_of(tmp_path / "home") | prefect | ASKS_OFTEN
    process = first_process.start([*command, *longer], environment, tmp_path)
    said = Said(process.stderr)
    try:
        said.wait_for("Serving retrain/stopped")
        known = until(lambda: _found(prefect, "retrain/stopped"), "the deployment")
        asked = ask_prefect(prefect, f"deployments/{known['id']}/create_flow_run", {})
        said.wait_for(r"Task run '(trial|store activations)")
        process.terminate()
        assert process.wait(PATIENCE) == 143, said.lines
    finally:
        process.kill()
        process.wait()
        process.close()
    ended = ask_prefect(prefect, f"flow_runs/{asked['id']}")
    assert (ended["state_type"], ended["run_count"]) == ("CANCELLED", 1)

    def taken() -> set[str]:
        limits = ask_prefect(prefect, "v2/concurrency_limits/filter", {})
        assert {"thawline-shapes", f"deployment:{known['id']}"} <= {limit["name"] for limit in limits}
        return {limit["name"] for limit in limits if limit["active_slots"]}

    # The run's own process may outlive the one that served it: its trials have some seconds to leave.
    until(lambda: not taken(), "both slots")


def _found(client: dict[str, str], name: str) -> dict[str, Any] | None:
    try:
        return deployment(client, name)
    except OSError:
        return None


def test_prefect_alone_deploys_what_prefect_yaml_names(prefect: dict[str, str], tmp_path: Path) -> None:
    ask_prefect(prefect, "work_pools/", {"name": "thawline", "type": "process"})
    command = [PREFECT, "--no-prompt", "deploy", "--all"]
    ended = subprocess.run(command, env={**os.environ, **prefect}, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for flow in ("retrain", "search", "promote", "score", "drift"):
        made = deployment(prefect, f"{flow}/photos")
        assert made["entrypoint"] == f"thawline.flows.{flow}.{flow}"
        assert made["global_concurrency_limit"]["limit"] == 1
        assert made["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


def test_without_a_named_server_thawline_s_own_takes_the_deployment_and_its_worker_runs_it(
    shapes: Path,
    recipe: Path,
    tmp_path: Path,
    thawline: Callable[..., Any],
    forked: Callable[..., Any],
    environment_of: Callable[..., Any],
) -> None:
    home = tmp_path / "home"
    up = thawline("up", "--worker", "local", home=home, **ASKS_OFTEN)
    assert up.code == 0, up.err
    client = dict(re.findall(r"(PREFECT_\w+)=(\S+)", up.out))
    try:
        made = forked("deploy", "--data", shapes, "--recipe", recipe, "--pool", "local", home=home)
        assert made.code == 0, made.err
        assert "A worker runs it: thawline up --worker local" in made.out
        ask = [PREFECT, "deployment", "run", "retrain/shapes", "--watch", "--watch-interval", "1"]
        ended = subprocess.run(ask, env=environment_of(home) | client, capture_output=True, text=True, timeout=PATIENCE)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    finally:
        down = thawline("down", home=home)
    assert (down.code, down.out) == (0, "Prefect's server has stopped.\n")


def test_a_named_server_that_does_not_answer_is_one_message(
    shapes: Path, tmp_path: Path, forked: Callable[..., Any]
) -> None:
    arguments = ("deploy", "--data", shapes, "--cron", "0 3 * * *")
    ended = forked(*arguments, home=tmp_path / "home", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert ended.code == 2
    assert "The Prefect server at http://127.0.0.1:9/api does not respond" in ended.err
    assert "Traceback" not in ended.err


def test_what_cannot_run_is_refused_before_anything_is_deployed(
    shapes: Path, tmp_path: Path, prefect: dict[str, str], forked: Callable[..., Any]
) -> None:
    ask_prefect(prefect, "work_pools/", {"name": "containers", "type": "docker"})
    cases = {
        "--cron=61 * * * *": "--cron takes minute, hour, day, month and weekday",
        "--cron=0 3 * * * --timezone=Mars": "--timezone takes a name such as Europe/Berlin, but got 'Mars'",
        "--timezone=UTC": "--timezone needs --cron",
        "--name=a/b": "--name must start with a letter or a digit",
        "--pool=a+b": "--pool must start with a letter or a digit",
        "--pool=containers": "The work pool 'containers' is of type docker",
        "--set=train.epoch=1": "train.epoch: unknown key",
        "--set=space.freeze_depth=[0,99]": "space.freeze_depth: 0 <= low <= high",
        "--set=tracking.uri=https://me:secret@example.org": "tracking.uri or study.storage contains a password",
        "--set=retrain.notify=[slack-webhook/team]": "Prefect has no block 'slack-webhook/team'",
        "--out=a.parquet": "score also needs --model NAME and --out FILE.parquet",
    }
    calls = [["deploy", "--data", str(shapes), *re.split(" (?=--)", arguments)] for arguments in cases]
    calls.append(["deploy", "score", "--data", str(shapes), "--model", "shapes", "--out", "a.csv"])
    sentences = [*cases.values(), "--out must be a .parquet file"]
    ended = forked("-c", REFUSED, json.dumps(calls), home=tmp_path / "home", **prefect)
    assert ended.code == 0, ended.err
    said = [json.loads(line) for line in ended.out.splitlines()]
    for call, sentence, error in zip(calls, sentences, said, strict=True):
        assert sentence in error, call
    made = ask_prefect(prefect, "deployments/filter", {"deployments": {"name": {"any_": ["shapes", "a/b"]}}})
    assert not [each for each in made if each["parameters"].get("config", {}).get("data") == {"path": str(shapes)}]
