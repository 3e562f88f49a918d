"""What is checked before a search: once, whoever runs it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("api")]

BOTH = """
import os, sys
from thawline import environment
environment.quiet_prefect()
from thawline import cli
from thawline.config import SearchConfig
from thawline.exceptions import DataError
from thawline.flows import retrain, search
from thawline.search import prepare

checks, check_data = [], prepare.check_data

def counted(config):
    checks.append(config)
    check_data(config)

def end(*_):
    print(name, len(checks), flush=True)
    raise DataError("that is enough")

prepare.check_data, search.prepare = counted, end
settings = {"backbone": {"name": "mobilenet_v3_small", "weights": "starter"}, "data": {"path": "photos", "workers": 1}}
config = SearchConfig.build(settings)
sets = [f"--set={key}.{name}={value}" for key in settings for name, value in settings[key].items() if name != "path"]

def command(verb):
    sys.argv = ["thawline", verb, "photos", *sets]
    cli.main()

runs = {
    "thawline search": lambda: command("search"),
    "thawline retrain": lambda: command("retrain"),
    "the flow search": lambda: search.search(config),
    "the flow retrain": lambda: retrain.retrain(config),
}
for name, run in runs.items():
    checks.clear()
    try:
        run()
    except (DataError, SystemExit):
        pass
"""


def test_a_command_checks_its_data_once_and_so_does_a_flow_that_no_command_has_called(
    draw_pictures: Callable[..., Path],
    environment_of: Callable[[Path], dict[str, str]],
    prepared: Callable[[Path], Path],
    prefect: dict[str, str],
    tmp_path: Path,
) -> None:
    draw_pictures(tmp_path / "photos", count=12)
    ended = subprocess.run(
        [sys.executable, "-c", BOTH],
        cwd=tmp_path,
        env=environment_of(prepared(tmp_path / "home")) | prefect,
        capture_output=True,
        text=True,
        timeout=300,
    )
    expected = ["thawline search 1", "thawline retrain 1", "the flow search 1", "the flow retrain 1"]
    assert ended.stdout.splitlines() == expected, ended.stderr
