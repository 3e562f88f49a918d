"""Everything that must hold before the first trial: found out in the order of its cost, the cheapest first."""

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from thawline import backbones
from thawline.config import ExecutionConfig, PromotionConfig, SearchConfig
from thawline.data import Manifest, check_folder, check_url, decoded, labelled_files, mirror, printable, scan
from thawline.exceptions import ConfigError
from thawline.registry import check_exports
from thawline.search.events import Note, emit
from thawline.search.space import check_space
from thawline.search.storage import storage_url
from thawline.search.study import check_sampling
from thawline.tracking import check_trackers, check_wandb, resolve_uri
from thawline.training import runtime_for

__all__ = [
    "Prepared",
    "check_approval",
    "check_backbones",
    "check_config",
    "complete",
    "decode_images",
    "fetch_data",
    "read_data",
]


@dataclass(frozen=True)
class Prepared:
    """A search that is ready to run."""

    config: SearchConfig
    """With the names of study and model filled in."""
    manifest: Manifest
    depths: dict[str, int]
    """Number of layer groups of each backbone."""
    images: dict[str, Path]
    """File of decoded images for each backbone."""
    fingerprint: str

    @property
    def study(self) -> str:
        """Name of the study."""
        assert self.config.study.name is not None  # noqa: S101  complete() filled it in
        return self.config.study.name

    @property
    def model(self) -> str:
        """Name of the registered model."""
        assert self.config.promotion.model is not None  # noqa: S101  complete() filled it in
        return self.config.promotion.model


def check_config(config: SearchConfig, home: Path) -> None:
    """Refuse what can be known in a moment: folder, backbones, sampler, pruner, device, tracking URI.

    Raises:
        ThawlineError: naming the key or the path, the value, and what is possible.
    """
    if config.data.url is None:
        check_folder(config.data)
    else:
        check_url(config.data.url)
    for folder in config.promotion.further:
        labelled_files(folder)
    check_exports(config.promotion.exports)
    check_approval(config.promotion)
    for name in config.backbones:
        backbones.check_weights(name, config.backbone.weights)
        if config.space.freeze_depth is not None:
            check_space(config, {name: backbones.depth_of(name)})
    check_sampling(config.study)
    check_execution(config.execution)
    storage_url(config.study.storage)
    runtime_for(config.train)
    resolve_uri(config.tracking, home)
    check_trackers(config.tracking)
    check_wandb(config.tracking)


def check_execution(config: ExecutionConfig) -> None:
    """Refuse a cluster whose package is not installed.

    Raises:
        ConfigError: saying how to install it.
    """
    needed = {"ray": "prefect_ray", "dask": "prefect_dask"}.get(config.kind)
    if needed is not None and find_spec(needed) is None:
        raise ConfigError(
            f"execution.kind={config.kind} needs the package {needed}: pip install 'thawline[{config.kind}]'."
        )


def check_approval(config: PromotionConfig) -> None:
    """Refuse to wait for an answer that nobody could give.

    Raises:
        ConfigError: if approval is asked for and no Prefect server outlives this process.
    """
    if config.approve and not os.environ.get("PREFECT_API_URL"):
        raise ConfigError(
            "promotion.approve waits for an answer in Prefect's UI, and without PREFECT_API_URL there is none. Start "
            "one with `prefect server start`, set PREFECT_API_URL=http://127.0.0.1:4200/api, and try again."
        )


def fetch_data(config: SearchConfig) -> None:
    """Bring the local mirror up to date, if the data is on object storage.

    Raises:
        DataError: if it cannot be fetched.
    """
    if config.data.url is not None:
        emit(Note(str(mirror(config.data.url, config.data.path))))


def check_backbones(config: SearchConfig) -> dict[str, int]:
    """Build every backbone once: its weights are fetched, its size is tried; returns its number of layer groups.

    The number of classes does not matter, so this is done before the data is read.

    Raises:
        BackboneError: if a backbone is unknown or does not take the image size.
        WeightsError: if its weights cannot be had or do not fit.
        ConfigError: if the freeze-depth range is not one of the backbone.
    """
    depths = {}
    for name in config.backbones:
        backbone = backbones.create(
            name, num_classes=2, weights=config.backbone.weights, image_size=config.backbone.image_size
        )
        depths[name] = len(backbone.layer_groups)
    check_space(config, depths)
    return depths


def read_data(config: SearchConfig) -> Manifest:
    """Scan the folder; bad files are named in the log.

    Raises:
        DataError: if the folder cannot be trained on.
    """
    manifest = scan(config.data)
    counts = {split: len(manifest.of(split)) for split in ("train", "validation", "test")}
    emit(
        Note(
            f"{len(manifest.classes)} classes; images: {counts['train']} train, {counts['validation']} validation, "
            f"{counts['test']} test; data digest {manifest.digest[:12]}"
        )
    )
    for problem in manifest.problems:
        if problem.kind != "stray":
            emit(Note(f"{printable(problem.path)}: {problem.reason}", "warning" if problem.kind == "bad" else "info"))
    return manifest


def decode_images(config: SearchConfig, manifest: Manifest, home: Path) -> dict[str, Path]:
    """Decode and resize every image once; returns the file of each backbone (backbones of one view share one)."""
    files = {}
    for name in config.backbones:
        view = backbones.preprocessing_of(name, weights=config.backbone.weights, image_size=config.backbone.image_size)
        files[name] = decoded(
            manifest,
            resize_size=view.resize_size,
            crop_size=view.image_size,
            interpolation=view.interpolation,
            cache_dir=home / "cache" / "decoded",
            max_pixels=config.data.max_pixels,
            workers=config.data.workers,
        ).path
    return files


def complete(config: SearchConfig, manifest: Manifest) -> tuple[SearchConfig, str]:
    """Fill in the names of study and model that were left out; returns the fingerprint too.

    A study's default name ends in its fingerprint: the same command goes on with the same study, and a command with
    other settings begins one of its own.
    """
    fingerprint = config.fingerprint(manifest.digest)
    folder = _plain(manifest.name)
    model = config.promotion.model or folder
    study = config.study.name or f"{folder}-{_plain('+'.join(config.backbones))}-{fingerprint[:6]}"
    return (
        config.model_copy(
            update={
                "study": config.study.model_copy(update={"name": study}),
                "promotion": config.promotion.model_copy(update={"model": model}),
            }
        ),
        fingerprint,
    )


def _plain(text: str) -> str:
    """Letters, digits, ``.``, ``_`` and ``-`` only, beginning with a letter or a digit, at most 60."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:60] or "images"
