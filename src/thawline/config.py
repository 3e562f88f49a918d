"""One set of frozen models is the recipe file, the command line, the Prefect form and the logged configuration.

A recipe is YAML with these keys; every key may be left out. Precedence: defaults, then the recipe, then the command
line's options, then ``--set key=value``. All mistakes are reported at once, with the path of each key.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from thawline.exceptions import ConfigError

__all__ = [
    "ActivationsConfig",
    "BackboneConfig",
    "DataConfig",
    "ExecutionConfig",
    "GateRules",
    "PromotionConfig",
    "RetrainConfig",
    "SearchConfig",
    "SearchSpace",
    "StudyConfig",
    "TrackingConfig",
    "TrainConfig",
    "flatten",
    "load_recipe",
    "nested",
    "parse_assignments",
    "with_driver",
    "without_password",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _plain_name(value: str) -> str:
    """Names become folder names, MLflow names and URL parts: letters, digits, ``.``, ``_``, ``-`` only."""
    if not _NAME.fullmatch(value):
        raise ValueError(
            "must start with a letter or a digit and hold at most 100 letters, digits, '.', '_' or '-', "
            f"but got {value!r}"
        )
    return value


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"must be a regular expression, but got {value!r}: {error}") from None
    return value


def _column(value: object) -> object:
    return str(value) if type(value) is int else value  # --set data.text_column=2 is a number to YAML


def _augmentation(value: object) -> object:
    views = re.fullmatch(r"views\((\d+)\)", str(value))
    if value == "fresh" or views:
        instead = "augmentation: light" + (f" and views: {views[1]}" if views else "")
        raise ValueError(f"must be none, light or standard, but got {value!r}; write {instead}")
    return value


def _backbone_choices(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(f"must be a list of names, such as [{value}], but got {value!r}")
    if not isinstance(value, list | tuple):
        return value
    if not all(isinstance(name, str) for name in value):
        raise ValueError(f"must be a list of names, or a mapping such as {{resnet18: [2, 5]}}, but got {list(value)}")
    if len(set(value)) != len(value):
        raise ValueError(f"must list each backbone once, but got {list(value)}")
    return dict.fromkeys(value)


def _list(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(f"must be a list such as [{value}], but got {value!r}")
    return value


def _workers(value: object) -> object:
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"must be auto or a whole number from 1, but got {value!r}")
    return value


_SIZE_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}


def _size(value: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?(MB|GB|TB)", value):
        raise ValueError(f"must be a size such as 500MB, 20GB or 1.5TB, but got {value!r}")
    return value


def _block(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", value):
        raise ValueError(f"must be a block of Prefect as TYPE/NAME, such as slack-webhook/team, but got {value!r}")
    return value


def _storage_url(value: str) -> str:
    """The address of a folder on object storage; credentials would end up in logs, recipes and MLflow."""
    scheme, _, rest = value.partition("://")
    host, *parts = rest.rstrip("/").split("/")
    if "::" in value:
        raise ValueError("must name one folder, without '::'")
    user_and_port = re.fullmatch(r"([^:@]+@)?[^:@]*(:\d+)?", host)
    if not user_and_port or "?" in rest or (user_and_port[2] and any("@" in part for part in parts)):
        raise ValueError(
            "must hold no password, key or query: credentials belong into the environment, such as AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY"
        )
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) or not any((host, *parts)) or not value.isprintable():
        raise ValueError(f"must be a URL of a folder such as s3://bucket/photos, but got {value!r}")
    if not {".", ".."}.isdisjoint(parts):
        raise ValueError(f"must hold no '.' or '..', but got {value!r}")
    return value.rstrip("/")


def _data_url(value: str) -> str:
    url = _storage_url(value)
    if url.startswith(("http:", "https:", "file:", "local:")):
        raise ValueError(f"must be object storage such as s3://bucket/photos, but got {value!r}; give a folder's path")
    return url


def _artifacts_url(value: str) -> str:
    url = _storage_url(value)
    if url.startswith(("http:", "https:", "mlflow-artifacts:", "memory:")):
        raise ValueError(f"must be object storage such as s3://bucket/thawline, or file:///folder, but got {value!r}")
    return url


def _wandb_mode(value: object) -> object:
    return "off" if value is False else value  # as YAML reads the word off


def _wandb_project(value: str) -> str:
    if not 0 < len(value) <= 128 or not value.isprintable() or any(sign in value for sign in "/\\#?%:"):
        raise ValueError(f"must be 1 to 128 characters without / \\ # ? % and :, but got {value!r}")
    return value


PlainName = Annotated[str, AfterValidator(_plain_name)]
ColumnName = Annotated[str, BeforeValidator(_column)]
Policy = Literal["static", "gradual", "lp_ft"]
HeadStart = Literal["auto", "probe", "fresh"]
BatchNorm = Literal["frozen_eval", "train_affine", "train_all"]
AugmentationKind = Literal["none", "light", "standard"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class DataConfig(_Model):
    """The folder of labelled images, or the table of labelled texts, and how it is read."""

    path: Path
    """Folder with one subfolder of images per class, or with train/, validation/ and test/ above the classes; or a
    table of texts (.csv, .tsv, .jsonl or .parquet), or a folder with a table train, validation and test."""
    url: Annotated[str, AfterValidator(_data_url)] | None = None
    """Folder on object storage, such as ``s3://bucket/photos``, that ``path`` is made a mirror of before it is read."""
    validation_fraction: float = Field(0.15, gt=0, lt=0.5)
    """Share of the images or texts split off for validation where the data have no validation/ of their own."""
    test_fraction: float = Field(0.15, gt=0, lt=0.5)
    """Share of the images or texts held out for the final test where the data have no test/ of their own."""
    group_pattern: Annotated[str, AfterValidator(_pattern)] | None = None
    """Regular expression searched in each file's relative path; files with the same match (its first group, if it has
    one) stay on one side of the split: a patient, a camera, a video."""
    group_column: ColumnName | None = None
    """Column that names each row's group: of the table of texts, or of DATA/metadata.csv (beside its column
    ``file_name``) for images."""
    max_bad_fraction: float = Field(0.05, ge=0, le=1)
    """Share of unreadable files or rows above which nothing is trained."""
    max_pixels: int = Field(64_000_000, ge=1)
    """Images with more pixels (width times height) are refused before they are decoded."""
    workers: int | None = Field(None, ge=1)
    """Processes that decode; by default one per CPU core."""
    text_column: ColumnName | None = None
    """Column of a table that holds the texts: its name, or its number from 1 where no line names the columns; by
    default found by usual names, such as text or message, else by what the columns hold."""
    label_column: ColumnName | None = None
    """Column of a table that holds the labels; by default found in the same way."""
    split_column: ColumnName | None = None
    """Column of a table that says of each row whether it is train, validation or test; by default a column of the name
    split. What it gives none of is split off the rows to train on."""
    header: bool | None = None
    """Whether the first line of a .csv or .tsv table names its columns; by default found out from the names and from
    what lies below."""

    @model_validator(mode="after")
    def _one_kind_of_group(self) -> Self:
        if self.group_pattern is not None and self.group_column is not None:
            raise ValueError("group_pattern and group_column cannot both be set")
        if self.validation_fraction + self.test_fraction >= 0.8:
            raise ValueError(
                "validation_fraction + test_fraction must be less than 0.8, to leave something to train on"
            )
        return self


