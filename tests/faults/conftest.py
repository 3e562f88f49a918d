"""Searches of a few seconds, to be hurt."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Forks
from faults import OPTIONS, TRIALS, Search
from once import made_once
from PIL import Image
from servers import clean_environment

from thawline.prefect_server import shut_down


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, bright and dark, hard enough that values differ between trials."""
    folder = tmp_path_factory.mktemp("faults") / "shapes"
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("validation", 12), ("test", 12)):
        for name, level in (("bright", 60), ("dark", 0)):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = (random.integers(0, 190, (32, 32, 3)) + level).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def search_in(
    shapes: Path, prepared: Callable[[Path], Path], prefect: dict[str, str], first_process: Forks
) -> Callable[..., Search]:
    """Makes a search in a home of its own that records on the worker's Prefect server."""

    def make(home: Path, *options: str, **more: str) -> Search:
        settings = {"THAWLINE_HOME": str(prepared(home)), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment = clean_environment() | settings | prefect | more
        return Search(shapes, home, environment, [*OPTIONS, *options], first_process)

    return make


@pytest.fixture(scope="session")
def reference(search_in: Callable[..., Search], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of a search by ``TRIALS`` that nothing hurt, made once for all that are compared with it."""

    def make(folder: Path) -> None:
        outcome = search_in(tmp_path_factory.mktemp("reference") / "home", *TRIALS).finish()
        (folder / "outcome.json").write_text(json.dumps(outcome))

    return dict(json.loads((made_once(tmp_path_factory, "reference", make) / "outcome.json").read_text()))


@pytest.fixture
def make_search(search_in: Callable[..., Search], tmp_path: Path) -> Iterator[Callable[..., Search]]:
    """Makes searches as ``search_in`` does, of which no process outlives the test."""
    made: list[Search] = []

    def make(name: str, *options: str, home: Path | None = None, **more: str) -> Search:
        made.append(search_in(home or tmp_path / name / "home", *options, **more))
        return made[-1]

    yield make
    for search in made:
        for life in search.lives:
            life.kill_everything()
        shut_down(search.home)
