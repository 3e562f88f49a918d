"""All checks and preparations before the first trial, cheapest first."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from thawline import backbones
from thawline.backbones import Preprocessing, TextPreprocessing
from thawline.config import DataConfig, ExecutionConfig, ResolvedConfig, SearchConfig
from thawline.data import (
    DataKind,
    Manifest,
    check_data,
    check_url,
    data_kind,
    decoded,
    labelled_files,
    labelled_texts,
    mirror,
    printable,
    scan,
    tokenized,
)
from thawline.exceptions import ConfigError
from thawline.freezing import has_batch_norms
from thawline.registry import check_exports
from thawline.search.events import Note, Phase, counting, emit
from thawline.search.sampling import check_sampling
from thawline.search.slots import check_devices
from thawline.search.space import check_space, depth_shares, with_backbones
from thawline.search.storage import storage_url
from thawline.tracking import check_trackers, check_wandb, resolve_uri
from thawline.training import check_augmentation, depths_without_places, runtime_for

__all__ = [
    "DescribedBackbone",
    "Prepared",
    "already_checked",
    "check_backbones",
    "check_config",
    "complete",
    "describe_backbones",
    "fetch_data",
    "image_preprocessing",
    "labelled",
    "plain_name",
    "prepare_inputs",
    "preprocessing_for",
    "read_data",
]


_NAMED = 10
"""Maximum number of problems per kind that are logged; unreadable files are all logged."""
_checked: ContextVar[SearchConfig | None] = ContextVar("checked", default=None)


@dataclass(frozen=True)
class DescribedBackbone:
    """An untrained network."""

    costs: tuple[backbones.DepthCost, ...]
    """Cost of each freeze depth."""
    summary: str
    """A table of its layers."""


@dataclass(frozen=True)
class Prepared:
    """A search that is ready to run."""

    config: ResolvedConfig
    """The configuration, restricted to the backbones that are tried."""
    recipe: ResolvedConfig
    """The configuration with all backbones, which is recorded and fingerprinted."""
    manifest: Manifest
    depths: dict[str, int]
    """Number of layer groups of each backbone."""
    inputs: dict[str, Path]
    """For each backbone, the file of decoded images, of the list of images that are not kept decoded, or of tokenized
    texts."""
    fingerprint: str
    described: dict[str, DescribedBackbone] = field(default_factory=dict)
    """Each backbone that is tried; empty until they are known, or if they cannot be described."""

    @property
    def study(self) -> str:
        """Name of the study."""
        return self.config.study.name

    @property
    def model(self) -> str:
        """Name of the registered model."""
        return self.config.promotion.model

    def with_backbones(self, names: Iterable[str]) -> "Prepared":
        """The same, restricted to these backbones, in this order."""
        return replace(self, config=with_backbones(self.config, names))


@contextmanager
def already_checked(config: SearchConfig) -> Iterator[None]:
    """Within the block, :func:`check_config` skips this configuration.

    For callers of a flow that have already checked its configuration: a check reads a whole table.
    """
    token = _checked.set(config)
    try:
        yield
    finally:
        _checked.reset(token)


def check_config(config: SearchConfig, home: Path) -> None:
    """Check everything that can be checked at once: data, backbones, sampler, pruner, device, tracking URI.

    Raises:
        ThawlineError: with the key or path, the value, and the valid values.
    """
    if config == _checked.get():
        return
    if config.data.url is None:
        check_data(config.data)
        check_kind(config, data_kind(config.data))
    else:
        check_url(config.data.url)
    for path in config.promotion.further:
        labelled(path, config.data)
    for name in config.backbones:
        backbones.check_weights(name, config.backbone.weights_of(name))
        if config.space.freeze_depth is not None:
            check_space(config, {name: backbones.depth_of(name)})
    check_sampling(config.study)
    check_execution(config.execution)
    storage_url(config.study.storage)
    runtime_for(config.train)
    check_devices(config)
    resolve_uri(config.tracking, home)
    check_trackers(config.tracking)
    check_wandb(config.tracking)


def labelled(path: Path, columns: DataConfig) -> tuple[Sequence[Path] | Sequence[str], Sequence[str]]:
    """Image files of a folder, or texts of a table with these columns, and the class of each.

    Raises:
        DataError: if there are none.
    """
    kind = data_kind(columns.model_copy(update={"path": path}))
    return labelled_texts(path, columns) if kind == "texts" else labelled_files(path, columns)


def check_kind(config: SearchConfig, kind: DataKind) -> None:
    """Refuse settings that do not fit the kind of data: networks, augmentation, exports.

    Raises:
        ConfigError: with the settings that do fit.
    """
    for name in config.backbones:
        takes = backbones.kind_of(name)
        if takes != kind:
            instead = (
                "Give a Hugging Face text encoder: --backbone hf:FOLDER_OR_ID"
                if kind == "texts"
                else "`thawline backbones` lists those that do"
            )
            raise ConfigError(f"{name} takes {takes}, but the data are {kind}. {instead}.")
    _check_options_of_other_kind(config, kind)
    check_augmentation(config, kind)
    check_exports(config.promotion.exports, kind)


def _check_options_of_other_kind(config: SearchConfig, kind: DataKind) -> None:
    """Refuse settings that apply to the other kind of data only: they would have no effect."""
    of_texts = {"data.text_column": config.data.text_column, "backbone.max_length": config.backbone.max_length}
    of_images: dict[str, object] = {"backbone.image_size": config.backbone.image_size}
    keys_of_images = ("image_column", "image_folder", "class_level", "class_pattern")
    of_images |= {f"data.{key}": getattr(config.data, key) for key in keys_of_images}
    of_images["train.compile"] = config.train.compile or None  # texts are padded to many lengths
    of_images["data.cache"] = None if config.data.cache == "auto" else config.data.cache
    other, given = ("texts", of_texts) if kind == "images" else ("images", of_images)
    wrong = [f"{key}={value}" for key, value in given.items() if value is not None]
    if wrong:
        keys = ", ".join(wrong)
        raise ConfigError(f"The data are {kind}, but these settings are for {other}: {keys}. Leave them out.")


def check_execution(config: ExecutionConfig) -> None:
    """Refuse a cluster whose package is not installed.

    Raises:
        ConfigError: with the command to install it.
    """
    needed = {"ray": "prefect_ray", "dask": "prefect_dask"}.get(config.kind)
    if needed is not None and find_spec(needed) is None:
        raise ConfigError(
            f"execution.kind={config.kind} needs the package {needed}: pip install 'thawline[{config.kind}]'."
        )


def fetch_data(config: SearchConfig) -> None:
    """Update the local mirror, if the data is on object storage.

    Raises:
        DataError: if the data cannot be downloaded.
    """
    if config.data.url is not None:
        emit(Note(str(mirror(config.data.url, config.data.path, counting(f"fetching {config.data.url}")))))


def check_backbones(config: SearchConfig) -> dict[str, int]:
    """Build every backbone once, to download its weights and check its image size; returns its number of layer groups.

    The number of classes does not matter, so this is done before the data is read.

    Raises:
        BackboneError: if a backbone is unknown or does not take the image size.
        WeightsError: if its weights are not available, or do not match the architecture.
        ConfigError: if the backbone does not have the freeze-depth range.
    """
    depths, without_places, with_batch_norms = {}, {}, False
    for name in config.backbones:
        emit(Phase(f"loading {name}"))
        backbone = backbones.create(
            name,
            num_classes=2,
            weights=config.backbone.weights_of(name),
            image_size=config.backbone.image_size,
            max_length=config.backbone.max_length,
        )
        depths[name] = len(backbone.layer_groups)
        without_places[name] = depths_without_places(backbone) if config.train.cutmix else []
        with_batch_norms = with_batch_norms or has_batch_norms(backbone)
    check_space(config, depths)
    if config.space.opened("batch_norm") is not None and not with_batch_norms:
        raise ConfigError(
            f"space.batch_norm: there is nothing to choose, because {', '.join(config.backbones)} "
            f"{'has' if len(config.backbones) == 1 else 'have'} no batch-norms. Leave it out."
        )
    for name, found in without_places.items():
        in_use = depth_shares(config, depths, name)
        if shown := ", ".join(str(depth) for depth in found if depth in in_use):
            why = "the outputs of its layer groups there have no height and width"
            emit(Note(f"{name}: at freeze depth {shown} cutmix falls back to mixup: {why}"))
    random = [name for name in config.backbones if config.backbone.is_random(name)]
    if random and config.train.batch_norm != "train_all":
        note = "batch-norms are trained with the rest (train_all): random weights have no statistics to keep"
        emit(Note(f"{', '.join(random)}: {note}"))
    return depths


def describe_backbones(config: SearchConfig, classes: int) -> dict[str, DescribedBackbone]:
    """The cost of each backbone at every freeze depth, and its summary; builds the networks with random weights."""
    described = {}
    for name in config.backbones:
        built = backbones.create(
            name,
            num_classes=classes,
            weights="none",
            image_size=config.backbone.image_size,
            max_length=config.backbone.max_length,
        )
        costs = backbones.depth_costs(built, config.train.batch_size)
        summary = backbones.summary_text(built, 0, config.train.batch_size, costs)
        described[name] = DescribedBackbone(costs, summary)
    return described


def read_data(config: SearchConfig) -> Manifest:
    """Scan the data; unreadable files are logged.

    Raises:
        DataError: if the data cannot be trained on.
    """
    noun = "texts" if config.data.url is None and data_kind(config.data) == "texts" else "images"
    manifest = scan(config.data, on_progress=counting(f"reading {noun}"))
    check_kind(config, manifest.kind)  # for object storage, unknown before it was mirrored
    counts = {split: len(manifest.of(split)) for split in ("train", "validation", "test")}
    emit(
        Note(
            f"{len(manifest.classes)} classes; {manifest.kind}: {counts['train']} train, "
            f"{counts['validation']} validation, {counts['test']} test; data digest {manifest.digest[:12]}"
        )
    )
    named = Counter[str]()
    for problem in manifest.problems:
        named[problem.kind] += 1
        if problem.kind == "bad":
            emit(Note(f"{printable(problem.path)}: {problem.reason}", "warning"))
        elif problem.kind != "stray" and named[problem.kind] <= _NAMED:
            emit(Note(f"{printable(problem.path)}: {problem.reason}"))
    for kind, count in named.items():
        if kind not in {"bad", "stray"} and count > _NAMED:
            rest = f"and {count - _NAMED} more problems of kind {kind}"
            emit(Note(f"{rest}: `thawline check {config.data.path} --json` lists them"))
    return manifest


def prepare_inputs(config: SearchConfig, manifest: Manifest, home: Path) -> dict[str, Path]:
    """Decode and resize every image, or tokenize every text, once; or list the images that are not kept decoded.

    Returns:
        The file of each backbone; backbones of one view, or of one tokenizer, share one.
    """
    prepare = _tokenize if manifest.kind == "texts" else _decode
    return {name: prepare(config, name, manifest, home) for name in config.backbones}


def _decode(config: SearchConfig, backbone: str, manifest: Manifest, home: Path) -> Path:
    view = preprocessing_for(config, backbone)
    assert isinstance(view, Preprocessing)  # noqa: S101  check_config refused text networks
    images = decoded(
        manifest,
        resize_size=view.resize_size,
        crop_size=view.image_size,
        interpolation=view.interpolation,
        crop_mode=view.crop_mode,
        cache_dir=home / "cache" / "decoded",
        cache=config.data.cache,
        max_pixels=config.data.max_pixels,
        workers=config.data.workers,
        on_progress=counting(f"resizing images to {view.image_size} pixels"),
    )
    if not images.are_kept:
        size, why = images.images.nbytes / 1e9, "data.cache=off"
        if config.data.cache == "auto":
            why = f"decoded, they would take {size:.1f} GB, more than half of the free space in {home}"
        emit(Note(f"images are decoded on every read instead of once: {why}"))
    return images.path


def _tokenize(config: SearchConfig, backbone: str, manifest: Manifest, home: Path) -> Path:
    wanted = preprocessing_for(config, backbone)
    assert isinstance(wanted, TextPreprocessing)  # noqa: S101  check_config refused networks for images
    texts = tokenized(
        manifest,
        tokenizer=wanted.tokenizer,
        max_length=wanted.max_length,
        cache_dir=home / "cache" / "tokens",
        on_progress=counting("tokenizing texts"),
    )
    if texts.cut:
        emit(Note(f"{texts.cut} texts are longer than {wanted.max_length} tokens and are truncated"))
    return texts.path


def preprocessing_for(config: SearchConfig, backbone: str) -> Preprocessing | TextPreprocessing:
    """The preparation of a study's data for one of its backbones."""
    wanted = config.backbone
    return backbones.preprocessing_of(
        backbone,
        weights=wanted.weights_of(backbone),
        image_size=wanted.image_size,
        max_length=wanted.max_length,
    )


