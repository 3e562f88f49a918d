"""A GPU that is not there, and what trains on it in milliseconds."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from pretended_gpu import PretendedGpu, pretended
from tiny_training import hyperparameters, images, make_backbone, stored

from thawline.config import TrainConfig
from thawline.training.heads import HeadTrial, fit_heads

__all__ = ["gpu", "hyperparameters", "images", "make_backbone", "stored", "train_heads"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    """CPU tensors that pretend to be on ``cuda:0``."""
    with pretended(monkeypatch) as device:
        yield device


@pytest.fixture
def train_heads(gpu: PretendedGpu, make_backbone: Any, images: Any, stored: Any) -> Callable[..., list[Any]]:
    """Trains heads together there, on so many rows and in batches of 8; returns their results."""

    def run(trials: Sequence[HeadTrial], rows: int, validation_rows: int, *, epochs: int, **more: Any) -> list[Any]:
        with gpu.modes():
            backbone = make_backbone()
            backbone.module.to(gpu.runtime.device)
            inputs = [stored(backbone, images(count, gpu.runtime)) for count in (rows, validation_rows)]
            config = TrainConfig(epochs=epochs, batch_size=8)
            options = {"config": config, "metric": "accuracy", "runtime": gpu.runtime, "seed": 0, **more}
            return list(fit_heads(backbone, *inputs, trials, **options))

    return run
