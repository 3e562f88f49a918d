"""Ctrl-C and SIGTERM of the verbs beside `search`, in a terminal: a sentence or two, and nothing is left behind."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Forks
from interruptions import RESUMES, STOPPED, stop
from terminals import Terminal, terminal

from thawline.prefect_server import shut_down

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("search"), pytest.mark.timeout(600)]

RECIPE = {
    "data": {"workers": 1},
    "backbone": {"name": "mobilenet_v3_small", "weights": "starter", "image_size": 32},
    "train": {"epochs": 1, "device": "cpu"},
    "study": {"trials": 1},
    "promotion": {"exports": []},
}
MANY = 2000
"""Files to score, more than are scored before a signal comes."""


@pytest.fixture(scope="module")
def folder(searched: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with a home that has a champion, data, a recipe, and many files to score."""
    folder = tmp_path_factory.mktemp("verbs")
    shutil.copytree(searched.home, folder / "home", ignore=shutil.ignore_patterns("server"))
    shutil.copytree(searched.data, folder / "shapes")
    (folder / "many").mkdir()
    picture = searched.data / "circle" / "circle-00.png"
    for number in range(MANY):
        (folder / "many" / f"{number}.png").symlink_to(picture)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    yield folder
    shut_down(folder / "home")


@pytest.mark.parametrize(
    ("arguments", "where", "way", "goes_on"),
    [
        ("demo", "reading images", "ctrl-c", True),
        ("retrain shapes --recipe recipe.yaml --model other", "reading images", "SIGTERM to the group", True),
        ("promote shapes --version 1", "scoring version 1", "ctrl-c", False),
        ("score shapes many --out many.parquet", f"/{MANY}", "ctrl-c twice", True),
        ("serve shapes --port 0", "is ready; press Ctrl-C to stop it", "ctrl-c", False),
        (
            "deploy score --data many --model shapes --out m.parquet",
            "press Ctrl-C to stop it",
            "SIGTERM to the group",
            False,
        ),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_a_verb_that_is_stopped_says_so_in_a_sentence_or_two_and_leaves_nothing_behind(
    arguments: str, where: str, way: str, goes_on: bool, folder: Path, environment_of: Any, first_process: Forks
) -> None:
    home = folder / "home"
    forks = None if arguments == "demo" else first_process  # of the others some test runs a real process elsewhere
    with terminal(*arguments.split(), env=environment_of(home), cwd=folder, forks=forks) as command:
        assert command.says(where), command.text
        shown = stop(command, home, way)
    assert shown.count(STOPPED) == 1
    assert shown.count(RESUMES) == goes_on


def test_a_search_of_mlflow_run_that_is_stopped_leaves_nothing_behind(folder: Path, environment_of: Any) -> None:
    home, project = folder / "home", Path(__file__).parents[2] / "mlproject"
    environment = environment_of(home) | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # the entry point's `thawline`
    }
    command = [sys.executable, "-m", "mlflow", "run", str(project), "-e", "search", "--env-manager", "local"]
    command += ["-P", f"data={folder / 'shapes'}", "-P", f"recipe={folder / 'recipe.yaml'}"]
    mlflow = Terminal(command, env=environment, cwd=folder)
    try:
        assert mlflow.says("reading images"), mlflow.text
        shown = stop(mlflow, home, "ctrl-c", code=1)  # MLflow's own, after its word "Aborted!"
    finally:
        mlflow.close()
    assert shown.count(STOPPED) == shown.count(RESUMES) == 1
