"""Mix pairs of images in a batch: mixup (Zhang et al., 2018) and cutmix (Yun et al., 2019).

Mixing is applied to the input of the network's thawed part: images if nothing is frozen, else frozen activations (Verma
et al., "Manifold Mixup", 2019). So activations can be stored as without mixing, and a trial's results are the same
whether they are stored or not.

``torchvision.transforms.v2.MixUp`` and ``CutMix`` only support images, draw from torch's global generator, and pair
each image with the previous one: rows within a batch are in the data set's order, so most pairs would be of one class.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thawline.backbones import Backbone, Preprocessing, section
from thawline.config import TrainConfig
from thawline.training.runtime import on_device

__all__ = ["Mixed", "Mixing", "depths_without_places"]


@dataclass(frozen=True)
class Mixed:
    """A batch, or a part of one, whose rows may have two labels each."""

    batch: Tensor
    """``[n, …]``, the network's input."""
    labels: Tensor
    """int64 ``[n]``."""
    partners: Tensor
    """int64 ``[n]``: labels of the mixed-in rows."""
    share: float
    """Weight of ``labels``, in [0, 1]; ``partners`` have the rest. 1 without mixing."""

    @property
    def heavier(self) -> Tensor:
        """int64 ``[n]``: the label with the larger weight of each row, which ``train/accuracy`` counts as correct."""
        return self.labels if self.share >= 0.5 else self.partners

    def loss(self, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        """The loss for both labels, weighted.

        Cross-entropy is linear in its targets, so this is the cross-entropy of soft targets, including label smoothing
        and class weights of ``loss_of``. Partners are a permutation of the labels, so the sum of their class weights is
        the same.

        Args:
            loss_of: returns the loss for labels ``[n]``.
        """
        if self.share == 1:
            return loss_of(self.labels)
        return self.share * loss_of(self.labels) + (1 - self.share) * loss_of(self.partners)


@dataclass(frozen=True)
class Mixing:
    """Mixes batches. Draws depend only on the seed, the epoch and the batch, so a resumed epoch mixes the same way.

    Parts of an accumulated batch use the batch's share and box, but mix within the part, so the pairs differ.
    """

    mixup: float = 0.0
    """Both parameters of the Beta distribution of the share; 0 for no mixup."""
    cutmix: float = 0.0
    """The same for cutmix. With both, one of them is chosen at random for each batch."""
    seed: int = 0

    @classmethod
    def of(cls, config: TrainConfig, seed: int) -> "Mixing":
        """The mixing of a configuration."""
        return cls(config.mixup, config.cutmix, seed)

    def apply(self, batch: Tensor, labels: Tensor, epoch: int, number: int) -> Mixed:
        """Mix each row with one other row.

        Args:
            batch: floating point ``[n, …]``: images, or activations of any shape. Not modified.
            labels: int64 ``[n]``, on the same device.
            epoch: from 0.
            number: number of the batch in its epoch, from 0.

        Returns:
            The mixed rows, all with the same share. Cutmix requires a spatial grid; without one (tokens of a
            transformer, pooled features) its batches are mixed by mixup with the same share.
        """
        if len(labels) < 2 or not (self.mixup or self.cutmix):
            return Mixed(batch, labels, labels, 1.0)
        random = np.random.default_rng([self.seed, epoch, number, 0x313B])
        cuts = bool(self.cutmix) and (not self.mixup or random.random() < 0.5)
        alpha = self.cutmix if cuts else self.mixup
        share, centre = float(random.beta(alpha, alpha)), random.random(2)
        # Around a circle in random order, so that no row is mixed with itself.
        circle = random.permutation(len(labels))
        others = np.empty_like(circle)
        others[circle] = np.roll(circle, 1)
        partners = on_device(others, batch.device)
        grid = _grid(batch) if cuts else None
        if grid is None:
            return Mixed(torch.lerp(batch[partners], batch, share), labels, labels[partners], share)
        box, share = _box(batch.shape[grid], centre, share)
        # The last axis is either part of the box or the channel axis.
        places = (slice(None),) * grid.start + box
        mixed = batch.clone()
        mixed[places] = batch[partners][places]
        return Mixed(mixed, labels, labels[partners], share)


@torch.inference_mode()
def depths_without_places(backbone: Backbone) -> list[int]:
    """The freeze depths at which cutmix falls back to mixup, because the activations have no height and width.

    Runs a black image through all layer groups, which takes a second or two, and leaves the backbone in evaluation
    mode. Empty for text networks, whose inputs are never mixed.
    """
    if not isinstance(backbone.preprocessing, Preprocessing):
        return []
    module, size = backbone.module.eval(), backbone.preprocessing.image_size
    batch = torch.zeros(1, 3, size, size, device=next(module.parameters()).device)
    found = []
    for depth in range(1, len(backbone.layer_groups) + 1):
        batch = section(backbone, depth - 1, depth)(batch)
        if _grid(batch) is None:
            found.append(depth)
    return found


def _grid(batch: Tensor) -> slice | None:
    """The axes of height and width; ``None`` without them.

    Images are square, so equal sizes distinguish ``[n, C, H, W]`` from ``[n, H, W, C]`` (Swin).
    """
    if batch.ndim != 4:
        return None
    for grid in (slice(2, 4), slice(1, 3)):
        height, width = batch.shape[grid]
        if height == width > 1:
            return grid
    return None


def _box(size: torch.Size, centre: np.ndarray, share: float) -> tuple[tuple[slice, slice], float]:
    """The box around ``centre`` (in [0, 1)²) that comes from the partner, and the share of positions outside of it.

    The box covers ``1 - share`` of the area unless it is clipped at the edge, rounded to whole positions.
    """
    reach = np.sqrt(1 - share) / 2
    low, high = (np.round(np.clip(centre + side * reach, 0, 1) * size).astype(int) for side in (-1, 1))
    taken = float(np.prod(high - low)) / (size[0] * size[1])
    return (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))), 1 - taken
