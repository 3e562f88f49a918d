"""Two packages: one names colours rightly, the other takes green for blue."""

from pathlib import Path

import pytest
from colours import make_package


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_package(tmp_path_factory.mktemp("other"), order=(0, 2, 1))
