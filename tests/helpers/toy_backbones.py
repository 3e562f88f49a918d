"""A library of backbones of another package: the example of docs/backbones.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from thawline.backbones import Preprocessing

__all__ = ["LIBRARY", "ToyLibrary", "install"]


class ToyLibrary:
    """Two networks of three layers."""

    widths = {"small": 8, "wide": 16}  # noqa: RUF012  never changed

    def names(self) -> Sequence[str]:
        return list(self.widths)

    def build(self, name: str, *, num_classes: int, image_size: int) -> nn.Module:
        width = self.widths[name]
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()),
            nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(width, num_classes),
        )

    def head(self, name: str) -> str:
        return "3"

    def preprocessing(self, name: str) -> Preprocessing:
        return Preprocessing(32, 36, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bilinear")

    def has_weights(self, name: str) -> bool:
        return name == "small"

    def weights(self, name: str) -> Mapping[str, Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return self.build(name, num_classes=1000, image_size=32).state_dict()


LIBRARY = ToyLibrary()


def install(folder: Path, *, prefix: str = "toy", value: str = "toy_backbones:LIBRARY") -> Path:
    """Write the files of an installed package to a folder on Python's path."""
    metadata = folder / "toy_backbones-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-backbones\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text(f"[thawline.backbones]\n{prefix} = {value}\n")
    return folder
