"""``thawline explain``: from image files and a registered model to a folder of explanations."""

import difflib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thawline.config import TrainConfig
from thawline.data import given_files, make_empty_folder, printable, write_atomically
from thawline.exceptions import ConfigError
from thawline.explain._attribution import Explainer, Method
from thawline.explain._drawing import sheet
from thawline.registry import MlflowRegistry, check_kind, parse_model
from thawline.serving.served import ServedModel
from thawline.tracking import open_store
from thawline.training import runtime_for

__all__ = ["explain_files"]

_BATCH = 16
_NAME_BYTES = 100
"""Maximum length of the stem and of the class in a file name, which may have 255 bytes in total."""
_METHODS = {"grad-cam": "Grad-CAM", "integrated-gradients": "integrated gradients", "occlusion": "occlusion"}


def explain_files(
    model: str,
    paths: Sequence[Path],
    out: Path,
    *,
    tracking_uri: str | None,
    home: Path,
    class_name: str | None = None,
    method: Method = "auto",
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Draw the evidence for a class in each image, as ``<stem>-<class>.png``, and list all in ``explanations.json``.

    Args:
        model: ``NAME``, ``NAME@alias`` or ``NAME/version``.
        paths: image files or folders of images.
        out: a new or empty folder: nothing is overwritten.
        tracking_uri: URI of the registry; by default as for a search.
        home: Thawline's home.
        class_name: the class to explain; by default the predicted class of each image.
        method: see :class:`Explainer`.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Returns:
        A mapping for each file, as in ``explanations.json``: ``path``, and ``model`` (with its version), ``predicted``,
        ``probability`` of that class, ``target`` (the explained class), ``target_probability``, ``method`` and ``file``
        (in ``out``); or ``error``, the reason why it cannot be read.

    Raises:
        RegistryError: if the model or alias is missing, or it classifies texts.
        DataError: if a path does not exist or contains no image, or ``out`` is not empty or cannot be created.
        ConfigError: if the model has no such class, the method does not fit it, or the device cannot be used.
    """
    name = parse_model(model)
    registry = MlflowRegistry(open_store(tracking_uri, home))
    check_kind(registry, name, "explanations are drawn on images")
    chosen = registry.with_network(name, "explained")
    files = [file for path in paths for file in given_files(path)]
    make_empty_folder(out)
    runtime_for(TrainConfig(device=device))  # raises a readable error if the device cannot be used
    packaged = registry.load(chosen)
    served = ServedModel(packaged, device)
    target = None if class_name is None else _index_of(class_name, served.classes, served.name)
    drawer = _Drawer(served, packaged.servable, target, method, out)
    rows = [row for start in range(0, len(files), _BATCH) for row in drawer.rows(files[start : start + _BATCH])]
    write_atomically(out / "explanations.json", json.dumps(rows, indent=2).encode())
    return rows


class _Drawer:
    """Explains batches of files, and writes an image for each."""

    def __init__(self, served: ServedModel, servable: Any, target: int | None, method: Method, out: Path) -> None:
        self._served, self._servable, self._target, self._out = served, servable, target, out
        size = servable.settings["preprocessing"]["image_size"]
        self._explainer = Explainer(servable.network, size, method)
        self._taken: set[str] = set()

    def rows(self, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
        """A row for each file; see :func:`explain_files`."""
        decoded = [self._pixels(file) for file in files]
        readable = [pixels for pixels in decoded if not isinstance(pixels, str)]
        answers = iter(self._explain(np.stack(readable)) if readable else ())
        for file, pixels in zip(files, decoded, strict=True):
            if isinstance(pixels, str):
                yield {"path": str(file), "error": pixels}
            else:
                yield self._row(file, pixels, *next(answers))

    def _pixels(self, file: Path) -> np.ndarray | str:
        try:
            pixels: np.ndarray = self._served.prepare(file.read_bytes())
        except OSError as error:
            return error.strerror or type(error).__name__
        except ValueError as error:
            return str(error)
        return pixels

    def _explain(self, pixels: np.ndarray) -> Iterator[tuple[list[float], int, np.ndarray]]:
        """Probabilities ``[classes]``, the explained class and its heat map ``[S, S]``, for each image."""
        probabilities = np.array(self._served.probabilities(list(pixels)))
        targets = probabilities.argmax(1) if self._target is None else np.full(len(pixels), self._target)
        heatmaps = self._explainer(self._servable.inputs.batch(list(pixels)), targets)
        return zip(probabilities.tolist(), targets.tolist(), heatmaps, strict=True)

    def _row(
        self, file: Path, pixels: np.ndarray, probabilities: list[float], target: int, heatmap: np.ndarray
    ) -> dict[str, Any]:
        classes, model = self._served.classes, f"{self._served.name}/{self._served.version}"
        best, method = int(np.argmax(probabilities)), self._explainer.method
        name = self._name(file.stem, classes[target])
        what = "evidence for" if heatmap.any() else "no evidence in the image for"
        lines = (
            f"predicted: {classes[best]}, {probabilities[best]:.3f}, by {model}",
            f"right: {what} {classes[target]}, {probabilities[target]:.3f}, by {_METHODS[method]}",
            file.name,
        )
        write_atomically(self._out / name, sheet(pixels, heatmap, [printable(line) for line in lines]))
        return {
            "path": str(file),
            "model": model,
            "predicted": classes[best],
            "probability": probabilities[best],
            "target": classes[target],
            "target_probability": probabilities[target],
            "method": method,
            "file": name,
        }

    def _name(self, stem: str, class_name: str) -> str:
        """An unused file name, also on case-insensitive file systems."""
        base = f"{_cut(stem)}-{_cut(class_name)}"
        name, number = f"{base}.png", 1
        while name.casefold() in self._taken:
            number += 1
            name = f"{base}-{number}.png"
        self._taken.add(name.casefold())
        return name


def _cut(text: str) -> str:
    return os.fsencode(text)[:_NAME_BYTES].decode("utf-8", "ignore").replace("/", "-")


def _index_of(class_name: str, classes: Sequence[str], model: str) -> int:
    if class_name in classes:
        return classes.index(class_name)
    close = difflib.get_close_matches(class_name, classes, n=1)
    suggestion = f" Did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"{model} has no class {class_name!r}.{suggestion} Its classes: {', '.join(classes)}.")
