"""A GPU that is not there, and what trains on it in milliseconds."""

from collections.abc import Iterator

import pytest
from pretended_gpu import PretendedGpu, pretended
from tiny_training import hyperparameters, images, make_backbone, stored

__all__ = ["gpu", "hyperparameters", "images", "make_backbone", "stored"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    """CPU tensors that pretend to be on ``cuda:0``."""
    with pretended(monkeypatch) as device:
        yield device
