"""``thawline drift``: find the images, show them to the model, compare."""

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
"""With fewer the tests would find only the obvious."""
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
    """Compare a folder of new images with what a model was made for.

    The reference are the images that the model's study held out (validation and test): from the same source as the
    training images, but not overfitted. A network is more confident on images that it was trained on, so that compared
    with them any new image would look like drift.

    The false-alarm rate holds for images that are independent of each other. Frames of one video are not: the same
    scene over and over is a difference, and is reported as one. Copies of a file count once.

    Args:
        model: ``NAME``, ``NAME@alias`` or ``NAME/version``.
        folder: searched for image files.
        tracking_uri: where the registry is; by default as for a search.
        home: Thawline's home.
        reference: a folder of images to compare with instead.
        alpha: false-alarm rate of the whole, 0.001 to 0.2.
        max_images: the maximum number of images, new or reference; of more, this many are drawn, always the same. With
            very many images a test finds differences that are too small to matter.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        on_progress: called with (files done, files in all).

    Raises:
        ConfigError: if ``alpha`` or ``max_images`` is out of range.
        RegistryError: if there is no such model, or it classifies texts.
        DataError: if there are too few images, or the study's are gone or have changed.
    """
    _check_options(alpha, max_images)
    name = parse_model(model)
    registry = MlflowRegistry(open_store(tracking_uri, home))
    check_kind(registry, name, "drift is measured between pictures")
    chosen = registry.with_network(name, "shown the images")
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
    """What new images are compared with."""

    described: str
    files: list[Path]
    validation: frozenset[Path] = frozenset()
    """Those among them that are of the study's validation split; the others are of its test split."""


@dataclass(frozen=True, eq=False)
class _Read:
    """The readable, different images among some files."""

    paths: list[Path]
    answers: Answers
    copies: int
    bad: dict[str, str]


class _Reader:
    """Image files to the model's features and logits, by one forward pass."""

    def __init__(self, packaged: PackagedModel, device: str) -> None:
        self._model = ServedModel(packaged, device)
        self.classes = self._model.classes
        self._features = catch_features(packaged.servable.network)

    def read(self, files: Sequence[Path], where: str, on_done: Callable[[int], None]) -> _Read:
        """Decode and classify; a file that cannot be read is named, one that is a copy is counted.

        Raises:
            DataError: if too few are left.
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
                f"At least {_FEWEST_IMAGES} images are needed to tell drift from chance, but got {len(paths)}: {where}"
                + (f" ({copies} copies and {len(bad)} unreadable files left out)." if copies or bad else ".")
            )
        return _Read(paths, Answers(np.concatenate(features), np.array(probabilities)), copies, bad)

    def _decoded(self, path: Path) -> tuple[bytes, Any]:
        """The content's digest and the pixels, or the reason why there are none."""
        try:
            data = path.read_bytes()
            return hashlib.sha256(data).digest(), self._model.prepare(data)
        except OSError as error:
            return b"", error.strerror or type(error).__name__
        except ValueError as error:  # the package's BadImage is one
            return b"", str(error)


def catch_features(network: "nn.Module") -> Callable[[], Floats]:
    """What the head of a network is given, caught on its way: a package needs nothing for it.

    The head is the last linear or convolutional layer that runs. That holds for every classification network of
    torchvision, and nothing that is packaged has to say where its head is.

    Returns:
        A function for the features of the latest forward pass, ``[N, D]``. A convolutional head is given a map of
        places, of which they are the mean.
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
            f"The false-alarm rate alpha must be from {_LOWEST_ALPHA:g} to {_HIGHEST_ALPHA:g}, but got {alpha:g}."
        )
    if max_images < _FEWEST_IMAGES:
        raise ConfigError(f"max_images must be at least {_FEWEST_IMAGES}, but got {max_images}.")


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    if not (files := image_files(folder)):
        raise DataError(f"{folder} holds no image file.")
    return files


def _held_out(registry: MlflowRegistry, model: str, version: str) -> _Reference:
    """Validation and test images of the study that trained the version."""
    instead = "Name a folder of images like those with --reference."
    try:
        config = config_of_version(registry, model, version)
    except ConfigError as error:
        raise DataError(f"{error}\n{instead}") from None
    if config is None:
        raise DataError(f"Which images {model}/{version} was trained on is not recorded. {instead}")
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
    """A word on a reference that is not of one kind, as where the test images come from elsewhere."""
    rows = np.array([path in validation for path in reference.paths])
    if min(rows.sum(), (~rows).sum()) < _FEWEST_IMAGES:
        return ""
    found = compare(reference.answers.take(rows), reference.answers.take(~rows), alpha=alpha)
    if not any(test.drift for test in found.tests):
        return ""
    return (
        "The validation and the test images differ from each other by the same tests: new images that are like one of "
        "them alone may be reported as drift. Name what to compare with by --reference."
    )


def _drawn(files: Sequence[Path], most: int) -> list[Path]:
    """At most this many, always the same of the same files."""
    return list(files) if len(files) <= most else random.Random(0).sample(list(files), most)  # noqa: S311


def _changes(classes: Sequence[str], reference: Floats, new: Floats) -> tuple[ClassShare, ...]:
    shares = [ClassShare(*values) for values in zip(classes, reference.tolist(), new.tolist(), strict=True)]
    return tuple(sorted(shares, key=lambda share: -abs(share.new - share.reference)))
