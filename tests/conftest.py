"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))

from thawline import environment

environment.prepare()


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
    return home
