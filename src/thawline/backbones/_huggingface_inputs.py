"""The preprocessing of images and texts for Hugging Face's networks, from the files beside their weights."""

import json
from typing import Any

import torch
from torch import nn

from thawline.backbones import networks
from thawline.backbones._base import Interpolation, Preprocessing, TextPreprocessing
from thawline.backbones._huggingface_files import WAYS_OUT, config_of, load, remembered, source_of
from thawline.exceptions import BackboneError, WeightsError

__all__ = ["image_preprocessing", "image_processor", "text_preprocessing", "trained_side"]

_LONGEST = 512
"""Default limit of tokens of a text: the cost of a block grows with their square, and newer encoders allow 8,192, which
few texts need."""

_INTERPOLATIONS: dict[int, Interpolation] = {
    0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"
}  # fmt: skip

_PROCESSORS = {
    f"{kind}ImageProcessor"
    for kind in (
        *("Beit", "Bit", "CLIP", "ConvNext", "DeiT", "EfficientNet", "Levit", "MobileNetV1", "MobileNetV2"),
        *("MobileViT", "PoolFormer", "Pvt", "Segformer", "Siglip", "ViT"),
    )
}
"""The supported processors. Others cut patches, quantise colours or pad, which :class:`Preprocessing` cannot
express."""


def trained_side(config: Any) -> int | None:
    """The side in pixels of its position embeddings; for models such as CLIP, from the vision configuration."""
    return _side(getattr(getattr(config, "vision_config", config), "image_size", None))


def text_preprocessing(name: str, max_length: int | None) -> TextPreprocessing:
    tokenizer, allowed = _tokenizer(name)
    positions = _positions(name)
    longest = min(length for length in (allowed, positions, 10**6) if length is not None)
    if max_length is None:
        return TextPreprocessing(tokenizer, min(longest, _LONGEST))
    # The network's number of positions is a hard limit; the tokenizer's is advice.
    if not 3 <= max_length <= (positions or 10**6):
        raise BackboneError(
            f"`3 <= max_length <= {positions or 10**6}` must hold for {name!r}, but got max_length={max_length}."
        )
    return TextPreprocessing(tokenizer, max_length)


@remembered
def _tokenizer(name: str) -> tuple[str, int | None]:
    """The tokenizer as JSON, without padding and truncation, and its maximum number of tokens.

    Raises:
        BackboneError: if it is not one of the ``tokenizers`` library.
        WeightsError: if it is not available, or has no vocabulary.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    loaded = load(AutoTokenizer, name, is_whole=_knows_words)
    if not _knows_words(loaded):
        _, is_local = source_of(name)
        raise WeightsError(
            f"{name!r} has no tokenizer, or one without a vocabulary. Its files, such as tokenizer.json or vocab.txt, "
            f"must be beside its config.json. {'' if is_local else WAYS_OUT}".rstrip()
        )
    if not loaded.is_fast:
        raise BackboneError(
            f"The tokenizer of {name!r} must be one of the tokenizers library (a tokenizer.json), but it is a "
            f"{type(loaded).__name__}. Convert it with transformers, or choose another backbone."
        )
    tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    allowed = loaded.model_max_length
    return tokenizer.to_str(), allowed if allowed < 10**6 else None  # transformers' default is 10**30


def _knows_words(tokenizer: Any) -> bool:
    """Whether it has any regular tokens: without files, transformers creates one with special tokens only."""
    return bool(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens))


@remembered
def _positions(name: str) -> int | None:
    """Maximum number of tokens by the network's positions; ``None`` without a limit."""
    config = config_of(name)
    longest = getattr(config, "max_position_embeddings", None)
    if not longest or longest < 0:
        return None
    with torch.device("meta"):
        module = networks.build({"library": "transformers", "task": "text-classification", "num_classes": 1,
                                 "config": json.loads(config.to_json_string(use_diff=False))})  # fmt: skip
    # RoBERTa and similar networks count positions from after the padding id.
    first = max(
        (
            part.padding_idx + 1
            for path, part in module.named_modules()
            if path.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None
        ),
        default=0,
    )
    return int(longest) - first


