"""The stored activations of a study's training and validation data: find, fill and open their files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from thawline import backbones
from thawline.activations.fill import fill
from thawline.activations.inputs import ActivationInputs, TextActivationInputs
from thawline.activations.plan import Plan
from thawline.activations.store import ActivationKey, Activations, ActivationStore
from thawline.backbones import Backbone, Preprocessing
from thawline.config import AugmentationKind, TrainConfig
from thawline.data import Split
from thawline.training import Augmentation, Inputs, Runtime, open_inputs

__all__ = ["StoredSplits"]

_PLAIN = Augmentation()
"""For validation images and for texts."""


@dataclass(frozen=True)
class StoredSplits:
    """A study's stored activations of one backbone. Small and picklable, as it is sent to every trial."""

    folder: Path
    """Folder of the store."""
    budget: int | None
    """Budget of the store, in bytes."""
    plan: Plan | None
    """The plan; with ``None``, nothing is stored for trials."""
    data: Path
    """File of the decoded images, named after the data, the sizes and the decoder; or of the tokenized texts, named
    after the data, the tokenizer and the longest length."""
    backbone: str
    weights: str
    """Digest of the pretrained weights."""
    preprocessing: Preprocessing | None
    """Preprocessing of images; ``None`` for texts, whose tokens need none."""
    augmentations: tuple[Augmentation, ...]
    """The augmentations that trials may use, one of each kind."""

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Boundaries at which activations are stored, as numbers of layer groups."""
        return self.plan.boundaries if self.plan is not None else ()

    def train_config(self, config: TrainConfig, depths: Sequence[int] = ()) -> TrainConfig:
        """The configuration with ``auto`` resolved by the plan.

        Args:
            config: the study's configuration.
            depths: the freeze depth of each epoch of a trial, which decides whether compilation pays off.
        """
        if self.plan is None:
            return config.model_copy(update={"compile": False})
        profile, compiles = self.plan.profile, config.compile and self.plan.compiles(depths)
        settled = {"precision": profile.precision, "channels_last": profile.channels_last, "compile": compiles}
        return config.model_copy(update=settled)

    def fill(
        self,
        backbone: Backbone,
        runtime: Runtime,
        *,
        batch_size: int,
        exact: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> dict[int, str]:
        """Compute missing activations; returns the boundaries that could not be stored, with the reasons.

        See :func:`thawline.activations.fill.fill` for ``batch_size`` and ``exact``.
        """
        refused: dict[int, str] = {}
        if not self.boundaries:
            return refused
        store = ActivationStore(self.folder, budget=self.budget)
        for split, augmentation, epoch in self._stored():
            view = augmentation.view_of(epoch)
            keys = {b: self._key(split, augmentation, view, b, runtime) for b in self.boundaries if b not in refused}
            inputs = self._from_start(split, runtime, augmentation)
            refused |= fill(
                store,
                backbone,
                inputs,
                epoch,
                keys,
                runtime,
                batch_size=batch_size,
                exact=exact,
                on_progress=on_progress,
            )
        return refused

    def open(self, depth: int, runtime: Runtime, kind: AugmentationKind) -> tuple[Inputs, Inputs]:
        """Training and validation inputs for a freeze depth, from the last completely stored boundary.

        Missing or evicted activations are computed from images or tokens.

        Args:
            depth: the trial's freeze depth.
            runtime: device and precision.
            kind: kind of one of ``augmentations``.
        """
        store = ActivationStore(self.folder, budget=self.budget)
        (augmentation,) = (each for each in self.augmentations if each.kind == kind)
        train = self._from_start("train", runtime, augmentation)
        validation = self._from_start("validation", runtime, _PLAIN)
        for boundary in [b for b in sorted(self.boundaries, reverse=True) if b <= depth]:
            stored = store.open(self._key("validation", _PLAIN, None, boundary, runtime))
            views = self._open_views(store, augmentation, boundary, runtime)
            if stored is None or views is None:
                continue
            return (
                self._behind(boundary, views, train, runtime, augmentation) if views else train,
                self._behind(boundary, [stored], validation, runtime, _PLAIN),
            )
        return train, validation

    def open_plain(self, depth: int, runtime: Runtime) -> tuple[Inputs, Inputs]:
        """The same for unaugmented images, regardless of the trials' augmentation."""
        for augmentation in self.augmentations:
            if not augmentation.changes_images:
                return self.open(depth, runtime, augmentation.kind)
        _, validation = self.open(depth, runtime, self.augmentations[0].kind)
        return self._from_start("train", runtime, _PLAIN), validation

    def plain(
        self,
        split: Split,
        backbone: Backbone,
        runtime: Runtime,
        *,
        batch_size: int,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Inputs:
        """Unaugmented activations of any split after the last layer group, computed and stored if missing.

        Reuses what a study without augmentation has stored there. Without space, the inputs are images or tokens.
        """
        deepest = len(backbone.layer_groups)
        start = self._from_start(split, runtime, _PLAIN)
        store = ActivationStore(self.folder, budget=self.budget)
        key = self._key(split, _PLAIN, None, deepest, runtime)
        fill(store, backbone, start, 0, {deepest: key}, runtime, batch_size=batch_size, on_progress=on_progress)
        stored = store.open(key)
        if stored is None:
            return start
        return ActivationInputs([stored], start.labels, deepest, runtime, _PLAIN, lengths=start.lengths)

    def has_plain(self, split: Split, backbone: Backbone, runtime: Runtime) -> bool:
        """Whether these are already stored; does not read the content."""
        key = self._key(split, _PLAIN, None, len(backbone.layer_groups), runtime)
        return ActivationStore(self.folder, budget=self.budget).open(key) is not None

    def _behind(
        self, boundary: int, views: list[Activations], start: Inputs, runtime: Runtime, augmentation: Augmentation
    ) -> Inputs:
        """Stored activations as inputs."""
        assert self.plan is not None  # noqa: S101  else nothing is stored
        lengths = start.lengths
        if lengths is not None and boundary < len(self.plan.profile.groups):  # a row per token
            return TextActivationInputs(views[0], lengths, start.labels, boundary, runtime)
        return ActivationInputs(views, start.labels, boundary, runtime, augmentation, lengths=lengths)

    def _open_views(
        self, store: ActivationStore, augmentation: Augmentation, boundary: int, runtime: Runtime
    ) -> list[Activations] | None:
        """The files of the training views, empty if each epoch has a new view; ``None`` if one is missing."""
        if not augmentation.is_storable:
            return []
        opened = [
            store.open(self._key("train", augmentation, view, boundary, runtime)) for view in augmentation.stored_views
        ]
        whole = [activations for activations in opened if activations is not None]
        return whole if len(whole) == len(opened) else None

    def _stored(self) -> Iterator[tuple[Split, Augmentation, int]]:
        """Split, augmentation and an epoch with the view, for everything that is stored."""
        yield "validation", _PLAIN, 0
        for augmentation in self.augmentations:
            if augmentation.is_storable:
                for epoch in range(len(augmentation.stored_views)):
                    yield "train", augmentation, epoch

    def _from_start(self, split: Split, runtime: Runtime, augmentation: Augmentation) -> Inputs:
        """Images or tokens."""
        return open_inputs(self.data, split, self.preprocessing, runtime, augmentation)

    def _key(
        self, split: Split, augmentation: Augmentation, view: int | None, boundary: int, runtime: Runtime
    ) -> ActivationKey:
        order = "channels last" if runtime.channels_last else "channels first"
        return ActivationKey(
            data=self.data.stem,
            split=split,
            view=augmentation.name_of(view),
            backbone=self.backbone,
            weights=self.weights,
            boundary=boundary,
            preprocessing=self.preprocessing,
            # Only the kind of device: trials on the second GPU read what the first one stored.
            computed_in=f"{runtime.device.type} {runtime.precision}, {order}",
            stored_as=self.plan.stored_as[boundary] if self.plan is not None else "float32",
            libraries=f"torch {torch.__version__}, {backbones.library_version(self.backbone)}",
        )