class BackboneConfig(_Model):
    """The pretrained network."""

    name: str = "resnet18"
    """Name in the list of ``thawline backbones``."""
    weights: str | dict[str, str] = "default"
    """``default`` (the library's own), ``starter`` (shipped with Thawline), ``none`` (random), or a file: .safetensors,
    or a state_dict saved by torch.save; of timm also a folder as on HuggingFace's hub. For several backbones a mapping
    from their names to these; those that it leaves out take ``default``."""
    image_size: int | None = Field(None, ge=8, le=2048)
    """Side in pixels of the square that the network sees; by default what its weights were trained for."""

    max_length: int | None = Field(None, ge=8, le=8192)
    """Tokens of a text that the network sees, at most; by default what it was trained for, up to 512."""

    def weights_of(self, backbone: str) -> str:
        """What one backbone begins with."""
        return self.weights if isinstance(self.weights, str) else self.weights.get(backbone, "default")

    def is_random(self, backbone: str) -> bool:
        """Whether one backbone begins with random weights."""
        return self.weights_of(backbone) == "none"


class TrainConfig(_Model):
    """How one trial trains."""

    epochs: int = Field(8, ge=1)
    """Passes over the training images or texts, at most."""
    batch_size: int = Field(32, ge=1)
    """Images or texts per optimizer step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """``adamw``, or ``sgd`` with Nesterov momentum 0.9."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled (adamw) or L2 (sgd); never applied to biases, normalisation layers, learned tokens and positions."""
    head_learning_rate_factor: float = Field(1.0, gt=0)
    """The head learns this many times faster than the thawed layer groups."""
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of all steps in which the learning rate rises linearly, before it falls as a cosine."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Probability mass spread over the other classes in the training loss."""
    class_weights: Literal["none", "balanced"] = "none"
    """``balanced`` weighs each class's loss by the inverse of its share of the training images or texts."""
    gradient_clip: float | None = Field(1.0, gt=0)
    """Largest norm of the whole gradient; ``null`` clips nothing."""
    early_stopping: int | None = Field(None, ge=1)
    """Stop after this many epochs without a better value; ``null`` trains all epochs."""
    augmentation: Annotated[AugmentationKind, BeforeValidator(_augmentation)] = "none"
    """``none`` trains on the images as they are; ``light`` crops mildly and mirrors; ``standard`` is torchvision's
    reference: crops down to a twelfth of the image, mirrors, and one operation of TrivialAugment (colours, turns,
    shears)."""
    views: int | None = Field(None, ge=1, le=999)
    """Ways of augmenting that take turns, each stored behind the frozen layers; ``null`` draws anew in every epoch, so
    that nothing of the frozen layers can be stored for training."""
    mirror: bool = True
    """Whether augmentation mirrors left and right; not for digits, text, or whatever has a side."""
    random_erasing: float = Field(0.0, ge=0, le=1)
    """How often a rectangle of a training image is erased (2 to 33 % of it); a part of its view, as augmentation is."""
    mixup: float = Field(0.0, ge=0)
    """Mix training images in pairs, by shares from Beta(mixup, mixup): 0.2 is usual, 0 does not. Where layers are
    frozen, what they give is mixed, so that it can be stored. Not for texts."""
    cutmix: float = Field(0.0, ge=0)
    """Put a box of one training image into another, of an area from Beta(cutmix, cutmix): 1.0 is usual, 0 does not.
    With mixup too, one of them is drawn for each batch. Where what frozen layers give has no height and width, as the
    tokens of a vision transformer and the pooled features before a head, the images are mixed as by mixup: a note at
    the beginning of the search names those freeze depths."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """``auto`` is bf16 autocast on a GPU that has it, fp16 on an older one; on a CPU bf16 if it is measured to be much
    faster, else fp32."""
    channels_last: bool | Literal["auto"] = "auto"
    """Keep images and convolutions in channels-last memory order; ``auto`` measures which order is faster."""
    exact: bool = False
    """Give the bits of plain training in single precision: nothing is stored or computed in a shorter one."""
    device: str = "auto"
    """``auto`` (cuda, then mps, then cpu), or a torch device such as ``cpu`` or ``cuda:1``."""
    keep_checkpoints: int = Field(1, ge=1)
    """How many of the best checkpoints of a trial are kept, beside the last."""
    policy: Policy = "static"
    """How a trial comes to its freeze depth. ``static`` trains at it from the first epoch. ``gradual`` begins with the
    head alone and thaws one layer group after another. ``lp_ft`` trains the head alone on the frozen features, then
    thaws all groups at once (Kumar et al., 2022)."""
    thaw_fraction: float = Field(0.5, gt=0, le=1)
    """Share of the epochs after which all is thawed that the freeze depth leaves free: ``gradual`` thaws evenly until
    then, ``lp_ft`` trains the head until then. The last epoch always trains all of it, if there are two or more."""
    thaw_patience: int | None = Field(None, ge=1)
    """With ``gradual``: thaw the next layer group after this many epochs without a better validation value, and after
    ``thaw_fraction`` of the epochs all that are left; ``null`` thaws evenly."""
    thaw_epochs: tuple[int, ...] | None = Field(None, min_length=1)
    """With ``gradual``, in place of ``thaw_fraction``: the epochs, counted from 1, that begin with another layer group
    thawed, such as ``[2, 4, 6]``. The last of them thaws all that are left, so one entry thaws all at once; entries
    beyond a trial's freeze depth thaw nothing. ``null`` thaws evenly."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """How much slower each layer group learns than the one behind it: a group's learning rate is multiplied by this
    once for each group between it and the end, itself included; 1 is off. The groups are those that ``freeze_depth``
    counts: in networks of several stages (Swin, ConvNeXt) they are fewer than the blocks that timm counts, so the same
    factor slows the first layers less. It says how fast what is thawed learns, and a policy when it is thawed, so it
    goes with every policy."""
    batch_norm: BatchNorm = "frozen_eval"
    """What batch-norms of thawed layer groups do: ``frozen_eval`` keeps their statistics, scale and shift,
    ``train_affine`` keeps the statistics alone, ``train_all`` trains and updates all. Frozen groups always keep all.
    A backbone with random weights (``backbone.weights=none``) has no statistics worth keeping: it trains all, whatever
    this says."""
    head: HeadStart = "auto"
    """What the head of every trial begins with: ``probe``, a linear probe of the frozen backbone, strongly regularised
    and fitted once for the whole search (Kumar et al., 2022), or ``fresh``, weights of 0. ``auto`` is ``probe`` for
    images and ``fresh`` for texts, as measured."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Measure and keep an exponential moving average of the weights instead of the weights themselves, with this decay
    for each step, such as 0.99; in the first steps the decay is smaller. ``null`` averages nothing."""

    @model_validator(mode="after")
    def _exact_is_single_precision(self) -> Self:
        if self.exact and self.precision not in {"auto", "fp32"}:
            raise ValueError(f"exact needs precision fp32 or auto, but got precision={self.precision}")
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
                "thaw_epochs must rise, from 2 at least (the first epoch trains the head alone) to epochs at most, "
                f"but got {list(epochs)} with epochs={self.epochs}"
            )
        return self

    @property
    def epochs_until_thawed(self) -> int:
        """Epochs after which ``thaw_fraction`` has all thawed: one at least, for the head, and one less than all at
        most, so that the last trains all."""
        return min(max(1, round(self.thaw_fraction * self.epochs)), self.epochs - 1)

    @property
    def mixes(self) -> bool:
        """Whether the images of a batch are mixed with each other."""
        return bool(self.mixup or self.cutmix)


class ActivationsConfig(_Model):
    """What the frozen layers give, computed once and stored for all trials."""

    store: bool = True
    """Store activations where the plan finds that it pays; ``false`` computes them anew in every trial."""
    budget: Annotated[str, AfterValidator(_size)] | None = None
    """Disk space of all stored activations, such as ``20GB``; by default half of what they take and what is free. Those
    that were used longest ago make room."""

    @property
    def budget_bytes(self) -> int | None:
        """The budget as a number of bytes; ``None`` for the default."""
        if self.budget is None:
            return None
        return int(float(self.budget[:-2]) * _SIZE_UNITS[self.budget[-2:]])


class SearchSpace(_Model):
    """What Optuna may choose. A two-item list is a range; ``null`` keeps TrainConfig's value for every trial."""

    freeze_depth: tuple[int, int] | None = None
    """Smallest and largest number of frozen layer groups; by default from 0 (train everything) to all (head alone)."""
    learning_rate: tuple[float, float] = (1e-5, 1e-2)
    """Range of the learning rate, sampled on a log scale."""
    weight_decay: tuple[float, float] | None = None
    """Range of the weight decay, sampled on a log scale."""
    head_learning_rate_factor: tuple[float, float] | None = None
    """Range of the head's learning-rate factor, sampled on a log scale."""
    optimizer: Annotated[tuple[Literal["adamw", "sgd"], ...] | None, BeforeValidator(_list)] = None
    """Optimizers to choose from."""
    backbone: Annotated[dict[str, tuple[int, int] | None] | None, BeforeValidator(_backbone_choices)] = None
    """Backbones to choose from: a list of names, or a mapping from each name to its range of freeze depths (``null``:
    all). Before the first trial each is probed on its frozen features, see ``study.keep_backbones``."""
    policy: Annotated[tuple[Policy, ...] | None, BeforeValidator(_list)] = None
    """Policies of thawing to choose from."""
    layer_decay: tuple[float, float] | None = None
    """Range of the factor by which the learning rate falls from layer group to layer group towards the input."""
    batch_norm: Annotated[tuple[BatchNorm, ...] | None, BeforeValidator(_list)] = None
    """What batch-norms of thawed layer groups may do."""
    augmentation: Annotated[tuple[AugmentationKind, ...] | None, BeforeValidator(_list)] = None
    """Ways of changing training images to choose from; without it all trials see the same. With ``train.views`` each is
    stored."""

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        problems = []
        if self.freeze_depth is not None and not 0 <= self.freeze_depth[0] <= self.freeze_depth[1]:
            problems.append(f"freeze_depth: 0 <= low <= high must hold, but got {list(self.freeze_depth)}")
        for name in ("learning_rate", "weight_decay", "head_learning_rate_factor"):
            value = getattr(self, name)
            if value is not None and not 0 < value[0] <= value[1]:
                problems.append(f"{name}: 0 < low <= high must hold, but got {list(value)}")
        if self.layer_decay is not None and not 0 < self.layer_decay[0] <= self.layer_decay[1] <= 1:
            problems.append(f"layer_decay: 0 < low <= high <= 1 must hold, but got {list(self.layer_decay)}")
        for name in ("optimizer", "backbone", "policy", "batch_norm", "augmentation"):
            value = getattr(self, name)
            if value is not None and (not value or len(set(value)) != len(value)):
                problems.append(f"{name}: must list at least one choice, each once, but got {list(value)}")
        if self.backbone is not None and self.freeze_depth is not None:
            problems.append(
                "freeze_depth cannot be set together with backbone: give each backbone its own, as in "
                "backbone: {resnet18: [2, 5]}"
            )
        for name, depths in (self.backbone or {}).items():
            if depths is not None and not 0 <= depths[0] <= depths[1]:
                problems.append(f"backbone: {name}: 0 <= low <= high must hold, but got {list(depths)}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class StudyConfig(_Model):
    """The search as a whole."""

    name: PlainName | None = None
    """Name of the study; the same name goes on where it stopped. By default made from data, backbone and settings."""
    trials: int = Field(20, ge=1)
    """Trials in all, counted over every time that the study was run."""
    timeout_minutes: float | None = Field(None, gt=0)
    """No trial is started after the study was run for this many minutes, counted over every time that it was run, and a
    running one stops at its next epoch."""
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "loss"] = "accuracy"
    """Validation metric that the search optimises (``loss`` is minimised, the others are maximised)."""
    sampler: str = "GPSampler"
    """Any of Optuna's samplers, by class name."""
    sampler_options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the sampler. GPSampler's default draws four trials at random before it models them."""
    pruner: str = "MedianPruner"
    """Any of Optuna's pruners, by class name; ``NopPruner`` prunes nothing."""
    pruner_options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the pruner. Steps are epochs, counted from 1. MedianPruner's default spares the first epoch
    of every trial, and lets eight trials run to their end: with fewer to compare with, a median says little."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of sampling, initialisation and batch order."""
    batch: int = Field(4, ge=1)
    """Trials that are drawn at once, before any of them has a result. The cheapest of a batch run first, and those that
    train the head alone are trained together."""
    enqueue: tuple[dict[str, Any], ...] = ()
    """Points to try first, such as ``[{freeze_depth: 3, learning_rate: 0.002}]``; what one leaves out is sampled."""
    workers: Annotated[int | Literal["auto"], BeforeValidator(_workers)] = "auto"
    """Trials that run at the same time, each in another process; ``auto`` is ``workers_per_gpu`` for each GPU, one
    without, and ``batch`` of them on a cluster. More than one makes the order of results, and so the sampler's choices,
    depend on timing."""
    workers_per_gpu: int = Field(1, ge=1)
    """Trials that share a GPU; two or more pay where little is thawed and a trial leaves it half idle."""
    retries: int = Field(1, ge=0)
    """How often a trial whose process died or hung is tried again from its last checkpoint; counted anew after every
    epoch that it finishes."""
    hang_minutes: float = Field(30.0, gt=0)
    """A trial that finishes no batch for so long is stopped, and tried again as if its process had died."""
    grace_seconds: float = Field(20.0, ge=0)
    """On SIGTERM or Ctrl-C, how long running trials have to finish their batch and write a checkpoint."""
    keep_backbones: int | None = Field(None, ge=1)
    """Of several backbones, search only so many: those on whose frozen features a linear probe does best on validation.
    ``null`` searches all, the best first."""
    storage: str | None = None
    """Database of the study, such as ``postgresql://user@host/optuna``, which searches on several machines may share;
    by default THAWLINE_STORAGE, else a journal file in Thawline's home. Passwords belong into the variable."""
    soup: bool = False
    """Average the weights of the best trials of the best one's backbone, one after the other as long as validation does
    not suffer, and package that where it is better on validation than the best trial alone (Wortsman et al., 2022)."""

    @model_validator(mode="before")
    @classmethod
    def _measured_options(cls, given: Any) -> Any:
        """Options that are not given are those measured for the default sampler and pruner, see ADR 1."""
        if not isinstance(given, Mapping):
            return given
        sampler, pruner = given.get("sampler", "GPSampler"), given.get("pruner", "MedianPruner")
        return {
            "sampler_options": {"n_startup_trials": 4} if sampler == "GPSampler" else {},
            "pruner_options": {"n_startup_trials": 8, "n_warmup_steps": 2} if pruner == "MedianPruner" else {},
            **given,
        }


