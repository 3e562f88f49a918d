"""A folder for ``AutoModelForImageClassification`` and ``pipeline("image-classification")``."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from thawline.backbones import Preprocessing
from thawline.exceptions import RegistryError
from thawline.exporting._files import write_tensors
from thawline.exporting._formats import Exported, Reader, check_installed
from thawline.exporting._heads import calibrated
from thawline.exporting._timm import write_timm

__all__ = ["write_transformers"]

_RESAMPLING = {"nearest": 0, "nearest-exact": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
"""Pillow's constants."""


def write_transformers(model: Exported, out: Path) -> Reader:
    """Write ``config.json``, ``model.safetensors`` and, for transformers networks, ``preprocessor_config.json``.

    A timm network is written as for timm: transformers loads such a folder with its class for timm networks.

    Raises:
        RegistryError: if neither library has the network, or transformers cannot reproduce its preprocessing.
        ConfigError: if it is a timm network and timm is not installed.
    """
    from transformers import AutoModelForImageClassification

    if model.architecture.get("library") == "transformers":
        _write_own(model, out)
    else:
        check_installed("timm")
        write_timm(model, out)
    loaded: Any = AutoModelForImageClassification.from_pretrained(str(out)).eval()

    def answer(images: Tensor) -> Tensor:
        probabilities: Tensor = loaded(pixel_values=images).logits.softmax(1)
        return probabilities

    return answer


def _write_own(model: Exported, out: Path) -> None:
    arguments = model.architecture.get("kwargs", {})
    if unwritten := [name for name in ("interpolate_positions", "is_bgr") if arguments.get(name)]:
        raise RegistryError(
            f"{model.name} was trained with {' and '.join(unwritten)}, which transformers does not apply when loading. "
            "Choose --format onnx."
        )
    network: Any = calibrated(model.network, model.temperature, model.images, len(model.classes)).network
    config = network.config
    config.id2label = dict(enumerate(model.classes))
    config.label2id = {name: number for number, name in enumerate(model.classes)}
    config.architectures = [type(network).__name__]
    config.save_pretrained(str(out))
    write_tensors(network.state_dict(), out / "model.safetensors")
    (out / "preprocessor_config.json").write_text(json.dumps(_processor(model.preprocessing), indent=2))


def _processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """The same steps for CLIP's processor: resize, centre crop, scale to [0, 1], normalise."""
    side, resized = preprocessing.image_size, preprocessing.resize_size
    squashed = preprocessing.crop_mode == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": resized, "width": resized} if squashed else {"shortest_edge": resized},
        "resample": _RESAMPLING[preprocessing.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
