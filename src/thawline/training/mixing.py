"""Mixing the images of a batch in pairs: mixup (Zhang et al., 2018) and cutmix (Yun et al., 2019).

What is mixed is the input of the thawed part of the network: images where nothing is frozen, else frozen activations
(Verma et al., "Manifold Mixup", 2019). So stored activations serve as they do without, and a trial gives the same
numbers whether they are stored or not.

``torchvision.transforms.v2.MixUp`` and ``CutMix`` take only images, draw from torch's global generator, and pair each
image with the one before it: within a batch rows are in the order of the data set, so most pairs would be of a class.
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
    """``[n, …]``, as the network takes it."""
    labels: Tensor
    """int64 ``[n]``."""
    partners: Tensor
    """int64 ``[n]``: labels of what was mixed in."""
    share: float
    """Weight of ``labels``, in [0, 1]; ``partners`` have the rest. 1 if nothing was mixed."""

    @property
    def heavier(self) -> Tensor:
        """int64 ``[n]``: of the two labels of each row the one with the larger weight, which ``train/accuracy`` counts
        as right."""
        return self.labels if self.share >= 0.5 else self.partners

    def loss(self, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
        """The loss for both labels, by their weights.

        Cross-entropy is linear in its targets, so this is the cross-entropy of soft targets, with whatever label
        smoothing and class weights ``loss_of`` has. Partners are the same labels in another order: if it divides by the
        sum of their weights, that stays what it was.

        Args:
            loss_of: the loss of labels ``[n]``.
        """
        if self.share == 1:
            return loss_of(self.labels)
        return self.share * loss_of(self.labels) + (1 - self.share) * loss_of(self.partners)


@dataclass(frozen=True)
class Mixing:
    """What is drawn depends only on the seed, the epoch and the batch, so a resumed epoch mixes as it would have.

    Parts of an accumulated batch have the batch's share and box, but mix among themselves: the pairs are others.
    """

    mixup: float = 0.0
    """Both parameters of the Beta distribution that the share comes from; 0 for no mixup."""
    cutmix: float = 0.0
    """The same for cutmix. With both, one of them is drawn for each batch."""
    seed: int = 0

    @classmethod
    def of(cls, config: TrainConfig, seed: int) -> "Mixing":
        """As the configuration says."""
        return cls(config.mixup, config.cutmix, seed)

    def apply(self, batch: Tensor, labels: Tensor, epoch: int, number: int) -> Mixed:
        """Mix each row with one other.

        Args:
            batch: floating point ``[n, …]``: images, or activations of any shape. Is not written into.
            labels: int64 ``[n]``, on the same device.
            epoch: from 0.
            number: of the batch in its epoch, from 0.

        Returns:
            The rows mixed, all by one share. Cutmix needs a grid of places; where there is none (tokens of a
            transformer, pooled features) its batches are mixed by mixup with the share that was drawn.
        """
        if len(labels) < 2 or not (self.mixup or self.cutmix):
            return Mixed(batch, labels, labels, 1.0)
        random = np.random.default_rng([self.seed, epoch, number, 0x313B])
        cuts = bool(self.cutmix) and (not self.mixup or random.random() < 0.5)
        alpha = self.cutmix if cuts else self.mixup
        share, centre = float(random.beta(alpha, alpha)), random.random(2)
        # Around a circle in random order: nobody is mixed with itself.
        circle = random.permutation(len(labels))
        others = np.empty_like(circle)
        others[circle] = np.roll(circle, 1)
        partners = on_device(others, batch.device)
        grid = _grid(batch) if cuts else None
        if grid is None:
            return Mixed(torch.lerp(batch[partners], batch, share), labels, labels[partners], share)
        box, share = _box(batch.shape[grid], centre, share)
        # The last axis is either the box's or that of the channels.
        places = (slice(None),) * grid.start + box
        mixed = batch.clone()
        mixed[places] = batch[partners][places]
        return Mixed(mixed, labels, labels[partners], share)


@torch.inference_mode()
def depths_without_places(backbone: Backbone) -> list[int]:
    """The freeze depths at which cutmix mixes as mixup does, since what is mixed there has no height and width.

    Runs a black image through one layer group after the other, which takes a second or two, and leaves the backbone in
    evaluation mode. None for a network of texts, which are never mixed.
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
    """The two axes of height and width; ``None`` if there are none.

    They are equal, since images are square: by that ``[n, C, H, W]`` is told from ``[n, H, W, C]`` (Swin).
    """
    if batch.ndim != 4:
        return None
    for grid in (slice(2, 4), slice(1, 3)):
        height, width = batch.shape[grid]
        if height == width > 1:
            return grid
    return None


def _box(size: torch.Size, centre: np.ndarray, share: float) -> tuple[tuple[slice, slice], float]:
    """The places around ``centre`` (in [0, 1)²) that a partner takes, and the share of those that it does not take.

    The box has ``1 - share`` of the area where it does not reach beyond the edge, rounded to whole places.
    """
    reach = np.sqrt(1 - share) / 2
    low, high = (np.round(np.clip(centre + side * reach, 0, 1) * size).astype(int) for side in (-1, 1))
    taken = float(np.prod(high - low)) / (size[0] * size[1])
    return (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))), 1 - taken
