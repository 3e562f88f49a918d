"""A person's yes or no, asked for by Prefect's pause on a real server."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from colours import CLASSES, make_package, picture, register

from thawline.tracking import MlflowStore

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("approval")]

ANSWER = """
import asyncio, json, sys
from prefect.client.orchestration import get_client
from prefect.flow_runs import resume_flow_run

async def answer():
    async with get_client() as client:
        while True:
            paused = [run for run in await client.read_flow_runs() if run.state_name == "Paused"]
            if paused:
                break
            await asyncio.sleep(0.5)
    await resume_flow_run(paused[0].id, run_input=json.loads(sys.argv[1]))

asyncio.run(answer())
"""
"""What the form in Prefect's UI does."""


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
    environment_of: Callable[[Path], dict[str, str]],
) -> None:
    environment = {**environment_of(store.home), **prefect}
    for answer, code, outcome, sentence in (
        ({"approve": False, "note": "not on a Friday"}, 1, "hold", "a person declined: not on a Friday"),
        ({"approve": True, "note": "go"}, 0, "promote", "a person approved: go"),
    ):
        person = subprocess.Popen([sys.executable, "-c", ANSWER, json.dumps(answer)], env=environment)
        try:
            ended = thawline(
                *("promote", "birds", "--data", pictures, "--approve", "--json"),
                home=store.home,
                **prefect,
            )
            assert person.wait(60) == 0
        finally:
            person.kill()
            person.wait()
        assert ended.code == code, ended.err
        assert ended.json["outcome"] == outcome
        assert sentence in ended.json["reason"]
        tags = store.client.get_model_version("birds", "1").tags
        assert (tags["thawline.verdict"], sentence in tags["thawline.reason"]) == (outcome, True)
    assert store.client.get_model_version_by_alias("birds", "champion").version == 1
