"""Fixtures that every test may use."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Forks, forks
from databases import postgres_server
from servers import clean_environment, prefect_server

# Shipped contracts fail as legibly as tests. Before anything imports them.
pytest.register_assert_rewrite("thawline.testing.backbones", "thawline.testing.trackers")

# Networks this small are slower on several threads, and by far when tests run side by side. Before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

from thawline import environment  # noqa: E402

environment.prepare()

from thawline.tracking import MlflowStore, connect  # noqa: E402
from thawline.tracking.database import mlflow_database  # noqa: E402

_LONGEST = [
    *("topology", "champion", "deploy", "looking", "outages-disk", "kills", "cluster", "retrain", "signals"),
    *("outages-hung", "outages-mlflow", "search", "outages-left", "outages-databases", "postgres", "resume"),
    *("approval", "search_texts", "commands", "api", "s3", "serving", "serving_texts", "page", "huggingface", "drift"),
]
"""Groups of tests that take longest by themselves, the longest first: what begins last must not take long."""


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all tests but those that are marked ``gpu``: `auto` would take them, with numbers of their own."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where none is seen; put the groups that take longest first.

    pytest-xdist hands groups out in this order.
    """
    if on_gpu := [item for item in items if item.get_closest_marker("gpu")]:
        import torch

        if not torch.cuda.is_available():
            reason = "there is no GPU" if config.option.markexpr == "gpu" else "needs a GPU: pytest -m gpu"
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason))
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
def prepared() -> Callable[[Path], Path]:
    """Gives a home its MLflow database and returns it: for all tests that are not about the first use."""

    def prepare(home: Path) -> Path:
        mlflow_database(home / "mlflow.db", home=home)
        return home

    return prepare


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The worker's own Prefect server: the variables of those that use it, which saves each command a server."""
    with prefect_server(tmp_path_factory.mktemp("server") / "prefect", clean_environment()) as client:
        yield client


@pytest.fixture(scope="session")
def first_process() -> Iterator[Forks]:
    """Has the libraries already: the worker's commands are forks of it, but for those that are to load them."""
    with forks(clean_environment()) as first:
        yield first


@pytest.fixture
def store(prepared: Callable[[Path], Path], own_home: Path) -> MlflowStore:
    """An empty local store in the test's own home."""
    prepared(own_home)
    return connect(f"sqlite:///{own_home}/mlflow.db", home=own_home, experiment="thawline")
