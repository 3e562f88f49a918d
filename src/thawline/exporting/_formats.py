"""The formats, what each needs, and what is exported."""

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
"""What must be installed for a format, and the extra that brings it."""

Reader = Callable[[Tensor], Tensor]
"""What was written, read back: normalised images (of ONNX and OpenVINO pixels from 0 to 1) ``[N, 3, S, S]`` to
probabilities ``[N, num_classes]``."""


@dataclass(frozen=True)
class Exported:
    """A model of images, as the formats need it."""

    name: str
    """With its version."""
    network: nn.Module
    """On the CPU, in evaluation mode; normalised images to logits."""
    architecture: Mapping[str, Any]
    """See :attr:`thawline.backbones.Backbone.architecture`."""
    classes: Sequence[str]
    preprocessing: Preprocessing
    temperature: float
    """That the logits are divided by."""
    metadata: Mapping[str, str]
    """What a file of one graph says of itself."""
    pixels: Tensor
    """From 0 to 1, float ``[N, 3, S, S]``, ``N`` at least 2: to compare on."""

    @property
    def images(self) -> Tensor:
        """The pixels as the network takes them."""
        from torch import tensor

        mean, std = (tensor(each).view(1, 3, 1, 1) for each in (self.preprocessing.mean, self.preprocessing.std))
        return (self.pixels - mean) / std


def check_installed(wanted: Format) -> None:
    """Look for the packages of a format in a moment.

    Raises:
        ConfigError: with the command that installs them.
    """
    packages, extra = PACKAGES[wanted]
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"--format {wanted} needs {', '.join(missing)}: pip install 'thawline[{extra}]'.")
