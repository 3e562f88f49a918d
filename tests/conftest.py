"""Fixtures that every test may use."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from databases import postgres_server

# Networks this small are slower on several threads, and by far when tests run side by side. Before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from thawline import environment

environment.prepare()

from thawline.tracking import MlflowStore, connect  # noqa: E402


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real photographs and real pretrained weights, in a folder beside the checkout (``THAWLINE_TEST_DATA``)."""
    folder = Path(os.environ.get("THAWLINE_TEST_DATA", Path(__file__).parents[2] / "shared"))
    if not (folder / "data" / "clothing").is_dir():
        pytest.skip("needs the folder of real photographs beside the checkout")
    return folder


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a home of its own, so that none sees what another left."""
    home = tmp_path / "home"
    monkeypatch.setenv("THAWLINE_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.delenv("THAWLINE_STORAGE", raising=False)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return home


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny operations wait longer for a second thread than it saves, and the more so on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def new_postgres() -> Iterator[Callable[[], str]]:
    """Makes a database on a real PostgreSQL server, and returns its URL."""
    with postgres_server() as make:
        yield make


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh MLflow database, made once: the first opening of a new one costs seconds, copying it does not."""
    home = tmp_path_factory.mktemp("migrated")
    connect(f"sqlite:///{home}/mlflow.db", home=home, experiment="template")
    return home / "mlflow.db"


@pytest.fixture
def store(migrated: Path, own_home: Path) -> MlflowStore:
    """An empty local store in the test's own home."""
    own_home.mkdir(parents=True)
    # By SQLite itself: the template may have pages in its write-ahead log, which copying the file would miss.
    with closing(sqlite3.connect(migrated)) as source, closing(sqlite3.connect(own_home / "mlflow.db")) as target:
        source.backup(target)
    return connect(f"sqlite:///{own_home}/mlflow.db", home=own_home, experiment="thawline")
