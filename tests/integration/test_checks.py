"""What is checked before a search: once, whichever command runs it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("api")]

COUNTED = """
from thawline import environment
environment.quiet_prefect()
from thawline import cli
from thawline.exceptions import DataError
from thawline.flows import search as module
from thawline.search import prepare

checks, check_data = [], prepare.check_data

def counted(config):
    checks.append(config)
    check_data(config)

def end(*_):
    raise DataError(f"checked {len(checks)} times")

prepare.check_data, module.prepare = counted, end
cli.main()
"""


@pytest.mark.parametrize("command", ["search", "retrain"])
def test_a_command_checks_its_data_once_before_it_reads_them(
    command: str,
    draw_pictures: Callable[..., Path],
    environment_of: Callable[[Path], dict[str, str]],
    prepared: Callable[[Path], Path],
    prefect: dict[str, str],
    tmp_path: Path,
) -> None:
    photos = draw_pictures(tmp_path / "photos", count=12)
    settings = ("--set", "backbone.name=mobilenet_v3_small", "--set", "backbone.weights=starter")
    ended = subprocess.run(
        [sys.executable, "-c", COUNTED, command, str(photos), *settings, "--set", "data.workers=1"],
        cwd=tmp_path,
        env=environment_of(prepared(tmp_path / "home")) | prefect,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Error: checked 1 times" in ended.stderr


@pytest.mark.parametrize("command", ["search", "retrain"])
def test_a_flow_that_no_command_has_called_checks_too(
    command: str,
    environment_of: Callable[[Path], dict[str, str]],
    prepared: Callable[[Path], Path],
    prefect: dict[str, str],
    tmp_path: Path,
) -> None:
    (tmp_path / "photos").mkdir()
    call = (
        f"from thawline.flows.{command} import {command}; from thawline.config import SearchConfig\n"
        f"{command}(SearchConfig.build({{'data': {{'path': 'photos'}}, 'backbone': {{'weights': 'none'}}}}))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", call],
        cwd=tmp_path,
        env=environment_of(prepared(tmp_path / "home")) | prefect,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "DataError" in ended.stderr
    assert "check_config" in ended.stderr, "the traceback ends there"
