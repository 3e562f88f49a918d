"""Build networks from plain JSON. Must not import Thawline: packaged models, which work without it, contain a copy."""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "POOLINGS",
    "ImageClassifier",
    "OneHead",
    "TextClassifier",
    "build",
    "compiler_on_demand",
    "transformers_config",
    "without_pooler",
]

POOLINGS = ("mean", "cls", "max")
"""Poolings of a text's token features, named as in sentence-transformers."""


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """Build the network of an architecture, with random weights from torch's generator, in training mode.

    Args:
        architecture: one of

            * ``{"library": "torchvision", "builder": "resnet18", "kwargs": {"num_classes": 2, …}}``, without the
              library in packages of Thawline's first versions;
            * ``{"library": "timm", "builder": "resnet18", "kwargs": {"num_classes": 2, …}}``, and with ``"one_head":
              True`` a :class:`OneHead`;
            * ``{"library": "transformers", "task": "text-classification", "config": {…}, "num_classes": 2}``, with the
              content of a model's ``config.json``, and ``"pooling"`` one of :data:`POOLINGS`; by default, as in
              packages of earlier versions, the mean;
            * the same with ``"task": "image-classification"`` and the other arguments of :class:`ImageClassifier` in
              ``"kwargs"``, without ``"pooling"``;
            * ``{"library": "entry-point", "package": "toy-backbones", "object": "toy:LIBRARY", "builder": "small",
              "kwargs": {"num_classes": 2, "image_size": 64}}`` for a package that must be installed.

    Returns:
        A module from images ``[N, 3, H, W]``, or from tokens ``[N, T]`` (see :class:`TextClassifier`), to logits
        ``[N, num_classes]``.

    Raises:
        ValueError: if the library or the task is not one of these.
        ImportError: if the library is not installed.
    """
    library = architecture.get("library", "torchvision")
    if library not in _BUILDERS:
        raise ValueError(f"`library` must be one of {', '.join(_BUILDERS)}, but got {library!r}.")
    return _BUILDERS[library](architecture)


class OneHead(nn.Module):
    """A network of timm whose logits are the sum of several layers' outputs, with a single linear head instead.

    Such layers use separate tokens (DeiT's distillation token), several scales (CrossViT, EfficientViM) or every
    position of the image (VOLO). Without them, timm's networks return all features that these layers use, averaged or
    concatenated, which are the input of this class's head.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        """Wrap a network of ``timm.create_model`` with ``num_classes=0``."""
        super().__init__()
        for name, parameter in list(network.named_parameters(recurse=False)):
            if not parameter.requires_grad:  # weights of the sum, which timm freezes without heads
                delattr(network, name)
        self.network = network
        self.head = nn.Linear(network.head_hidden_size, num_classes)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[N, 3, H, W]`` to logits ``[N, num_classes]``."""
        logits: Tensor = self.head(self.network(images))
        return logits


class TextClassifier(nn.Module):
    """A text encoder with pooling of its tokens and a linear head.

    The mean needs no training. The first token's features (``cls``), which BERT's own classifier uses, are of little
    use unless the encoder was trained with that pooling, like BGE and Snowflake's Arctic.
    """

    def __init__(
        self, encoder: nn.Module, hidden_size: int, num_classes: int, *, padding_id: int = 0, pooling: str = "mean"
    ) -> None:
        """Wrap an encoder that follows Hugging Face's conventions.

        Args:
            encoder: the text encoder.
            hidden_size: number of its output features.
            num_classes: number of classes of the head.
            padding_id: the encoder's padding token.
            pooling: one of :data:`POOLINGS`.

        Raises:
            ValueError: if the pooling is not one of these.
        """
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"`pooling` must be one of {', '.join(POOLINGS)}, but got {pooling!r}.")
        self.pooling = pooling
        self.encoder = encoder
        self.head = nn.Linear(hidden_size, num_classes)
        self.padding_id = padding_id

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens, int64 ``[N, T]`` padded with -1, to logits ``[N, num_classes]``."""
        is_token = tokens >= 0
        ids = torch.where(is_token, tokens, self.padding_id)
        hidden = self.encoder(input_ids=ids, attention_mask=is_token.long()).last_hidden_state
        logits: Tensor = self.head(self._pooled(hidden.float(), is_token.unsqueeze(2)))
        return logits

    def _pooled(self, hidden: Tensor, is_token: Tensor) -> Tensor:
        """Pool token features ``[N, T, H]`` to text features ``[N, H]``, in single precision even under autocast.

        Otherwise a sum over hundreds of tokens would lose precision.
        """
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "max":
            return hidden.masked_fill(~is_token, -torch.inf).amax(1)
        weights = is_token.float()
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


class ImageClassifier(nn.Module):
    """A Hugging Face image classifier that maps a tensor to a tensor."""

    def __init__(self, network: nn.Module, *, interpolate_positions: bool = False, is_bgr: bool = False) -> None:
        """Wrap a network of ``AutoModelForImageClassification``.

        Args:
            network: the classifier.
            interpolate_positions: resize position embeddings if the images' size differs from that of training.
            is_bgr: whether it was trained on images with channels blue, green, red.
        """
        super().__init__()
        self.network = network
        self.is_bgr = is_bgr
        self._arguments = {"interpolate_pos_encoding": True} if interpolate_positions else {}

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[N, 3, H, W]`` (red, green, blue) to logits ``[N, num_classes]``."""
        pixels = images.flip(1) if self.is_bgr else images
        logits: Tensor = self.network(pixel_values=pixels, **self._arguments).logits
        return logits


