"""The ONNX file of a package: pixels from 0 to 1 in, calibrated probabilities out."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thawline.engines._base import Unavailable

__all__ = ["pixels_of", "read_graph", "require"]

_FILE = "model.onnx"


def read_graph(files: Path) -> bytes:
    """Read the file from the folder of the package's files.

    Raises:
        Unavailable: if it does not exist.
    """
    if not (files / _FILE).is_file():
        raise Unavailable(
            f"the package has no {_FILE}, which a search writes for images if 'thawline[onnx]' is installed; with "
            "`promotion.exports: [onnx]` it reports the reason if it cannot"
        )
    return (files / _FILE).read_bytes()


def require(module: str, title: str, *, extra: str) -> None:
    """Require the library of an engine.

    Raises:
        Unavailable: if it is not installed, with the command that installs it.
    """
    if importlib.util.find_spec(module) is None:
        raise Unavailable(f"{title} is not installed: pip install 'thawline[{extra}]'")


def pixels_of(prepared: Sequence[Any]) -> npt.NDArray[np.float32]:
    """Convert images, uint8 ``[S, S, 3]``, to the graph's input: ``[N, 3, S, S]`` from 0 to 1."""
    return np.stack(prepared).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
