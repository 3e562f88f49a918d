"""Searches of a few seconds, to be hurt."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from faults import OPTIONS, Search
from PIL import Image
from servers import clean_environment


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


@pytest.fixture
def make_search(
    shapes: Path, tmp_path: Path, prepared: Callable[[Path], Path], prefect: dict[str, str]
) -> Iterator[Callable[..., Search]]:
    """Makes searches in homes of their own that record on the worker's Prefect server."""
    made: list[Search] = []

    def make(name: str, *options: str, home: Path | None = None, **more: str) -> Search:
        folder = prepared(home or tmp_path / name / "home")
        settings = {"THAWLINE_HOME": str(folder), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment = clean_environment() | settings | prefect | more
        made.append(Search(shapes, folder, environment, [*OPTIONS, *options]))
        return made[-1]

    yield make
    for search in made:
        for life in search.lives:
            life.kill_everything()
