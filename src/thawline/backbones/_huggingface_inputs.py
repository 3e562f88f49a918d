"""How images and texts are prepared for HuggingFace's networks, from the files beside their weights."""

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
"""Tokens that are kept of a text unless ``max_length`` asks for more: what a block costs grows with their square, and
newer encoders allow 8,192, which few texts need."""

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
"""Whose steps are known here. Others cut patches, count colours or pad, which no :class:`Preprocessing` says."""


def trained_side(config: Any) -> int | None:
    """The side in pixels that its position embeddings are for; such as CLIP's say so of their half for images."""
    return _side(getattr(getattr(config, "vision_config", config), "image_size", None))


def text_preprocessing(name: str, max_length: int | None) -> TextPreprocessing:
    tokenizer, allowed = _tokenizer(name)
    positions = _positions(name)
    longest = min(length for length in (allowed, positions, 10**6) if length is not None)
    if max_length is None:
        return TextPreprocessing(tokenizer, min(longest, _LONGEST))
    # What the network has no positions for, it cannot take; the tokenizer's own limit is advice.
    if not 3 <= max_length <= (positions or 10**6):
        raise BackboneError(
            f"`3 <= max_length <= {positions or 10**6}` must hold for {name!r}, but got max_length={max_length}."
        )
    return TextPreprocessing(tokenizer, max_length)


@remembered
def _tokenizer(name: str) -> tuple[str, int | None]:
    """The tokenizer as JSON, without padding and truncation, and how many tokens it allows.

    Raises:
        BackboneError: if it is none of the library tokenizers.
        WeightsError: if it is not available, or knows no words.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    loaded = load(AutoTokenizer, name, is_whole=_knows_words)
    if not _knows_words(loaded):
        _, is_local = source_of(name)
        raise WeightsError(
            f"{name!r} holds no tokenizer, or one that knows no words. Its files, such as tokenizer.json or vocab.txt, "
            f"must lie beside its config.json. {'' if is_local else WAYS_OUT}".rstrip()
        )
    if not loaded.is_fast:
        raise BackboneError(
            f"The tokenizer of {name!r} must be one of the library tokenizers (a tokenizer.json), but it is a "
            f"{type(loaded).__name__}. Convert it with transformers, or choose another backbone."
        )
    tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    allowed = loaded.model_max_length
    return tokenizer.to_str(), allowed if allowed < 10**6 else None  # transformers says 10**30 where nothing is said


def _knows_words(tokenizer: Any) -> bool:
    """Whether it has any but special tokens: transformers makes one of those alone where there are no files of it."""
    return bool(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens))


@remembered
def _positions(name: str) -> int | None:
    """How many tokens a text may have for which the network has positions, None if any number."""
    config = config_of(name)
    longest = getattr(config, "max_position_embeddings", None)
    if not longest or longest < 0:
        return None
    with torch.device("meta"):
        module = networks.build({"library": "transformers", "task": "text-classification", "num_classes": 1,
                                 "config": json.loads(config.to_json_string(use_diff=False))})  # fmt: skip
    # RoBERTa and similar networks count positions from after that of padding.
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
            f"The images of {name!r} are prepared by a {kind}, whose steps Thawline does not know, and otherwise "
            "prepared its weights would mean little. Choose another backbone."
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
    """The class of a processor, whichever library does its work: ``ViTImageProcessor``."""
    return type(processor).__name__.removesuffix("Pil").removesuffix("Fast")


def _sides(processor: Any, trained: int) -> tuple[int, int]:
    """The side of the square that the network sees, and the length that the shorter side, or both, are resized to
    before."""
    named = getattr(processor, "size", None)
    asked = _side(named) or trained
    size = resize = asked
    crop_pct = getattr(processor, "crop_pct", None)
    match _class_of(processor):
        case "ConvNextImageProcessor" if crop_pct and asked < 384:  # a larger one is not cut
            resize = int(asked / crop_pct)
        case "PoolFormerImageProcessor" if crop_pct:
            size = resize = int(asked / crop_pct)
        case "LevitImageProcessor" if named and named.get("shortest_edge"):
            size = resize = int(256 / 224 * asked)
    if getattr(processor, "do_center_crop", False):
        size = _side(processor.crop_size) or size
    return size, max(resize, size)


def _squashes(processor: Any, trained: int) -> bool:
    """Whether a processor makes a square of the whole image: it does if it is told a height and a width.

    The two exceptions are ConvNeXt's, which is told a shorter side and squashes from 384 pixels on, and PoolFormer's.
    """
    size = getattr(processor, "size", None)
    match _class_of(processor):
        case "ConvNextImageProcessor":
            return (_side(size) or trained) >= 384
        case "PoolFormerImageProcessor" if getattr(processor, "crop_pct", None):
            return False
    return bool(size and not size.get("shortest_edge") and size.get("height") and size.get("width"))


def _normalisation(name: str, processor: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of values in [0, 1] that do what a processor does to values in [0, 255].

    Raises:
        BackboneError: unless it does so to three channels.
    """
    scale, offset, mean, std = 255.0, 0.0, [0.0] * 3, [1.0] * 3
    if getattr(processor, "do_rescale", True):
        scale = 255 * getattr(processor, "rescale_factor", 1 / 255)
    # MobileViT's normalises nothing, whatever its file says.
    if getattr(processor, "do_normalize", True) and _class_of(processor) != "MobileViTImageProcessor":
        mean, std = (list(map(float, values)) for values in (processor.image_mean, processor.image_std))
    if len(mean) != 3 or len(std) != 3:
        raise BackboneError(f"{name!r} must take images of three channels, but its preprocessing has {len(mean)}.")
    if _class_of(processor) == "EfficientNetImageProcessor":  # may shift by one, and divide a second time
        offset = float(getattr(processor, "rescale_offset", False) and getattr(processor, "do_rescale", True))
        if getattr(processor, "include_top", True):
            std = [value * float(again) for value, again in zip(std, processor.image_std, strict=True)]
    red, green, blue = ((value + offset) / scale for value in mean)
    return (red, green, blue), (std[0] / scale, std[1] / scale, std[2] / scale)


def _side(size: Any) -> int | None:
    """The shorter side that a processor's ``size`` or ``crop_size`` asks for."""
    if size is None or isinstance(size, int):
        return size
    if isinstance(size, list | tuple):
        return int(min(size))
    sides = [size[key] for key in ("shortest_edge", "height", "width") if size.get(key) is not None]
    return int(min(sides)) if sides else None


@remembered
def image_processor(name: str) -> Any:
    """The description of image preprocessing beside the weights, or the default for such networks."""
    from transformers import AutoImageProcessor

    return load(AutoImageProcessor, name)
