"""Augment training images such that every process can reproduce a view of an image.

A *view* is one way of changing every image of the data set. The result depends only on the seed, the view and the
image, so epochs, trials and processes that use the same view see the same pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from thawline.config import AugmentationKind, SearchConfig, TrainConfig
from thawline.exceptions import ConfigError
from thawline.training.runtime import on_device

__all__ = ["Augmentation", "check_augmentation"]

_SMALLEST_AREA = {"light": 0.5, "standard": 0.08}
"""Minimum share of the picture that a crop covers: 0.08 is ``RandomResizedCrop``'s (Szegedy et al., "Going deeper with
convolutions", 2015), meant for training from scratch; fine-tuning for a few epochs needs milder crops."""
_ASPECTS = (3 / 4, 4 / 3)
_ERASED_AREA, _ERASED_ASPECTS = (0.02, 0.33), (0.3, 3.3)
"""From Zhong et al., "Random Erasing Data Augmentation", 2020, and torchvision's ``RandomErasing``."""

_CROP, _OPERATION, _ERASING = slice(0, 5), slice(5, 8), slice(8, 13)
"""An image's random numbers: all are always drawn, so that one option does not affect the others."""
_NUMBERS = 13


def check_augmentation(config: SearchConfig, kind: Literal["images", "texts"]) -> None:
    """Refuse image augmentation for texts.

    Args:
        config: the whole configuration.
        kind: the kind of data.

    Raises:
        ConfigError: with every key to remove.
    """
    if kind == "images":
        return
    neutral = {"augmentation": "none", "views": None, "random_erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
    given = {key: getattr(config.train, key) for key in neutral}
    wrong = [f"train.{key}={value}" for key, value in given.items() if value != neutral[key]]
    opened = config.space.opened("augmentation") or ()
    if set(opened) - {"none"}:
        wrong.append(f"space.augmentation={list(opened)}")
    if wrong:
        raise ConfigError(f"The data are texts, but these settings are for images: {', '.join(wrong)}. Leave them out.")


@dataclass(frozen=True)
class Augmentation:
    """How training images are augmented from epoch to epoch."""

    kind: AugmentationKind = "none"
    """See :class:`thawline.config.TrainConfig`, also for the other fields."""
    views: int | None = None
    """Number of views that take turns; ``None`` for a new one in every epoch."""
    mirror: bool = True
    erasing: float = 0.0
    """Probability, in [0, 1]."""
    seed: int = 0

    @classmethod
    def of(cls, config: TrainConfig, seed: int, kind: AugmentationKind | None = None) -> "Augmentation":
        """The augmentation of a configuration; ``kind`` is the trial's own."""
        return cls(kind or config.augmentation, config.views, config.mirror, config.random_erasing, seed)

    @property
    def changes_images(self) -> bool:
        """Whether there are any views."""
        return self.kind != "none" or self.erasing > 0

    @property
    def is_storable(self) -> bool:
        """Whether the number of views is finite."""
        return self.views is not None or not self.changes_images

    @property
    def stored_views(self) -> tuple[int | None, ...]:
        """The views to store; ``None`` stands for the unchanged images."""
        if not self.changes_images:
            return (None,)
        assert self.views is not None, "new views in every epoch cannot be stored"  # noqa: S101  a mistake of ours
        return tuple(range(self.views))

    def view_of(self, epoch: int) -> int | None:
        """The view of an epoch (from 0); ``None`` for the unchanged images."""
        if not self.changes_images:
            return None
        return epoch if self.views is None else epoch % self.views

    def name_of(self, view: int | None) -> str:
        """A unique name of a view's pixels among all views of all augmentations."""
        if view is None:
            return "plain"
        # Operations on colours and shapes may change with torchvision's version.
        kind = self.kind if self.kind != "standard" else f"standard 2 of torchvision {version('torchvision')}"
        return f"view {view} of seed {self.seed}, {kind}, mirror {self.mirror}, erasing {self.erasing}"

    def apply(self, images: Tensor, rows: np.ndarray, view: int | None) -> Tensor:
        """Crop, mirror, and change colours or shape.

        Args:
            images: floating point ``[n, C, S, S]`` in [0, 1], on any device.
            rows: ``[n]``, their rows in the data set.
            view: the view; ``None`` returns ``images``.

        Returns:
            ``[n, C, S, S]`` in [0, 1]; each image's result depends on its row and the view, not on the rest of the
            batch.
        """
        if view is None or self.kind == "none":
            return images
        draws = self._draws(rows, view)
        cropped = _cropped(images, draws[:, _CROP], _SMALLEST_AREA[self.kind], self.mirror)
        return cropped if self.kind == "light" else _trivially_augmented(cropped, draws[:, _OPERATION])

    def erase(self, normalised: Tensor, rows: np.ndarray, view: int | None) -> Tensor:
        """Set a rectangle of some images to 0, the mean colour of the pretraining data.

        Args:
            normalised: floating point ``[n, C, S, S]``, on any device.
            rows: as in :meth:`apply`.
            view: as in :meth:`apply`.
        """
        if view is None or not self.erasing:
            return normalised
        erased = _rectangles(self._draws(rows, view)[:, _ERASING], self.erasing, normalised.shape[-1])
        return normalised.masked_fill(on_device(erased[:, None], normalised.device), 0.0)

    def _draws(self, rows: np.ndarray, view: int) -> np.ndarray:
        """Numbers ``[n, 13]``, uniform in [0, 1)."""
        return np.stack([np.random.default_rng([self.seed, view, row, 0x7A11]).random(_NUMBERS) for row in rows])


def _cropped(images: Tensor, draws: np.ndarray, smallest_area: float, mirror: bool) -> Tensor:
    """torchvision's ``RandomResizedCrop`` and ``RandomHorizontalFlip`` for the whole batch at once."""
    area = smallest_area + (1 - smallest_area) * draws[:, 0]
    aspect = _between(_ASPECTS, draws[:, 1])
    width, height = np.minimum(np.sqrt(area * aspect), 1), np.minimum(np.sqrt(area / aspect), 1)
    side = np.where(mirror & (draws[:, 4] < 0.5), -1.0, 1.0)
    # Affine maps from positions in the result to positions in the image, both in [-1, 1].
    maps = np.zeros((len(draws), 2, 3))
    maps[:, 0, 0], maps[:, 0, 2] = width * side, (2 * draws[:, 2] - 1) * (1 - width)
    maps[:, 1, 1], maps[:, 1, 2] = height, (2 * draws[:, 3] - 1) * (1 - height)
    grid = F.affine_grid(on_device(maps, images.device).to(images.dtype), list(images.shape), align_corners=False)
    # The grid never leaves the image; "border" is for the half pixel at its edge.
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


_MAGNITUDES = 31
_Operation = Callable[[Tensor, np.ndarray], Tensor]
"""Changes a batch of images ``[n, C, S, S]`` in [0, 1] by a magnitude for each, float64 ``[n]``."""


def _operations() -> Sequence[tuple[_Operation, float, float, bool]]:
    """TrivialAugment's wide space (Müller and Hutter, 2021), as in torchvision: the operation, its weakest and
    strongest magnitude, and whether its sign is random.

    ``torchvision.transforms.v2.TrivialAugmentWide`` itself draws from torch's global generator, so that an image's view
    would depend on earlier draws, and it applies the same magnitude to all images of a batch.
    """
    from torchvision.transforms.v2 import functional as V

    def blend(degenerate: Callable[[Tensor], Tensor]) -> _Operation:
        """Blend images with a degenerate version, or away from it."""
        return lambda images, sizes: torch.lerp(degenerate(images), images, _for_each(1 + sizes, images))

    return (
        (lambda images, sizes: images, 0, 0, False),
        (lambda images, sizes: _sampled(images, x=(1, sizes, sizes * images.shape[-1] / 2)), 0, 0.99, True),
        (lambda images, sizes: _sampled(images, y=(sizes, 1, sizes * images.shape[-1] / 2)), 0, 0.99, True),
        (lambda images, sizes: _sampled(images, x=(1, 0, -np.trunc(sizes))), 0, 32, True),
        (lambda images, sizes: _sampled(images, y=(0, 1, -np.trunc(sizes))), 0, 32, True),
        (_rotated, 0, 135, True),
        (blend(torch.zeros_like), 0, 0.99, True),
        (blend(V.rgb_to_grayscale), 0, 0.99, True),
        (blend(lambda images: V.rgb_to_grayscale(images).mean((1, 2, 3), keepdim=True)), 0, 0.99, True),
        (blend(_blurred), 0, 0.99, True),
        (_posterized, 8, 2, False),
        (lambda images, sizes: torch.where(images >= _for_each(sizes, images), 1 - images, images), 1, 0, False),
        (lambda images, sizes: V.autocontrast(images), 0, 0, False),
        (lambda images, sizes: V.equalize(images), 0, 0, False),
    )


_Row = tuple[np.ndarray | float, np.ndarray | float, np.ndarray | float]


def _sampled(images: Tensor, *, x: _Row = (1, 0, 0), y: _Row = (0, 1, 0)) -> Tensor:
    """Sample each position from ``(x[0], x[1]) · position + x[2]``, in pixels from the centre, and likewise for y. Uses
    the nearest pixel, and black outside of the image."""
    maps = np.empty((len(images), 2, 3))
    for row, values in enumerate((x, y)):
        for column, value in enumerate(values):
            maps[:, row, column] = value
    maps[:, :, 2] *= 2 / images.shape[-1]  # an image spans [-1, 1]
    grid = F.affine_grid(on_device(maps, images.device).to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def _rotated(images: Tensor, degrees: np.ndarray) -> Tensor:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return _sampled(images, x=(cosine, -sine, 0), y=(sine, cosine, 0))


def _blurred(images: Tensor) -> Tensor:
    """Replace each pixel by the mean of itself, counted five times, and its eight neighbours; the edge is unchanged."""
    blurred = images.clone()
    inner = blurred[..., 1:-1, 1:-1]
    inner.copy_((9 * F.avg_pool2d(images, 3, 1) + 4 * inner) / 13)
    return blurred


def _posterized(images: Tensor, bits: np.ndarray) -> Tensor:
    levels = _for_each(2.0 ** np.round(bits), images)
    return torch.minimum((images * levels).floor(), levels - 1) / levels


def _for_each(values: np.ndarray, images: Tensor) -> Tensor:
    """A number for each image, ``[n, 1, 1, 1]``."""
    return on_device(values, images.device).to(images.dtype).view(-1, 1, 1, 1)


def _trivially_augmented(images: Tensor, draws: np.ndarray) -> Tensor:
    """Apply one random operation with a random magnitude to each image; batched by operation."""
    operations = _operations()
    drawn = (draws[:, 0] * len(operations)).astype(int)
    steps = (draws[:, 1] * _MAGNITUDES).astype(int) / (_MAGNITUDES - 1)
    changed, places = [], []
    for which in np.unique(drawn):
        operation, weakest, strongest, is_signed = operations[which]
        members = np.flatnonzero(drawn == which)
        sizes = weakest + (strongest - weakest) * steps[members]
        if is_signed:
            sizes = np.where(draws[members, 2] < 0.5, -sizes, sizes)
        changed.append(operation(images[on_device(members, images.device)], sizes))
        places.append(members)
    back = np.argsort(np.concatenate(places))
    return torch.cat(changed)[on_device(back, images.device)].clamp(0, 1)


def _rectangles(draws: np.ndarray, probability: float, size: int) -> np.ndarray:
    """Mask of erased pixels: bool ``[n, S, S]``."""
    area = _ERASED_AREA[0] + (_ERASED_AREA[1] - _ERASED_AREA[0]) * draws[:, 1]
    aspect = _between(_ERASED_ASPECTS, draws[:, 2])
    sides = np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)])
    lengths = np.clip(np.round(sides * size), 1, size)[..., None]
    starts = np.floor(draws[:, 3:5].T[..., None] * (size - lengths + 1))
    places = np.arange(size)
    rows, columns = (starts <= places) & (places < starts + lengths)
    within: np.ndarray = rows[:, :, None] & columns[:, None, :]
    return within & (draws[:, 0] < probability)[:, None, None]


def _between(ends: tuple[float, float], draws: np.ndarray) -> np.ndarray:
    """Map uniform numbers in [0, 1) to log-uniform numbers between ``ends``."""
    low, high = np.log(ends)
    spread: np.ndarray = np.exp(low + (high - low) * draws)
    return spread
