"""Fixtures that every test may use."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from databases import copy_database, postgres_server
from once import made_once
from servers import clean_environment, prefect_server

# Shipped contracts fail as legibly as tests. Before anything imports them.
pytest.register_assert_rewrite("thawline.testing.backbones", "thawline.testing.trackers")

# Networks this small are slower on several threads, and by far when tests run side by side. Before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from thawline import environment  # noqa: E402

environment.prepare()

from thawline.tracking import MlflowStore, connect  # noqa: E402

_LONGEST = [
    *("topology", "champion", "deploy", "looking", "outages-disk", "kills", "cluster", "retrain", "signals"),
    *("outages-hung", "outages-mlflow", "search", "outages-left", "outages-databases", "postgres", "resume"),
    *("approval", "search_texts", "commands", "s3", "serving", "serving_texts", "page", "huggingface", "drift"),
]
"""Groups of tests that take longest by themselves, the longest first: what begins last must not take long."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the groups that take longest first; pytest-xdist then hands groups out in this order."""
    place = {group: number for number, group in enumerate(_LONGEST)}

    def number(item: pytest.Item) -> int:
        mark = item.get_closest_marker("xdist_group")
        return place.get(mark.args[0], len(place)) if mark else len(place)

    items.sort(key=number)


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
    """An MLflow database without experiments of ours, made once: the first opening of a new one costs seconds."""

    def make(folder: Path) -> None:
        connect(f"sqlite:///{folder}/new.db", home=folder, experiment="template")
        copy_database(folder / "new.db", folder / "mlflow.db")

    return made_once(tmp_path_factory, "mlflow", make) / "mlflow.db"


@pytest.fixture(scope="session")
def migrated_prefect(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a first start leaves in ``PREFECT_HOME``: the migrated database, and that its blocks are registered."""

    def make(folder: Path) -> None:
        with prefect_server(folder / "first", clean_environment()):
            pass
        copy_database(folder / "first" / "prefect.db", folder / "home" / "prefect.db")
        shutil.copy(folder / "first" / "memo_store.toml", folder / "home")

    return made_once(tmp_path_factory, "prefect", make) / "home"


@pytest.fixture(scope="session")
def prepared(migrated: Path) -> Callable[[Path], Path]:
    """Gives a home its MLflow database, migrated, and returns it: for all tests that are not about the first use."""

    def prepare(home: Path) -> Path:
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(migrated, home)
        return home

    return prepare


@pytest.fixture(scope="session")
def prefect(migrated_prefect: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The worker's own Prefect server: the variables of those that use it, which saves each command a server."""
    folder = tmp_path_factory.mktemp("server") / "prefect"
    shutil.copytree(migrated_prefect, folder)
    with prefect_server(folder, clean_environment()) as client:
        yield client


@pytest.fixture
def store(prepared: Callable[[Path], Path], own_home: Path) -> MlflowStore:
    """An empty local store in the test's own home."""
    prepared(own_home)
    return connect(f"sqlite:///{own_home}/mlflow.db", home=own_home, experiment="thawline")
