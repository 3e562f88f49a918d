"""A person's yes or no, asked for by Prefect's pause on a real server."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from colours import CLASSES, make_package, picture, register
from servers import ask_prefect

from thawline.tracking import MlflowStore

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("approval")]


def answer(client: dict[str, str], answered: dict[str, object]) -> None:
    """What the form in Prefect's UI does, as soon as a run of this server waits for an answer."""
    paused = {"flow_runs": {"state": {"name": {"any_": ["Paused"]}}}}
    while not (runs := ask_prefect(client, "flow_runs/filter", paused)):
        time.sleep(0.2)  # the API tells nobody that something has happened
    ask_prefect(client, f"flow_runs/{runs[0]['id']}/resume", {"run_input": answered})


@pytest.fixture
def store(store: MlflowStore, tmp_path: Path) -> MlflowStore:
    """With a registered version that is not a champion yet."""
    register(store, make_package(tmp_path / "package"))
    return store


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for colour in CLASSES:
        (tmp_path / "pictures" / colour).mkdir(parents=True)
        for name in ("a.png", "b.png"):  # enough to beat the majority class beyond chance
            (tmp_path / "pictures" / colour / name).write_bytes(picture(colour))
    return tmp_path / "pictures"


def test_a_flow_that_is_called_without_a_server_that_outlives_it_refuses_to_wait_for_an_answer(
    store: MlflowStore, pictures: Path, environment_of: Callable[[Path], dict[str, str]]
) -> None:
    call = "from thawline.flows.promote import promote; import sys; promote('birds', data=sys.argv[1], approve=True)"
    ended = subprocess.run(
        [sys.executable, "-c", call, pictures], env=environment_of(store.home), capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert "promotion.approve waits for an answer in Prefect's UI" in ended.stderr
    assert "start a server with `thawline up`" in ended.stderr


def test_the_champion_is_replaced_only_after_a_person_agreed(
    store: MlflowStore,
    pictures: Path,
    prefect: dict[str, str],
    thawline: Callable[..., Any],
    forked: Callable[..., Any],
) -> None:
    # The second in a fork of a process that has the libraries already.
    for run, given, code, outcome, sentence in (
        (thawline, {"approve": False, "note": "not on a Friday"}, 1, "hold", "a person declined: not on a Friday"),
        (forked, {"approve": True, "note": "go"}, 0, "promote", "a person approved: go"),
    ):
        person = threading.Thread(target=answer, args=(prefect, given), daemon=True)
        person.start()
        ended = run("promote", "birds", "--data", pictures, "--approve", "--json", home=store.home, **prefect)
        assert ended.code == code, ended.err
        assert ended.json["outcome"] == outcome
        assert sentence in ended.json["reason"]
        tags = store.client.get_model_version("birds", "1").tags
        assert (tags["thawline.verdict"], sentence in tags["thawline.reason"]) == (outcome, True)
    assert store.client.get_model_version_by_alias("birds", "champion").version == 1


def test_without_an_answer_in_time_the_champion_stays_and_the_run_has_not_failed(
    store: MlflowStore, pictures: Path, prefect: dict[str, str], forked: Callable[..., Any]
) -> None:
    client = store.client
    study = client.create_run(store.experiment_id).info.run_id
    settings = {"data": {"path": str(pictures)}, "promotion": {"approve": True, "approve_minutes": 0.05}}
    client.log_text(study, yaml.safe_dump(settings), "config.yaml")
    client.set_tag(client.get_model_version("birds", "1").run_id, "mlflow.parentRunId", study)
    ended = forked("promote", "birds", "--data", pictures, home=store.home, **prefect)
    assert ended.code == 1, ended.err
    reason = client.get_model_version("birds", "1").tags["thawline.reason"]
    assert reason.startswith("not approved within 0.05 minutes (first champion")
    assert "champion" not in client.get_registered_model("birds").aliases
    page = re.search(r"at most 0\.05 min: \S+/flow-run/(\S+)", ended.err)
    assert page is not None, ended.err
    assert ask_prefect(prefect, f"flow_runs/{page[1]}")["state_type"] == "COMPLETED"