def image_preprocessing(config: SearchConfig, backbone: str) -> Preprocessing | None:
    """The preprocessing of images; ``None`` for texts, whose tokens need none."""
    wanted = preprocessing_for(config, backbone)
    return wanted if isinstance(wanted, Preprocessing) else None


def complete(config: SearchConfig, manifest: Manifest) -> tuple[ResolvedConfig, str]:
    """Fill in missing names of study and model; also returns the fingerprint.

    A study's default name ends in its fingerprint: the same command resumes the same study, and a command with
    different settings starts a new one.
    """
    fingerprint = config.fingerprint(manifest.digest)
    folder = plain_name(manifest.name)
    model = config.promotion.model or folder
    networks = plain_name("+".join(map(backbones.short_name, config.backbones)))
    study = config.study.name or f"{folder}-{networks}-{fingerprint[:6]}"
    return ResolvedConfig.of(config, study=study, model=model), fingerprint


def plain_name(text: str) -> str:
    """Letters, digits, ``.``, ``_`` and ``-`` only, beginning with a letter or a digit, at most 60.

    Accents are removed. A name in another script gets a digest at its end; otherwise all such names would be the same.
    """
    plain = "".join(each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")[:60] or "images"
    if not any(each.isalnum() and not each.isascii() for each in plain):
        return name
    return f"{name[:53]}-{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:6]}"