class ExecutionConfig(_Model):
    """Where trials run."""

    kind: Literal["local", "ray", "dask"] = "local"
    """``local``: processes of this machine. ``ray`` and ``dask``: tasks on a cluster, by Prefect's task runners
    (``pip install 'thawline[ray]'`` or ``'thawline[dask]'``); ``study.workers`` of them at a time."""
    address: str | None = None
    """Address of the cluster, such as ``ray://head:10001``, ``auto`` or ``tcp://scheduler:8786``; without one a small
    cluster is started on this machine."""
    cpus: float = Field(1.0, gt=0)
    """CPU cores that a trial on a cluster takes."""
    gpus: float = Field(0.0, ge=0)
    """GPUs that a trial on a Ray cluster takes; 0.5 puts two trials on each."""


class TrackingConfig(_Model):
    """Where results are recorded."""

    uri: str | None = None
    """MLflow tracking URI; by default MLFLOW_TRACKING_URI, else a SQLite database in Thawline's home."""
    experiment: PlainName = "thawline"
    """MLflow experiment that the study's runs belong to."""
    artifacts: Annotated[str, AfterValidator(_artifacts_url)] | None = None
    """Where a new experiment in a database keeps its files, such as ``s3://bucket/thawline``; by default Thawline's
    home. A tracking server decides by itself."""
    tensorboard: bool = True
    """Write TensorBoard event files beside MLflow."""
    wandb: Annotated[Literal["off", "offline", "online"], BeforeValidator(_wandb_mode)] = "off"
    """Record in Weights & Biases too (``pip install 'thawline[wandb]'``): ``online`` needs a login, ``offline`` writes
    into Thawline's home for ``wandb sync``."""
    wandb_project: Annotated[str, AfterValidator(_wandb_project)] = "thawline"
    """W&B project that the study's runs belong to."""
    wandb_entity: str | None = Field(None, min_length=1)
    """W&B team or user that the project belongs to; by default the one that W&B itself takes."""
    plugins: tuple[str, ...] = ()
    """Further trackers, by the names of their entry points in the group ``thawline.trackers``."""
    system_metrics: bool = True
    """Record CPU, memory and GPU use of every trial."""
    observe: bool = True
    """Record gradient flow, histograms and pictures of every trial, in at most 5 % of its time."""
    report: bool = True
    """Write the report of a concluded study, and record its figures and tables."""
    git_diff: bool = True
    """Record the differences of a changed checkout on every run."""


