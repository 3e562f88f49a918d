"""Random crops and mirrored images, drawn so that a view of an image can be made again, whoever makes it.

A *view* is one way of cropping and mirroring the whole data set. Its numbers come from the seed and the view alone, so
epochs, trials and processes that name the same view see the same pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Augmentation"]

_SMALLEST_AREA = 0.5
_ASPECTS = (3 / 4, 4 / 3)
"""A crop has at least half of the picture and about its shape. (``RandomResizedCrop``, as in Szegedy et al., "Going
deeper with convolutions", 2015, goes down to 0.08 for training from scratch; fine-tuning wants less.)"""


@dataclass(frozen=True)
class Augmentation:
    """How training images change from epoch to epoch."""

    views: int | None = 0
    """0 changes nothing, ``None`` makes a new view for every epoch, K lets K views take turns."""
    mirror: bool = True
    seed: int = 0

    @classmethod
    def parse(cls, text: str, *, mirror: bool, seed: int) -> "Augmentation":
        """``none``, ``fresh`` or ``views(K)``, as in :class:`thawline.config.TrainConfig`."""
        if text == "fresh":
            return cls(None, mirror, seed)
        return cls(0 if text == "none" else int(text.removeprefix("views(").removesuffix(")")), mirror, seed)

    @property
    def is_storable(self) -> bool:
        """Whether there are finitely many views."""
        return self.views is not None

    @property
    def stored_views(self) -> tuple[int | None, ...]:
        """The views to store; ``None`` stands for the images as they are."""
        assert self.views is not None, "fresh views cannot be stored"  # noqa: S101  a mistake of ours
        return tuple(range(self.views)) or (None,)

    def view_of(self, epoch: int) -> int | None:
        """The view that an epoch (from 0) trains on; ``None`` for the images as they are."""
        if self.views is None:
            return epoch
        return epoch % self.views if self.views else None

    def apply(self, images: Tensor, rows: np.ndarray, view: int | None) -> Tensor:
        """Crop and mirror.

        Args:
            images: floating point ``[n, C, S, S]``, on any device.
            rows: ``[n]``, which images of the data set they are.
            view: ``None`` gives ``images`` back.

        Returns:
            ``[n, C, S, S]``; each image's result hangs on its row and the view, not on what else is in the batch.
        """
        if view is None:
            return images
        transforms = torch.from_numpy(self._transforms(rows, view)).to(images.device, images.dtype)
        grid = F.affine_grid(transforms, list(images.shape), align_corners=False)
        # The grid never leaves the image; "border" is for the half pixel at its edge.
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _transforms(self, rows: np.ndarray, view: int) -> np.ndarray:
        """Affine maps ``[n, 2, 3]`` from places in the result to places in the image, both in [-1, 1]."""
        size = int(rows.max()) + 1
        draws = np.random.default_rng([self.seed, view, 0x7A11]).random((size, 5))[rows]
        area = _SMALLEST_AREA + (1 - _SMALLEST_AREA) * draws[:, 0]
        aspect = np.exp(np.log(_ASPECTS[0]) + (np.log(_ASPECTS[1]) - np.log(_ASPECTS[0])) * draws[:, 1])
        width, height = np.minimum(np.sqrt(area * aspect), 1), np.minimum(np.sqrt(area / aspect), 1)
        side = np.where(self.mirror & (draws[:, 4] < 0.5), -1.0, 1.0)
        transforms = np.zeros((len(rows), 2, 3))
        transforms[:, 0, 0], transforms[:, 0, 2] = width * side, (2 * draws[:, 2] - 1) * (1 - width)
        transforms[:, 1, 1], transforms[:, 1, 2] = height, (2 * draws[:, 3] - 1) * (1 - height)
        return transforms
