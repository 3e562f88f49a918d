"""A few validation images in a package, as the network is shown them, with what the trained network says of each.

Every engine is compared on them with the network that was trained, on the machine where it is to serve.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["SAMPLE_FILE", "Sample", "read_sample", "write_sample"]

SAMPLE_FILE = "sample.safetensors"


@dataclass(frozen=True)
class Sample:
    """Prepared images and the trained network's answers."""

    inputs: npt.NDArray[np.uint8]
    """``[N, S, S, 3]``."""
    probabilities: npt.NDArray[np.float64]
    """``[N, num_classes]``, calibrated."""
    features: npt.NDArray[np.float32] | None = None
    """What the head was given, ``[N, F]``, where the package compares it with that of known examples."""


def write_sample(
    file: Path,
    inputs: Sequence[npt.NDArray[np.uint8]],
    probabilities: Sequence[Sequence[float]],
    features: npt.NDArray[np.float32] | None = None,
) -> None:
    """Keep at least one prepared image, ``[S, S, 3]``, and what the network gives of each, as safetensors."""
    from safetensors.numpy import save

    answers = np.array(probabilities, dtype=np.float64)
    tensors: dict[str, npt.NDArray[Any]] = {"inputs": np.stack(inputs), "probabilities": answers}
    file.write_bytes(save(tensors if features is None else tensors | {"features": features}))


def read_sample(file: Path) -> Sample | None:
    """What :func:`write_sample` wrote; ``None`` if there is no such file.

    Raises:
        ValueError: if it holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if not file.is_file():
        return None
    try:
        tensors = load(file.read_bytes())
        sample = Sample(tensors["inputs"], tensors["probabilities"], tensors.get("features"))
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{file.name} cannot be read: {error}") from None
    are_images = sample.inputs.dtype == np.uint8 and sample.inputs.ndim == 4
    if not are_images or sample.probabilities.ndim != 2 or not 0 < len(sample.inputs) == len(sample.probabilities):
        raise ValueError(f"{file.name} does not hold images and a row of probabilities for each")
    return sample