class GateRules(_Model):
    """What a challenger must fulfil to become champion; both are measured on the same images or texts."""

    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "loss"] = "accuracy"
    """Metric on the test split by which a challenger must beat the champion."""
    minimum_gain: Annotated[float, Field(ge=0)] = 0.0
    """By how much at least; 0.01 is one point of accuracy."""
    significance: Annotated[float, Field(gt=0, le=1)] = 0.04
    """How often chance alone may promote a challenger that is no better: the gain must be above 0 in all but this share
    of resampled test sets. 1 asks for no evidence beyond the gain itself."""
    max_recall_loss: Annotated[float, Field(ge=0, le=1)] = 0.1
    """How much recall any class may lose; a single image or text of a small class is not counted as a loss."""
    max_calibration_loss: Annotated[float, Field(ge=0, le=1)] = 0.05
    """How much the expected calibration error may grow, beyond what chance explains on this test set."""
    max_latency_ratio: Annotated[float, Field(gt=0)] = 5.0
    """How many times longer than the champion a single image or text may take."""
    max_size_ratio: Annotated[float, Field(gt=0)] = 10.0
    """How many times larger than the champion the package may be."""


class PromotionConfig(GateRules):
    """What happens to the best trial."""

    model: PlainName | None = None
    """Name in the MLflow model registry; by default the name of the data folder."""
    further: tuple[Path, ...] = ()
    """Further folders of labelled images, ``FOLDER/<class>/…``, or tables of labelled texts, on which the challenger
    must not be worse beyond chance."""
    exports: tuple[Literal["pt2", "onnx"], ...] = ()
    """Further formats to package the model in, each compared with the network: ``torch.export`` and ONNX (which needs
    ``pip install 'thawline[onnx]'``)."""
    approve: bool = False
    """Whether a person must agree before the champion is replaced: the flow pauses until somebody answers in Prefect's
    UI."""
    approve_minutes: Annotated[float, Field(gt=0)] = 1440.0
    """How long the flow waits for that answer; without one the champion stays."""


