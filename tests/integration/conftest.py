"""One whole search by the command line, which many tests look at from all sides."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Forks
from PIL import Image, ImageDraw
from servers import clean_environment

CLASSES = ("circle", "square", "stripes")


def _draw_pictures(folder: Path, count: int = 24, size: int = 48) -> Path:
    """Three classes of coloured shapes on noise, one folder each."""
    random = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            image = Image.fromarray(random.integers(0, 90, (size, size, 3)).astype(np.uint8))
            draw = ImageDraw.Draw(image)
            colour = tuple(int(value) for value in random.integers(140, 255, 3))
            left, top = (int(value) for value in random.integers(4, 14, 2))
            if name == "circle":
                draw.ellipse((left, top, left + 26, top + 26), fill=colour)
            elif name == "square":
                draw.rectangle((left, top, left + 26, top + 26), fill=colour)
            else:
                for line in range(0, size, 8):
                    draw.line((0, line, size, line), fill=colour, width=3)
            image.save(folder / name / f"{name}-{index:02d}.png")
    return folder


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code in (0, 1), self.err
        return json.loads(self.out)


def _environment_of(home: Path) -> dict[str, str]:
    return {**clean_environment(), "THAWLINE_HOME": str(home), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def draw_pictures() -> Callable[..., Path]:
    return _draw_pictures


@pytest.fixture(scope="session")
def environment_of() -> Callable[[Path], dict[str, str]]:
    """Environment of a command: a home of its own, and nothing of MLflow's or Prefect's from this process.

    Without ``prefect``'s variables beside it, a flow starts a Prefect server of its own.
    """
    return _environment_of


@pytest.fixture(scope="session")
def thawline() -> Callable[..., Finished]:
    def run(*arguments: str | Path, home: Path, **more: str) -> Finished:
        command = [sys.executable, "-m", "thawline", *map(str, arguments)]
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=540, env={**_environment_of(home), **more}, cwd=home.parent
        )
        return Finished(ended.returncode, ended.stdout, ended.stderr)

    return run


@pytest.fixture(scope="session")
def forked(first_process: Forks) -> Callable[..., Finished]:
    """Like ``thawline``, in a fork of a process that has the libraries already, one command after another.

    For all but what shows that a verb works from the start of its process on.
    """

    def run(*arguments: str | Path, home: Path, **more: str) -> Finished:
        return Finished(*first_process.run([*map(str, arguments)], _environment_of(home) | more, home.parent))

    return run


SEARCH = [
    *("--backbone", "mobilenet_v3_small", "--weights", "starter", "--image-size", "32"),
    *("--trials", "6", "--epochs", "3", "--batch-size", "16", "--model", "shapes", "--study", "shapes"),
    # Head only and a grid, so that a hopeless trial is sure to come; the pruner judges after one of each.
    *("--set", "study.enqueue=[{freeze_depth: 6, learning_rate: 0.001}]", "--set", "study.sampler=GridSampler"),
    *("--set", "study.sampler_options={search_space: {freeze_depth: [4, 6], learning_rate: [0.00001, 0.01]}}"),
    *("--set", "study.pruner_options={n_startup_trials: 1, n_warmup_steps: 1}"),
    *("--set", "data.workers=1", "--set", "train.device=cpu"),
    *("--set", "promotion.exports=[]"),  # PyTorch's exporter takes seconds
]


@dataclass(frozen=True)
class Searched:
    """A search that was run once for all tests, as a user's first: in an empty home, without a Prefect server."""

    data: Path
    home: Path
    result: Finished
    options: tuple[str, ...] = tuple(SEARCH)

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.home}/mlflow.db"


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory, thawline: Callable[..., Finished]) -> Searched:
    folder = tmp_path_factory.mktemp("search")
    data = _draw_pictures(folder / "shapes")
    (data / "circle" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really a photograph")
    (data / "notes.txt").write_text("a stray file")
    home = folder / "home"
    return Searched(data, home, thawline("search", data, *SEARCH, "--json", home=home))
