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

NOT_COMPARED = {"compile", "device", "devices_per_trial", "keep_checkpoints"}
"""Keys of the section that may change between two runs of a study: devices, compilation and kept checkpoints."""


def _augmentation(value: object) -> object:
    views = re.fullmatch(r"views\((\d+)\)", str(value))
    if value == "fresh" or views:
        instead = "augmentation: light" + (f" and views: {views[1]}" if views else "")
        raise ValueError(f"must be none, light or standard, but got {value!r}; write {instead}")
    return value


@dataclass(frozen=True)
class Searchable:
    """Marks a setting as searchable, by the key of the same name in ``space``.

    It must be a ``float`` or a ``Literal`` of names; see :mod:`thawline.config.searchable`.
    """

    description: str
    """Description of the key in ``space``."""
    log: bool = True
    """Whether a number is sampled on a log scale."""
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
    """Fraction of all steps for the linear warm-up of the learning rate, before the cosine decay."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Probability mass spread over the other classes in the training loss."""
    class_weights: Literal["none", "balanced"] = "none"
    """``balanced`` weights each class's loss by the inverse of its share of the training images or texts."""
    gradient_clip: float | None = Field(1.0, gt=0)
    """Maximum norm of the whole gradient; ``null`` disables clipping."""
    early_stopping: int | None = Field(None, ge=1)
    """Stop after this many epochs without improvement; ``null`` trains all epochs."""
    augmentation: Annotated[
        AugmentationKind,
        BeforeValidator(_augmentation),
        Searchable("Augmentations to choose from. With ``train.views``, activations are stored for each."),
    ] = "none"
    """``none`` trains on unchanged images; ``light`` crops mildly and mirrors; ``standard`` is torchvision's reference:
    crops down to a twelfth of the image, mirrors, and one operation of TrivialAugment (colours, rotations, shears)."""
    views: int | None = Field(None, ge=1, le=999)
    """Number of augmented views of each image that take turns, with activations stored for each; ``null`` draws a new
    view in every epoch, so that no training activations can be stored."""
    mirror: bool = True
    """Whether augmentation flips images horizontally; turn it off for digits, text, or anything with a handedness."""
    random_erasing: float = Field(0.0, ge=0, le=1)
    """Probability of erasing a rectangle of a training image (2 to 33 % of its area); part of the view, like
    augmentation."""
    mixup: float = Field(0.0, ge=0)
    """Mix training images in pairs, with weights from Beta(mixup, mixup): 0.2 is usual, 0 is off. If layers are frozen,
    their activations are mixed instead, so that they can be stored. Not for texts."""
    cutmix: float = Field(0.0, ge=0)
    """Paste a box of one training image into another, its area drawn from Beta(cutmix, cutmix): 1.0 is usual, 0 is off.
    If mixup is on too, one of the two is drawn for each batch. Frozen activations without height and width, such as the
    tokens of a vision transformer or the pooled features before a head, are mixed as in mixup: a note at the start of
    the search names those freeze depths."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """``auto`` is bf16 autocast on a GPU that supports it, fp16 on an older one; on a CPU bf16 if it is measured to be
    much faster, else fp32."""
    channels_last: bool | Literal["auto"] = "auto"
    """Keep images and convolutions in channels-last memory order; ``auto`` measures which order is faster."""
    compile: bool = False
    """Measure the gain and the cost of ``torch.compile``, and compile the trained part of a trial's network if that
    saves time over the whole trial. Images only. The measurement takes seconds to minutes. Intended for GPUs, where it
    needs Triton; on a CPU it needs a C++ compiler."""
    exact: bool = False
    """Make results bit-equal to plain training in single precision: no lower precision for storage or computation."""
    device: str = "auto"
    """``auto`` (cuda, then mps, then cpu), or a torch device such as ``cpu`` or ``cuda:1``."""
    devices_per_trial: int = Field(1, ge=1)
    """Number of devices that a trial trains on, each computing a part of every batch: as many GPUs, or with ``device:
    cpu`` as many processes. Heads that are trained together, and the linear probe, use one."""
    keep_checkpoints: int = Field(1, ge=1)
    """Number of best checkpoints to keep per trial, besides the last."""
    policy: Annotated[Policy, Searchable("Thawing policies to choose from.", thawed_only=True)] = "static"
    """How a trial reaches its freeze depth. ``static`` trains at it from the first epoch. ``gradual`` starts head only
    and thaws one layer group after another. ``lp_ft`` first trains only the head on the frozen features (linear
    probing), then thaws all groups at once (Kumar et al., 2022)."""
    thaw_fraction: float = Field(0.5, gt=0, le=1)
    """Fraction of the epochs after which all layer groups beyond the freeze depth are thawed: ``gradual`` thaws evenly
    until then, ``lp_ft`` trains the head until then. The last epoch always trains all of them, if there are two or more
    epochs."""
    thaw_patience: int | None = Field(None, ge=1)
    """With ``gradual``: thaw the next layer group after this many epochs without improvement on validation, and all
    remaining groups after ``thaw_fraction`` of the epochs; ``null`` thaws evenly."""
    thaw_epochs: tuple[int, ...] | None = Field(None, min_length=1)
    """With ``gradual``, instead of ``thaw_fraction``: the epochs, counted from 1, that start by thawing another layer
    group, such as ``[2, 4, 6]``. The last of them thaws all remaining groups, so one entry thaws all at once; entries
    beyond a trial's freeze depth have no effect. ``null`` thaws evenly."""
    layer_decay: Annotated[
        float,
        Searchable(
            "Range of the factor by which the learning rate falls from layer group to layer group towards the input.",
            log=False,
            thawed_only=True,
        ),
    ] = Field(1.0, gt=0, le=1)
    """Layer-wise learning-rate decay: a group's learning rate is multiplied by this once for each group from it to the
    last, itself included; 1 is off. The groups are those that ``freeze_depth`` counts: in networks with stages (Swin,
    ConvNeXt) there are fewer of them than of the blocks that timm counts, so the same factor slows the first layers
    less. It can be combined with every policy."""
    batch_norm: Annotated[BatchNorm, Searchable("Modes of batch-norms in thawed layer groups.", thawed_only=True)] = (
        "frozen_eval"
    )
    """Mode of batch-norms in thawed layer groups: ``frozen_eval`` freezes their statistics, scale and shift,
    ``train_affine`` freezes only the statistics, ``train_all`` freezes nothing. In frozen groups all are always frozen.
    A backbone with random weights (``backbone.weights=none``) has no statistics worth keeping and always uses
    ``train_all``."""
    head: HeadStart = "auto"
    """Initial weights of every trial's head: ``probe``, a linear probe of the frozen backbone, strongly regularised
    and fitted once for the whole search (Kumar et al., 2022), or ``fresh``, zeros. ``auto`` is ``probe`` for images and
    ``fresh`` for texts, based on measurements."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Evaluate and keep an exponential moving average of the weights instead of the weights themselves, with this decay
    per step, such as 0.99; in the first steps the decay is smaller. ``null`` disables averaging."""

    @model_validator(mode="after")
    def _exact_is_single_precision(self) -> Self:
        if self.exact and self.precision not in {"auto", "fp32"}:
            raise ValueError(f"exact needs precision fp32 or auto, but got precision={self.precision}")
        return self

    @model_validator(mode="after")
    def _exact_is_not_compiled(self) -> Self:
        if self.exact and self.compile:
            raise ValueError("exact needs compile=false: compiled code rounds differently")
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
        # The first epoch has no predecessor to be worse than, and thawing takes effect in the epoch after.
        if patience is not None and (last := self.epochs_until_thawed) < patience + 2:
            raise ValueError(
                f"thaw_patience={patience} would never thaw anything: with epochs={self.epochs} and thaw_fraction="
                f"{self.thaw_fraction}, everything is thawed after {last} epochs, which must be at least {patience + 2}"
            )
        if epochs is None:
            return self
        if patience is not None:
            raise ValueError("thaw_epochs and thaw_patience cannot both be set")
        if not 2 <= epochs[0] <= epochs[-1] <= self.epochs or any(a >= b for a, b in pairwise(epochs)):
            raise ValueError(
                "thaw_epochs must increase, from at least 2 (the first epoch trains only the head) to at most epochs, "
                f"but got {list(epochs)} with epochs={self.epochs}"
            )
        return self

    @property
    def epochs_until_thawed(self) -> int:
        """Epochs after which ``thaw_fraction`` has thawed all groups: at least one, for the head, and at most one less
        than all, so that the last epoch trains all groups."""
        return min(max(1, round(self.thaw_fraction * self.epochs)), self.epochs - 1)

    @property
    def mixes(self) -> bool:
        """Whether the images of a batch are mixed with each other."""
        return bool(self.mixup or self.cutmix)
