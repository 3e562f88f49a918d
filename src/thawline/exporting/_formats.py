"""The formats, their packages, and the exported model."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from thawline.backbones import Preprocessing
from thawline.exceptions import ConfigError

__all__ = ["PACKAGES", "Exported", "Format", "Reader", "check_installed"]

Format = Literal["timm", "transformers", "onnx", "openvino"]

PACKAGES: dict[Format, tuple[tuple[str, ...], str]] = {
    "timm": (("timm",), "timm"),
    "transformers": (("transformers",), "huggingface"),
    "onnx": (("onnx", "onnxscript", "onnxruntime"), "onnx"),
    "openvino": (("openvino", "onnx", "onnxscript"), "openvino"),
}
"""Packages required for a format, and the extra that installs them."""

Reader = Callable[[Tensor], Tensor]
"""The export, read back: normalised images (for ONNX and OpenVINO, pixels from 0 to 1) ``[N, 3, S, S]`` to
probabilities ``[N, num_classes]``."""


@dataclass(frozen=True)
class Exported:
    """An image model, as needed by the formats."""

    name: str
    """Name with version."""
    network: nn.Module
    """On the CPU, in evaluation mode; normalised images to logits."""
    architecture: Mapping[str, Any]
    """See :attr:`thawline.backbones.Backbone.architecture`."""
    classes: Sequence[str]
    preprocessing: Preprocessing
    temperature: float
    """Divisor of the logits."""
    metadata: Mapping[str, str]
    """Metadata for formats with one graph."""
    pixels: Tensor
    """Images for comparison, from 0 to 1, float ``[N, 3, S, S]``, ``N`` at least 2."""

    @property
    def images(self) -> Tensor:
        """The pixels, normalised for the network."""
        from torch import tensor

        mean, std = (tensor(each).view(1, 3, 1, 1) for each in (self.preprocessing.mean, self.preprocessing.std))
        return (self.pixels - mean) / std


def check_installed(wanted: Format) -> None:
    """Check quickly whether the packages of a format are installed.

    Raises:
        ConfigError: if not, with the command that installs them.
    """
    packages, extra = PACKAGES[wanted]
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"--format {wanted} needs {', '.join(missing)}: pip install 'thawline[{extra}]'.")
