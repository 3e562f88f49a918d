"""The section ``train``."""

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from thawline.config.model import Model

__all__ = ["NOT_COMPARED", "AugmentationKind", "BatchNorm", "HeadStart", "Policy", "Searchable", "TrainConfig"]

Policy = Literal["static", "gradual", "lp_ft"]
HeadStart = Literal["auto", "probe", "fresh"]
BatchNorm = Literal["frozen_eval", "train_affine", "train_all"]
AugmentationKind = Literal["none", "light", "standard"]

NOT_COMPARED = {"device", "devices_per_trial", "keep_checkpoints"}
"""Keys of the section that may change between two runs of a study: where it computes, and what it keeps."""


def _augmentation(value: object) -> object:
    views = re.fullmatch(r"views\((\d+)\)", str(value))
    if value == "fresh" or views:
        instead = "augmentation: light" + (f" and views: {views[1]}" if views else "")
        raise ValueError(f"must be none, light or standard, but got {value!r}; write {instead}")
    return value


@dataclass(frozen=True)
class Searchable:
    """Marks a setting that a recipe may open to the search, as the key of the same name in ``space``.

    It must be a ``float`` or a ``Literal`` of names; see :mod:`thawline.config.searchable`.
    """

    description: str
    """Of the key in ``space``."""
    log: bool = True
    """Of a number: whether it is sampled on a log scale."""
    thawed_only: bool = False
    """Whether it has no effect on a head-only trial."""