class RetrainConfig(_Model):
    """What ``thawline retrain`` does around a search."""

    narrow: bool = False
    """Search only near the champion: one layer group more or less frozen, at a third to three times its learning rate,
    within the search space. Cheaper; what lies far from the champion is not found."""
    notify: tuple[Annotated[str, AfterValidator(_block)], ...] = ()
    """Notification blocks of Prefect that are told how a retraining ended, such as ``slack-webhook/team``."""
    notify_on: tuple[Literal["promoted", "held", "rejected", "failed", "skipped"], ...] = (
        "promoted",
        "held",
        "rejected",
        "failed",
    )
    """Which ends they are told."""


class SearchConfig(_Model):
    """Everything that ``thawline search`` does, as one value."""

    data: DataConfig
    backbone: BackboneConfig = BackboneConfig()
    train: TrainConfig = TrainConfig()
    activations: ActivationsConfig = ActivationsConfig()
    space: SearchSpace = SearchSpace()
    study: StudyConfig = StudyConfig()
    execution: ExecutionConfig = ExecutionConfig()
    tracking: TrackingConfig = TrackingConfig()
    promotion: PromotionConfig = PromotionConfig()
    retrain: RetrainConfig = RetrainConfig()

    @model_validator(mode="after")
    def _views_of_what_changes(self) -> Self:
        kinds = {self.train.augmentation} if self.space.augmentation is None else set(self.space.augmentation)
        if self.train.views is not None and kinds == {"none"} and not self.train.random_erasing:
            raise ValueError(
                f"train.views={self.train.views} needs images that change: set train.augmentation to light or "
                "standard, or train.random_erasing, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _something_thaws_gradually(self) -> Self:
        policies = self.space.policy or (self.train.policy,)
        given = {name: getattr(self.train, name) for name in ("thaw_patience", "thaw_epochs")}
        useless = [f"train.{name}={value}" for name, value in given.items() if value is not None]
        if useless and "gradual" not in policies:
            raise ValueError(
                f"{useless[0]} is for the policy gradual, but trials have {', '.join(policies)}: set "
                "train.policy=gradual, or leave it out"
            )
        fraction = self.train.thaw_fraction
        if fraction != TrainConfig.model_fields["thaw_fraction"].default and not self._reads_thaw_fraction(policies):
            raise ValueError(
                f"train.thaw_fraction={fraction} has no effect: trials have {', '.join(policies)}"
                f"{', and thaw_epochs says when' if self.train.thaw_epochs else ''}. Leave it out, or set "
                "train.policy=lp_ft"
            )
        return self

    def _reads_thaw_fraction(self, policies: Sequence[Policy]) -> bool:
        return "lp_ft" in policies or ("gradual" in policies and self.train.thaw_epochs is None)

    @model_validator(mode="before")
    @classmethod
    def _sampler_of_conditional_spaces(cls, given: Any) -> Any:
        """GPSampler cannot model a depth that belongs to one backbone alone; TPESampler can, and is the default there.

        See ADR 18.
        """
        if not isinstance(given, Mapping):
            return given
        space, study = given.get("space"), given.get("study", {})
        searched = space.get("backbone") if isinstance(space, Mapping) else getattr(space, "backbone", None)
        count = len(searched) if isinstance(searched, list | tuple | Mapping) else 0
        named = study if isinstance(study, Mapping) else getattr(study, "model_fields_set", {"sampler"})
        if count < 2 or "sampler" in named:
            return given
        options = {"multivariate": True, "group": True, "n_startup_trials": 4 + 2 * count}
        own = study if isinstance(study, Mapping) else study.model_dump(exclude_unset=True)
        return {**given, "study": {"sampler_options": options, **own, "sampler": "TPESampler"}}

    @model_validator(mode="after")
    def _weights_are_of_backbones(self) -> Self:
        if isinstance(self.backbone.weights, dict):
            unknown = self.backbone.weights.keys() - set(self.backbones)
            if unknown:
                raise ValueError(
                    f"backbone.weights names {', '.join(sorted(unknown))}, but the study's backbones are "
                    f"{', '.join(self.backbones)}"
                )
        return self

    @classmethod
    def build(cls, *layers: Mapping[str, Any]) -> "SearchConfig":
        """Merge layers of nested mappings, later ones winning, and validate the whole.

        The choices of ``space.backbone``, ``backbone.weights`` by name and options of samplers and pruners are taken
        from the last layer that has them as a whole: what an earlier one lists is not added to them.

        Raises:
            ConfigError: naming every wrong key and value at once.
        """
        merged: dict[str, Any] = {}
        for layer in layers:
            _merge(merged, layer, whole=_WHOLE)
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            raise ConfigError(_describe(error)) from None

    @property
    def backbones(self) -> tuple[str, ...]:
        """Names of all backbones that the study may train."""
        return tuple(self.space.backbone or (self.backbone.name,))

    def batch_norm_of(self, backbone: str) -> BatchNorm:
        """What batch-norms of a backbone do where the space does not choose: random ones have no statistics to keep."""
        return "train_all" if self.backbone.is_random(backbone) else self.train.batch_norm

    def fingerprint(self, data_digest: str) -> str:
        """Sixteen hex digits that change when trials of two searches could not be compared.

        Budget (trials, timeout, workers), names, tracking and promotion may change between two runs of one study;
        data, backbone, training and search space may not.
        """
        relevant = {"data": data_digest, **self.comparable()}
        return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]

    def comparable(self) -> dict[str, dict[str, Any]]:
        """The settings, by section, that two trials must share to be comparable."""
        return {
            "backbone": self.backbone.model_dump(mode="json"),
            "train": self.train.model_dump(mode="json", exclude={"device", "keep_checkpoints"}),
            "space": self.space.model_dump(mode="json"),
            "study": self.study.model_dump(
                mode="json", include={"metric", "sampler", "sampler_options", "seed", "keep_backbones"}
            ),
        }

    def without_passwords(self) -> "SearchConfig":
        """The same with ``***`` for the passwords of its URLs, for what others may read."""
        storage, uri = (url and without_password(url) for url in (self.study.storage, self.tracking.uri))
        return self.model_copy(
            update={
                "study": self.study.model_copy(update={"storage": storage}),
                "tracking": self.tracking.model_copy(update={"uri": uri}),
            }
        )


