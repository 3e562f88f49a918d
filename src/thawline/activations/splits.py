"""The training and validation images of a study behind a border: which files they are, filling and opening them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision

from thawline.activations.fill import fill
from thawline.activations.inputs import ActivationInputs
from thawline.activations.plan import Plan
from thawline.activations.store import ActivationKey, Activations, ActivationStore
from thawline.backbones import Backbone, Preprocessing
from thawline.config import TrainConfig
from thawline.data import DecodedImages, Split
from thawline.training import Augmentation, ImageInputs, Inputs, Runtime

__all__ = ["StoredSplits"]


@dataclass(frozen=True)
class StoredSplits:
    """What a study has stored of one backbone. Small and picklable: every trial is sent it."""

    folder: Path
    """Of the store."""
    budget: int | None
    """Of the store, in bytes."""
    plan: Plan | None
    """``None`` stores nothing."""
    images: Path
    """File of the decoded images, named after the data, the sizes and the decoder."""
    backbone: str
    weights: str
    """Digest of the pretrained weights."""
    preprocessing: Preprocessing
    augmentation: Augmentation

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Numbers of layer groups behind which activations are stored."""
        return self.plan.boundaries if self.plan is not None else ()

    def train_config(self, config: TrainConfig) -> TrainConfig:
        """The configuration with ``auto`` settled as the plan measured it."""
        if self.plan is None:
            return config
        profile = self.plan.profile
        return config.model_copy(update={"precision": profile.precision, "channels_last": profile.channels_last})

    def fill(
        self,
        backbone: Backbone,
        runtime: Runtime,
        *,
        batch_size: int,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> dict[int, str]:
        """Compute what is not in the store yet; returns the boundaries that could not be stored, and why."""
        refused: dict[int, str] = {}
        if not self.boundaries:
            return refused
        store, data = ActivationStore(self.folder, budget=self.budget), DecodedImages.open(self.images)
        for split, epoch, view in self._views():
            keys = {b: self._key(split, view, b, runtime) for b in self.boundaries if b not in refused}
            inputs = self._images(data, split, runtime)
            refused |= fill(
                store, backbone, inputs, epoch, keys, runtime, batch_size=batch_size, on_progress=on_progress
            )
        return refused

    def open(self, depth: int, runtime: Runtime) -> tuple[Inputs, Inputs]:
        """Training and validation inputs for a freeze depth, from behind the last border that is stored whole.

        What is not in the store (any more) is computed from images.
        """
        store, data = ActivationStore(self.folder, budget=self.budget), DecodedImages.open(self.images)
        for boundary in [b for b in sorted(self.boundaries, reverse=True) if b <= depth]:
            validation = store.open(self._key("validation", None, boundary, runtime))
            views = self._open_views(store, boundary, runtime)
            if validation is None or views is None:
                continue
            train = self._images(data, "train", runtime)
            return (
                ActivationInputs(views, train.labels, boundary, runtime, self.augmentation) if views else train,
                ActivationInputs([validation], data.split("validation")[1], boundary, runtime),
            )
        return self._images(data, "train", runtime), self._images(data, "validation", runtime)

    def _open_views(self, store: ActivationStore, boundary: int, runtime: Runtime) -> list[Activations] | None:
        """The training views' files, none if each epoch has a new view; ``None`` if one is missing."""
        if not self.augmentation.is_storable:
            return []
        opened = [store.open(self._key("train", v, boundary, runtime)) for v in self.augmentation.stored_views]
        whole = [activations for activations in opened if activations is not None]
        return whole if len(whole) == len(opened) else None

    def _views(self) -> Iterator[tuple[Split, int, int | None]]:
        """Split, an epoch that has the view, and the view, of all that is stored."""
        yield "validation", 0, None
        if self.augmentation.is_storable:
            for view in self.augmentation.stored_views:
                yield "train", view or 0, view

    def _images(self, data: DecodedImages, split: Split, runtime: Runtime) -> ImageInputs:
        images, labels = data.split(split)
        augmentation = self.augmentation if split == "train" else None
        return ImageInputs(images, labels, self.preprocessing, runtime, augmentation)

    def _key(self, split: str, view: int | None, boundary: int, runtime: Runtime) -> ActivationKey:
        assert self.plan is not None  # noqa: S101  else there is no boundary
        augmentation = self.augmentation
        return ActivationKey(
            data=self.images.stem,
            split=split,
            view="plain" if view is None else f"view {view} of seed {augmentation.seed}, mirror {augmentation.mirror}",
            backbone=self.backbone,
            weights=self.weights,
            boundary=boundary,
            preprocessing=self.preprocessing,
            computed_in=f"{runtime}, {'channels last' if runtime.channels_last else 'channels first'}",
            stored_as=self.plan.stored_as[boundary],
            libraries=f"torch {torch.__version__}, torchvision {torchvision.__version__}",
        )