class TrainConfig(Model):
    """The training of one trial."""

    epochs: int = Field(8, ge=1)
    """Maximum number of passes over the training images or texts."""
    batch_size: int = Field(32, ge=1)
    """Images or texts per optimizer step."""
    optimizer: Annotated[Literal["adamw", "sgd"], Searchable("Optimizers to choose from.")] = "adamw"
    """``adamw``, or ``sgd`` with Nesterov momentum 0.9."""
    weight_decay: Annotated[float, Searchable("Range of the weight decay, sampled on a log scale.")] = Field(0.01, ge=0)
    """Decoupled (adamw) or L2 (sgd); never applied to biases, normalisation layers, learned tokens and positions."""
    head_learning_rate_factor: Annotated[
        float, Searchable("Range of the head's learning-rate factor, sampled on a log scale.")
    ] = Field(1.0, gt=0)
    """The head's learning rate, as a multiple of that of the thawed layer groups."""
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    """Fraction of all steps in which the learning rate warms up linearly, before the cosine decay."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Probability mass spread over the other classes in the training loss."""
    class_weights: Literal["none", "balanced"] = "none"
    """``balanced`` weighs each class's loss by the inverse of its share of the training images or texts."""
    gradient_clip: float | None = Field(1.0, gt=0)
    """Maximum norm of the whole gradient; ``null`` clips nothing."""
    early_stopping: int | None = Field(None, ge=1)
    """Stop after this many epochs without improvement; ``null`` trains all epochs."""
    augmentation: Annotated[
        AugmentationKind,
        BeforeValidator(_augmentation),
        Searchable(
            "Augmentations to choose from; without it all trials see the same. With ``train.views`` each is stored."
        ),
    ] = "none"
    """``none`` trains on the images as they are; ``light`` crops mildly and mirrors; ``standard`` is torchvision's
    reference: crops down to a twelfth of the image, mirrors, and one operation of TrivialAugment (colours, turns,
    shears)."""
    views: int | None = Field(None, ge=1, le=999)
    """Number of augmented views of each image that take turns, with activations stored for each; ``null`` draws new
    ones in every epoch, so that no activations can be stored for training."""
    mirror: bool = True
    """Whether augmentation flips images horizontally; not for digits, text, or anything with a handedness."""
    random_erasing: float = Field(0.0, ge=0, le=1)
    """Probability that a rectangle of a training image is erased (2 to 33 % of it); part of its view, as augmentation
    is."""
    mixup: float = Field(0.0, ge=0)
    """Mix training images in pairs, with weights from Beta(mixup, mixup): 0.2 is usual, 0 is off. Where layers are
    frozen, their activations are mixed, so that they can be stored. Not for texts."""
    cutmix: float = Field(0.0, ge=0)
    """Put a box of one training image into another, of an area from Beta(cutmix, cutmix): 1.0 is usual, 0 is off. With
    mixup too, one of them is drawn for each batch. Where frozen activations have no height and width, as the tokens of
    a vision transformer and the pooled features before a head, the images are mixed as by mixup: a note at the
    beginning of the search names those freeze depths."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """``auto`` is bf16 autocast on a GPU that has it, fp16 on an older one; on a CPU bf16 if it is measured to be much
    faster, else fp32."""
    channels_last: bool | Literal["auto"] = "auto"
    """Keep images and convolutions in channels-last memory order; ``auto`` measures which order is faster."""
    exact: bool = False
    """Make results bit-equal to plain training in single precision: no lower precision is stored or computed."""
    device: str = "auto"
    """``auto`` (cuda, then mps, then cpu), or a torch device such as ``cpu`` or ``cuda:1``."""
    devices_per_trial: int = Field(1, ge=1)
    """Devices that a trial trains on at the same time, each computing a part of every batch: as many GPUs, or with
    ``device: cpu`` as many processes. Heads that are trained together, and the linear probe, take one."""
    keep_checkpoints: int = Field(1, ge=1)
    """Number of best checkpoints kept of a trial, besides the last."""
    policy: Annotated[Policy, Searchable("Policies of thawing to choose from.", thawed_only=True)] = "static"
    """How a trial comes to its freeze depth. ``static`` trains at it from the first epoch. ``gradual`` begins head only
    and thaws one layer group after another. ``lp_ft`` first trains only the head on the frozen features (linear
    probing), then thaws all groups at once (Kumar et al., 2022)."""
    thaw_fraction: float = Field(0.5, gt=0, le=1)
    """Fraction of the epochs after which all layer groups beyond the freeze depth are thawed: ``gradual`` thaws evenly
    until then, ``lp_ft`` trains the head until then. The last epoch always trains all of them, if there are two or more
    epochs."""
    thaw_patience: int | None = Field(None, ge=1)
    """With ``gradual``: thaw the next layer group after this many epochs without improvement on validation, and after
    ``thaw_fraction`` of the epochs all that are left; ``null`` thaws evenly."""
    thaw_epochs: tuple[int, ...] | None = Field(None, min_length=1)
    """With ``gradual``, instead of ``thaw_fraction``: the epochs, counted from 1, that begin with another layer group
    thawed, such as ``[2, 4, 6]``. The last of them thaws all that are left, so one entry thaws all at once; entries
    beyond a trial's freeze depth thaw nothing. ``null`` thaws evenly."""
    layer_decay: Annotated[
        float,
        Searchable(
            "Range of the factor by which the learning rate falls from layer group to layer group towards the input.",
            log=False,
            thawed_only=True,
        ),
    ] = Field(1.0, gt=0, le=1)
    """Layer-wise learning-rate decay: a group's learning rate is multiplied by this once for each group between it and
    the end, itself included; 1 is off. The groups are those that ``freeze_depth`` counts: in networks of several stages
    (Swin, ConvNeXt) they are fewer than the blocks that timm counts, so the same factor slows the first layers less. It
    can be combined with every policy."""
    batch_norm: Annotated[BatchNorm, Searchable("Modes of batch-norms in thawed layer groups.", thawed_only=True)] = (
        "frozen_eval"
    )
    """Mode of batch-norms in thawed layer groups: ``frozen_eval`` keeps their statistics, scale and shift,
    ``train_affine`` keeps only the statistics, ``train_all`` trains and updates all. Frozen groups always keep all. A
    backbone with random weights (``backbone.weights=none``) has no statistics worth keeping: it always trains all."""
    head: HeadStart = "auto"
    """Initial weights of every trial's head: ``probe``, a linear probe of the frozen backbone, strongly regularised
    and fitted once for the whole search (Kumar et al., 2022), or ``fresh``, weights of 0. ``auto`` is ``probe`` for
    images and ``fresh`` for texts, as measured."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Evaluate and keep an exponential moving average of the weights instead of the weights themselves, with this decay
    for each step, such as 0.99; in the first steps the decay is smaller. ``null`` averages nothing."""

    @model_validator(mode="after")
    def _exact_is_single_precision(self) -> Self:
        if self.exact and self.precision not in {"auto", "fp32"}:
            raise ValueError(f"exact needs precision fp32 or auto, but got precision={self.precision}")
        return self

    @model_validator(mode="after")
    def _a_part_for_each_device(self) -> Self:
        count = self.devices_per_trial
        if count > 1 and self.exact:
            raise ValueError(f"exact needs devices_per_trial=1, but got {count}: sums over devices round differently")
        if count > 1 and self.batch_size < 2 * count:
            raise ValueError(
                f"devices_per_trial={count} needs batch_size >= {2 * count}, two images or texts for each, but got "
                f"{self.batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _something_to_mix(self) -> Self:
        if self.batch_size < 2 and self.mixes:
            raise ValueError(f"mixup and cutmix need batch_size >= 2, but got {self.batch_size}")
        return self

    @model_validator(mode="after")
    def _one_way_to_thaw(self) -> Self:
        epochs, patience = self.thaw_epochs, self.thaw_patience
        # The first epoch cannot be worse than one before, and what is thawed shows in the epoch after.
        if patience is not None and (last := self.epochs_until_thawed) < patience + 2:
            raise ValueError(
                f"thaw_patience={patience} would never thaw anything: with epochs={self.epochs} and thaw_fraction="
                f"{self.thaw_fraction} all is thawed after {last} epochs, and that must be {patience + 2} at least"
            )
        if epochs is None:
            return self
        if patience is not None:
            raise ValueError("thaw_epochs and thaw_patience cannot both be set")
        if not 2 <= epochs[0] <= epochs[-1] <= self.epochs or any(a >= b for a, b in pairwise(epochs)):
            raise ValueError(
                "thaw_epochs must rise, from 2 at least (the first epoch trains only the head) to epochs at most, "
                f"but got {list(epochs)} with epochs={self.epochs}"
            )
        return self

    @property
    def epochs_until_thawed(self) -> int:
        """Epochs after which ``thaw_fraction`` has all thawed: at least one, for the head, and at most one less than
        all, so that the last trains all."""
        return min(max(1, round(self.thaw_fraction * self.epochs)), self.epochs - 1)

    @property
    def mixes(self) -> bool:
        """Whether the images of a batch are mixed with each other."""
        return bool(self.mixup or self.cutmix)
