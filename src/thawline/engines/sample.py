"""A few prepared validation images in a package, with the trained network's outputs.

On the machine where it will serve, every engine is compared with the trained network on these images.
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
    """Inputs of the head, ``[N, F]``, if the package has reference examples."""


def write_sample(
    file: Path,
    inputs: Sequence[npt.NDArray[np.uint8]],
    probabilities: Sequence[Sequence[float]],
    features: npt.NDArray[np.float32] | None = None,
) -> None:
    """Write prepared images, ``[S, S, 3]``, at least one, and the network's outputs, as safetensors."""
    from safetensors.numpy import save

    answers = np.array(probabilities, dtype=np.float64)
    tensors: dict[str, npt.NDArray[Any]] = {"inputs": np.stack(inputs), "probabilities": answers}
    file.write_bytes(save(tensors if features is None else tensors | {"features": features}))


def read_sample(file: Path) -> Sample | None:
    """Read the output of :func:`write_sample`; ``None`` if there is no such file.

    Raises:
        ValueError: if its contents are invalid.
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
        raise ValueError(f"{file.name} must contain images and a row of probabilities for each")
    return sample