def transformers_config(architecture: Mapping[str, Any]) -> Any:
    """The configuration of a Hugging Face network, for single precision and one logit per class."""
    from transformers import AutoConfig

    settings = dict(architecture["config"])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    config.num_labels = architecture["num_classes"]
    return config


def without_pooler(encoder: nn.Module) -> nn.Module:
    """Remove the unused layer that some encoders have on top of their first token."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # type: ignore[assignment]  # what their forward passes ask for
    return encoder


def _of_torchvision(architecture: Mapping[str, Any]) -> nn.Module:
    with compiler_on_demand():
        from torchvision.models import get_model

    network: nn.Module = get_model(architecture["builder"], weights=None, **architecture["kwargs"])
    return network


@contextmanager
def compiler_on_demand() -> Iterator[None]:
    """Import torchvision without ``torch._dynamo``, which takes longer to load than everything else in it.

    torchvision's ``roi_align`` imports it for one check, needed only when that operator of detectors runs: here the
    check is deferred until then.
    """
    name = "torch._dynamo.utils"
    if name in sys.modules:
        yield
        return

    def is_compile_supported(device_type: str) -> bool:
        from torch._dynamo import utils

        return bool(utils.is_compile_supported(device_type))

    placeholder = ModuleType(name)
    placeholder.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    sys.modules[name] = placeholder
    try:
        yield
    finally:
        if sys.modules.get(name) is placeholder:
            del sys.modules[name]


def _of_timm(architecture: Mapping[str, Any]) -> nn.Module:
    import timm

    builder, arguments = architecture["builder"], architecture["kwargs"]
    if architecture.get("one_head", False):
        headless = timm.create_model(builder, pretrained=False, **{**arguments, "num_classes": 0})
        return OneHead(headless, arguments["num_classes"])
    network: nn.Module = timm.create_model(builder, pretrained=False, **arguments)
    return network


def _of_transformers(architecture: Mapping[str, Any]) -> nn.Module:
    from transformers import MODEL_MAPPING, AutoModel, AutoModelForImageClassification

    task, config = architecture["task"], transformers_config(architecture)
    if task == "text-classification":
        encoder_class: Any = MODEL_MAPPING[type(config)]
        has_switch = "add_pooling_layer" in signature(encoder_class).parameters
        arguments = {"add_pooling_layer": False} if has_switch else {}
        encoder = AutoModel.from_config(config, dtype=torch.float32, **arguments)
        padding_id = getattr(config, "pad_token_id", None) or 0
        return TextClassifier(
            without_pooler(encoder),
            config.hidden_size,
            architecture["num_classes"],
            padding_id=padding_id,
            pooling=architecture.get("pooling", "mean"),
        ).train()
    if task == "image-classification":
        network = AutoModelForImageClassification.from_config(config, dtype=torch.float32)
        return ImageClassifier(network, **architecture.get("kwargs", {})).train()
    raise ValueError(f"`task` must be text-classification or image-classification, but got {task!r}.")


def _of_entry_point(architecture: Mapping[str, Any]) -> nn.Module:
    module, _, path = architecture["object"].partition(":")
    try:
        library: Any = importlib.import_module(module)
    except ImportError as error:
        package = architecture["package"]
        raise ImportError(
            f"The network {architecture['builder']!r} needs the package {package}, which cannot be imported ({error}). "
            f"Install it: pip install {package}; a packaged model's requirements.txt lists the version."
        ) from error
    for name in path.split("."):
        library = getattr(library, name)
    network: nn.Module = library.build(architecture["builder"], **architecture["kwargs"])
    return network


_BUILDERS: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "torchvision": _of_torchvision,
    "timm": _of_timm,
    "transformers": _of_transformers,
    "entry-point": _of_entry_point,
}
