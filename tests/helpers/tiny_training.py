"""A backbone of three layer groups that trains in milliseconds, and images that it can distinguish."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from thawline.backbones import Backbone, LayerGroup, Preprocessing, section
from thawline.config import TrainConfig
from thawline.training import Hyperparameters, ImageInputs, Runtime, runtime_for

__all__ = ["hyperparameters", "images", "make_backbone", "stored"]

CLASSES = 3


class TinyNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2))
        self.neck = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.ReLU())
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.neck(self.body(self.stem(images))))


def _group(module: nn.Module, name: str) -> LayerGroup:
    tensors = tuple(key for key in module.state_dict() if key.startswith(f"{name}."))
    modules = tuple(key for key, _ in module.named_modules() if key == name or key.startswith(f"{name}."))
    return LayerGroup(
        name, tensors, modules, output=f"{name}_{len(getattr(module, name)) - 1}" if name != "head" else "head"
    )


@pytest.fixture
def make_backbone() -> Callable[[], Backbone]:
    def make() -> Backbone:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = TinyNet()
        return Backbone(
            name="tiny",
            module=module,
            layer_groups=tuple(_group(module, name) for name in ("stem", "body", "neck")),
            head=_group(module, "head"),
            preprocessing=PREPROCESSING,
            weights_digest="0" * 16,
            architecture={},
        )

    return make


PREPROCESSING = Preprocessing(12, 12, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bilinear")


@pytest.fixture
def images() -> Callable[..., ImageInputs]:
    """Noisy squares whose brightness in one colour channel determines the class."""

    def make(count: int, runtime: Runtime | None = None, **options: Any) -> ImageInputs:
        random = np.random.default_rng(count)
        labels = np.arange(count) % CLASSES
        pixels = random.integers(0, 120, (count, 12, 12, 3))
        pixels[np.arange(count), :, :, labels] += 100
        runtime = runtime or runtime_for(TrainConfig(device="cpu"))
        return ImageInputs(pixels.astype(np.uint8), labels.astype(np.int64), PREPROCESSING, runtime, **options)

    return make


@pytest.fixture
def hyperparameters() -> Callable[..., Hyperparameters]:
    def make(depth: int = 1, learning_rate: float = 1e-2, optimizer: str = "adamw") -> Hyperparameters:
        return Hyperparameters("tiny", depth, learning_rate, 0.01, 1.0, optimizer)  # type: ignore[arg-type]

    return make


class Stored:
    """Activations after the last layer group, in memory."""

    boundary = 3
    lengths = None

    def __init__(self, backbone: Backbone, images: ImageInputs) -> None:
        backbone.module.eval()
        rows = np.arange(len(images))
        with torch.no_grad():
            read = images.prepare(images.read(rows, 0), rows, 0)
            self.features: torch.Tensor = section(backbone, 0, self.boundary)(read)
        self.labels = images.labels

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: np.ndarray, epoch: int) -> torch.Tensor:
        return self.features[torch.from_numpy(rows)]

    def prepare(self, read: torch.Tensor, rows: np.ndarray, epoch: int) -> torch.Tensor:
        return read


@pytest.fixture
def stored() -> type[Stored]:
    """The class of stored activations."""
    return Stored
