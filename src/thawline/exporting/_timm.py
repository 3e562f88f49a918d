"""A folder for ``timm.create_model("local-dir:…", pretrained=True)``, and thereby for transformers' Auto classes."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thawline.backbones import Preprocessing
from thawline.exceptions import RegistryError
from thawline.exporting._files import write_tensors
from thawline.exporting._formats import Exported, Reader
from thawline.exporting._heads import calibrated

__all__ = ["write_timm"]


def write_timm(model: Exported, out: Path) -> Reader:
    """Write ``config.json`` and ``model.safetensors``.

    This includes torchvision networks if timm's network of the same name accepts the weights and gives the same logits.

    Raises:
        RegistryError: if timm has no such network.
    """
    import timm

    network = calibrated(model.network, model.temperature, model.images, len(model.classes))
    theirs = _as_theirs(model, network)
    write_tensors(theirs.state_dict(), out / "model.safetensors")
    arguments = {key: value for key, value in model.architecture["kwargs"].items() if key == "img_size"}
    config: dict[str, Any] = {
        "architecture": str(model.architecture["builder"]).partition(".")[0],
        "num_classes": len(model.classes),
        "num_features": theirs.num_features,
        "label_names": list(model.classes),
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {
            **_input_config(model.preprocessing),
            **{key: theirs.pretrained_cfg.get(key) for key in ("first_conv", "classifier")},
            "fixed_input_size": bool(arguments),
            "num_classes": len(model.classes),
        },
    }
    (out / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    loaded = timm.create_model(f"local-dir:{out}", pretrained=True).eval()

    def answer(images: Tensor) -> Tensor:
        probabilities: Tensor = loaded(images).softmax(1)
        return probabilities

    return answer


def _as_theirs(model: Exported, network: nn.Module) -> Any:
    """The network as timm builds it, with the same weights."""
    import timm

    architecture = model.architecture
    library = architecture.get("library", "torchvision")
    builder = str(architecture.get("builder") or architecture["config"]["model_type"])
    if library == "timm" and not architecture.get("one_head"):
        return network
    other = "Choose --format onnx, which supports any image network."
    if library != "torchvision" or not timm.is_model(builder):
        raise RegistryError(
            f"{model.name} is {_said(library, builder, architecture)}, which timm does not have. {other}"
        )
    theirs: Any = timm.create_model(builder, num_classes=len(model.classes)).eval()
    differs = RegistryError(f"{model.name} is torchvision's {builder}, which differs from timm's {builder}. {other}")
    try:
        theirs.load_state_dict(network.state_dict())
    except RuntimeError:
        raise differs from None
    with torch.inference_mode():
        if not torch.allclose(theirs(model.images), network(model.images), rtol=1e-4, atol=1e-4):
            raise differs
    return theirs


def _said(library: str, builder: str, architecture: Any) -> str:
    if library == "timm":
        return f"timm's {builder} with a single head instead of several"
    return f"{builder} of {architecture.get('package') or library}"


def _input_config(preprocessing: Preprocessing) -> dict[str, Any]:
    size, resized = preprocessing.image_size, preprocessing.resize_size
    crop = size / resized
    if math.floor(size / crop) != resized:  # timm rounds down, and the quotient may be slightly too small
        crop = size / (resized + 0.01)
    return {
        "input_size": [3, size, size],
        "interpolation": preprocessing.interpolation,
        "crop_pct": crop,
        "crop_mode": preprocessing.crop_mode,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }
