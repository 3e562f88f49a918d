"""A migrated MLflow database, made once: the first opening of a new one costs seconds."""

import shutil
from pathlib import Path

import pytest

from thawline.tracking import MlflowStore, connect


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("migrated")
    connect(f"sqlite:///{home}/mlflow.db", home=home, experiment="template")
    return home / "mlflow.db"


@pytest.fixture
def store(migrated: Path, own_home: Path) -> MlflowStore:
    """An empty local store in the test's own home."""
    own_home.mkdir()
    shutil.copy(migrated, own_home / "mlflow.db")
    return connect(f"sqlite:///{own_home}/mlflow.db", home=own_home, experiment="thawline")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Networks this small are slower on several threads, and by far when the machine is busy."""
    import torch

    torch.set_num_threads(1)