def image_preprocessing(name: str, image_size: int | None) -> Preprocessing:
    processor = image_processor(name)
    kind = _class_of(processor)
    if kind not in _PROCESSORS:
        raise BackboneError(
            f"The image processor of {name!r}, a {kind}, is not supported, and with other preprocessing "
            "its weights would be of little use. Choose another backbone."
        )
    trained = trained_side(config_of(name)) or 224
    size, resize = _sides(processor, trained)
    if image_size is not None:
        size, resize = image_size, round(resize * image_size / size)
    mean, std = _normalisation(name, processor)
    resample = getattr(processor, "resample", None)
    return Preprocessing(
        image_size=size,
        resize_size=resize,
        mean=mean,
        std=std,
        interpolation=_INTERPOLATIONS.get(int(resample) if resample is not None else 2, "bilinear"),
        crop_mode="squash" if _squashes(processor, trained) else "center",
    )


def _class_of(processor: Any) -> str:
    """The class of a processor, independent of its implementation: ``ViTImageProcessor``."""
    return type(processor).__name__.removesuffix("Pil").removesuffix("Fast")


def _sides(processor: Any, trained: int) -> tuple[int, int]:
    """The side of the network's square input, and the length to which the shorter side, or both, are resized before."""
    named = getattr(processor, "size", None)
    asked = _side(named) or trained
    size = resize = asked
    crop_pct = getattr(processor, "crop_pct", None)
    match _class_of(processor):
        case "ConvNextImageProcessor" if crop_pct and asked < 384:  # a larger one is not cropped
            resize = int(asked / crop_pct)
        case "PoolFormerImageProcessor" if crop_pct:
            size = resize = int(asked / crop_pct)
        case "LevitImageProcessor" if named and named.get("shortest_edge"):
            size = resize = int(256 / 224 * asked)
    if getattr(processor, "do_center_crop", False):
        size = _side(processor.crop_size) or size
    return size, max(resize, size)


def _squashes(processor: Any, trained: int) -> bool:
    """Whether a processor squashes the whole image into a square: it does if it has a height and a width.

    The two exceptions are ConvNeXt's, which has a shorter side and squashes from 384 pixels on, and PoolFormer's.
    """
    size = getattr(processor, "size", None)
    match _class_of(processor):
        case "ConvNextImageProcessor":
            return (_side(size) or trained) >= 384
        case "PoolFormerImageProcessor" if getattr(processor, "crop_pct", None):
            return False
    return bool(size and not size.get("shortest_edge") and size.get("height") and size.get("width"))


def _normalisation(name: str, processor: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation for values in [0, 1] that match a processor for values in [0, 255].

    Raises:
        BackboneError: unless it has three channels.
    """
    scale, offset, mean, std = 255.0, 0.0, [0.0] * 3, [1.0] * 3
    if getattr(processor, "do_rescale", True):
        scale = 255 * getattr(processor, "rescale_factor", 1 / 255)
    # MobileViT's does not normalise, regardless of its file.
    if getattr(processor, "do_normalize", True) and _class_of(processor) != "MobileViTImageProcessor":
        mean, std = (list(map(float, values)) for values in (processor.image_mean, processor.image_std))
    if len(mean) != 3 or len(std) != 3:
        raise BackboneError(f"{name!r} must take images of three channels, but its preprocessing has {len(mean)}.")
    if _class_of(processor) == "EfficientNetImageProcessor":  # may also shift by one and divide twice
        offset = float(getattr(processor, "rescale_offset", False) and getattr(processor, "do_rescale", True))
        if getattr(processor, "include_top", True):
            std = [value * float(again) for value, again in zip(std, processor.image_std, strict=True)]
    red, green, blue = ((value + offset) / scale for value in mean)
    return (red, green, blue), (std[0] / scale, std[1] / scale, std[2] / scale)


def _side(size: Any) -> int | None:
    """The shorter side in a processor's ``size`` or ``crop_size``."""
    if size is None or isinstance(size, int):
        return size
    if isinstance(size, list | tuple):
        return int(min(size))
    sides = [size[key] for key in ("shortest_edge", "height", "width") if size.get(key) is not None]
    return int(min(sides)) if sides else None


@remembered
def image_processor(name: str) -> Any:
    """The image processor's configuration beside the weights, or the default for the model type."""
    from transformers import AutoImageProcessor

    return load(AutoImageProcessor, name)