def with_driver(url: str) -> str:
    """The URL with the driver that ``thawline[postgres]`` installs: SQLAlchemy 2.0 would take psycopg2, its successor
    does not."""
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)


def without_password(url: str) -> str:
    """``postgresql://me:***@host/db``; any other text as it is."""
    url = re.sub(r"(https?://[^/@:]*):[^/\s]*@", r"\1:***@", url)
    # Of a database up to the last @: SQLAlchemy takes a slash for part of the password.
    return re.sub(r"(?<!http)(?<!https)(://[^/@:\s]*):\S*@", r"\1:***@", url)


def load_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file: YAML with the keys of :class:`SearchConfig`, any of them left out.

    Raises:
        ConfigError: if the file is missing, is not YAML or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the recipe {path}: {error}. `thawline recipes` lists those shipped.") from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The recipe {path} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"The recipe {path} must be a mapping of keys, but it is a {type(content).__name__}.")
    return content


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Turn ``["train.epochs=3", …]`` into ``{"train": {"epochs": 3}, …}``; values are YAML scalars or lists.

    Raises:
        ConfigError: if an assignment has no ``=``, an empty key or a value that is not YAML.
    """
    result: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        parts = key.strip().split(".")
        if not separator or not all(parts):
            raise ConfigError(f"--set takes key=value such as train.epochs=3, but got {assignment!r}.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        _merge(result, nested({".".join(parts): value}))
    return result


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``{"train.epochs": 3}`` to ``{"train": {"epochs": 3}}``."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        layer = value
        for part in reversed(key.split(".")):
            layer = {part: layer}
        _merge(result, layer)
    return result


def flatten(config: BaseModel, prefix: str = "") -> dict[str, str]:
    """The configuration as flat ``{"train.epochs": "3", …}``, in the order of declaration."""
    flat: dict[str, str] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)
    return flat


_WHOLE = frozenset({"space.backbone", "backbone.weights", "study.sampler_options", "study.pruner_options"})
"""Mappings that name choices: added to those of a recipe, they could not be made fewer."""


def _merge(target: dict[str, Any], layer: Mapping[str, Any], whole: Collection[str] = (), prefix: str = "") -> None:
    """Put a layer over nested mappings; those whose path is in ``whole`` are replaced."""
    for key, value in layer.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and isinstance(target.get(key), dict) and path not in whole:
            _merge(target[key], value, whole, f"{path}.")
        else:
            target[key] = dict(value) if isinstance(value, Mapping) else value


def _describe(error: ValidationError) -> str:
    """Every mistake of a configuration, a line each: the key, the rule, the value."""
    lines = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"]) or "configuration"
        if item["type"] == "extra_forbidden":
            lines.append(f"{key}: there is no such key.{_suggest(item['loc'])}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            value = "" if item["type"] in {"missing", "value_error"} else f" (got {item['input']!r})"
            lines.append(f"{key}: {message}{value}")
    return "The configuration is wrong:\n" + "\n".join(f"  {line}" for line in lines)


def _suggest(location: tuple[int | str, ...]) -> str:
    import difflib

    model: type[BaseModel] = SearchConfig
    for part in location[:-1]:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        model = annotation
    close = difflib.get_close_matches(str(location[-1]), list(model.model_fields), n=1)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known keys: {', '.join(model.model_fields)}."
