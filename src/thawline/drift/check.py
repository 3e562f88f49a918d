"""``thawline drift``: find the images, classify them with the model, compare."""

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thawline.data import Split, image_files, scan
from thawline.drift.comparison import Answers, Floats, class_shares, compare
from thawline.drift.report import ClassShare, DriftReport, Unusual
from thawline.exceptions import ConfigError, DataError
from thawline.registry import MlflowRegistry, PackagedModel, check_kind, parse_model
from thawline.search.version_config import config_of_version
from thawline.serving.served import ServedModel
from thawline.tracking import open_store

if TYPE_CHECKING:
    from torch import nn

__all__ = ["catch_features", "check_drift"]

_FEWEST_IMAGES = 20
"""Minimum number of images: with fewer, the tests would find only large shifts."""
_LOWEST_ALPHA, _HIGHEST_ALPHA = 0.001, 0.2
_BATCH = 32
_UNUSUAL = 5
_HELD_OUT: tuple[Split, ...] = ("validation", "test")


def check_drift(
    model: str,
    folder: Path,
    *,
    tracking_uri: str | None,
    home: Path,
    reference: Path | None = None,
    alpha: float = 0.01,
    max_images: int = 2000,
    device: str = "auto",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> DriftReport:
    """Compare a folder of new images with the images that a model was trained for.

    The reference is the held-out images of the model's study (validation and test): they are from the same source as
    the training images, but not overfitted. A network is more confident on its training images, so that compared with
    them all new images would look like drift.

    The false-alarm rate is valid for independent images. Frames of one video are not independent: many frames of the
    same scene are reported as drift. Copies of a file count once.

    Args:
        model: ``NAME``, ``NAME@alias`` or ``NAME/version``.
        folder: folder of new images.
        tracking_uri: URI of the registry; by default as for a search.
        home: Thawline's home.
        reference: a folder of images to compare with instead.
        alpha: overall false-alarm rate, 0.001 to 0.2.
        max_images: maximum number of new images, and of reference images; more are subsampled, with a fixed seed. With
            very many images, a test finds differences that are too small to matter.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        on_progress: called with (files done, total).

    Raises:
        ConfigError: if ``alpha`` or ``max_images`` is out of range.
        RegistryError: if there is no such model, or it classifies texts.
        DataError: if there are too few images, or if those of the study are missing or have changed.
    """
    _check_options(alpha, max_images)
    name = parse_model(model)
    registry = MlflowRegistry(open_store(tracking_uri, home))
    check_kind(registry, name, "drift is measured between images")
    chosen = registry.with_network(name, "compared")
    version = str(chosen.version)
    files = _images_in(folder)
    compared = (
        _held_out(registry, name.name, version)
        if reference is None
        else _Reference(f"the images in {reference}", _images_in(reference))
    )
    reader = _Reader(registry.load(chosen), device)
    known, files = _drawn(compared.files, max_images), _drawn(files, max_images)
    total = len(known) + len(files)
    before = reader.read(known, compared.described, lambda done: on_progress(done, total))
    after = reader.read(files, str(folder), lambda done: on_progress(len(known) + done, total))
    found = compare(before.answers, after.answers, alpha=alpha)
    farthest = np.argsort(-found.distances)[:_UNUSUAL]
    return DriftReport(
        model=name.name,
        version=version,
        folder=str(folder),
        reference=compared.described,
        alpha=alpha,
        reference_images=len(before.paths),
        new_images=len(after.paths),
        tests=found.tests,
        classes=_changes(reader.classes, class_shares(before.answers), class_shares(after.answers)),
        unusual=tuple(Unusual(str(after.paths[i]), float(found.distances[i])) for i in farthest),
        copies=after.copies,
        bad={**before.bad, **after.bad},
        note=_note(before, compared.validation, alpha),
    )


@dataclass(frozen=True)
class _Reference:
    """The reference for new images."""

    described: str
    files: list[Path]
    validation: frozenset[Path] = frozenset()
    """The files in the study's validation split; the others are in its test split."""


@dataclass(frozen=True, eq=False)
class _Read:
    """The readable images among some files, without copies."""

    paths: list[Path]
    answers: Answers
    copies: int
    bad: dict[str, str]


class _Reader:
    """Computes the model's features and probabilities of image files, in one forward pass."""

    def __init__(self, packaged: PackagedModel, device: str) -> None:
        self._model = ServedModel(packaged, device)
        self.classes = self._model.classes
        self._features = catch_features(packaged.servable.network)

    def read(self, files: Sequence[Path], where: str, on_done: Callable[[int], None]) -> _Read:
        """Decode and classify; unreadable files are listed, copies are counted.

        Raises:
            DataError: if too few images remain.
        """
        paths: list[Path] = []
        features: list[Floats] = []
        probabilities: list[list[float]] = []
        bad: dict[str, str] = {}
        seen: set[bytes] = set()
        copies = 0
        with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode") as pool:
            for start in range(0, len(files), _BATCH):
                batch = files[start : start + _BATCH]
                pixels = []
                for path, (digest, decoded) in zip(batch, pool.map(self._decoded, batch), strict=True):
                    if isinstance(decoded, str):
                        bad[str(path)] = decoded
                    elif digest in seen:
                        copies += 1
                    else:
                        seen.add(digest)
                        paths.append(path)
                        pixels.append(decoded)
                if pixels:
                    probabilities += self._model.probabilities(pixels)
                    features.append(self._features())
                on_done(start + len(batch))
        if len(paths) < _FEWEST_IMAGES:
            raise DataError(
                f"Drift detection needs at least {_FEWEST_IMAGES} images, but got {len(paths)}: {where}"
                + (f" ({copies} copies and {len(bad)} unreadable files left out)." if copies or bad else ".")
            )
        return _Read(paths, Answers(np.concatenate(features), np.array(probabilities)), copies, bad)

    def _decoded(self, path: Path) -> tuple[bytes, Any]:
        """The content's digest and the pixels, or the reason why it cannot be read."""
        try:
            data = path.read_bytes()
            return hashlib.sha256(data).digest(), self._model.prepare(data)
        except OSError as error:
            return b"", error.strerror or type(error).__name__
        except ValueError as error:  # the package's BadImage is one
            return b"", str(error)


def catch_features(network: "nn.Module") -> Callable[[], Floats]:
    """Record the input of a network's head with hooks.

    The head is the last linear or convolutional layer that runs. That is true for every classification network of
    torchvision, so that packages need not record their head.

    Returns:
        A function that returns the features of the latest forward pass, ``[N, D]``. The input of a convolutional head
        is averaged over positions.
    """
    from torch import nn

    last: list[Any] = []

    def remember(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        last[:] = inputs[:1]

    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_pre_hook(remember)

    def features() -> Floats:
        given = last[0].flatten(2).mean(2) if last[0].ndim > 2 else last[0]
        caught: Floats = given.float().cpu().numpy()
        return caught

    return features


def _check_options(alpha: float, max_images: int) -> None:
    if not _LOWEST_ALPHA <= alpha <= _HIGHEST_ALPHA:
        raise ConfigError(
            f"The false-alarm rate alpha must be between {_LOWEST_ALPHA:g} and {_HIGHEST_ALPHA:g}, but got {alpha:g}."
        )
    if max_images < _FEWEST_IMAGES:
        raise ConfigError(f"max_images must be at least {_FEWEST_IMAGES}, but got {max_images}.")


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    if not (files := image_files(folder)):
        raise DataError(f"{folder} contains no image file.")
    return files


def _held_out(registry: MlflowRegistry, model: str, version: str) -> _Reference:
    """Validation and test images of the study that trained the version."""
    instead = "Name a folder of similar images with --reference."
    try:
        config = config_of_version(registry, model, version)
    except ConfigError as error:
        raise DataError(f"{error}\n{instead}") from None
    if config is None:
        raise DataError(f"The images that {model}/{version} was trained on are not recorded. {instead}")
    try:
        manifest = scan(config.data)
    except DataError as error:
        raise DataError(f"The images that {model}/{version} was trained on cannot be read: {error} {instead}") from None
    if registry.tags(model, version).get("thawline.data_digest") not in (None, manifest.digest):
        raise DataError(f"{config.data.path} has changed since {model}/{version} was trained on it. {instead}")
    validation, test = ([manifest.root / row.path for row in manifest.of(split)] for split in _HELD_OUT)
    described = f"the validation and test images of {config.data.path}"
    return _Reference(described, [*validation, *test], frozenset(validation))


def _note(reference: _Read, validation: frozenset[Path], alpha: float) -> str:
    """A note on a heterogeneous reference, such as test images from another source."""
    rows = np.array([path in validation for path in reference.paths])
    if min(rows.sum(), (~rows).sum()) < _FEWEST_IMAGES:
        return ""
    found = compare(reference.answers.take(rows), reference.answers.take(~rows), alpha=alpha)
    if not any(test.drift for test in found.tests):
        return ""
    return (
        "By the same tests, the validation images differ from the test images: new images that resemble only one of "
        "them may be reported as drift. Choose a reference with --reference."
    )


def _drawn(files: Sequence[Path], most: int) -> list[Path]:
    """A sample of at most ``most`` files, with a fixed seed."""
    return list(files) if len(files) <= most else random.Random(0).sample(list(files), most)  # noqa: S311


def _changes(classes: Sequence[str], reference: Floats, new: Floats) -> tuple[ClassShare, ...]:
    shares = [ClassShare(*values) for values in zip(classes, reference.tolist(), new.tolist(), strict=True)]
    return tuple(sorted(shares, key=lambda share: -abs(share.new - share.reference)))
