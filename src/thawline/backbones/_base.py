"""The types that the rest of Thawline knows a pretrained network by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # the catalogue answers without torch, whose import takes seconds
    from torch import nn

__all__ = [
    "Backbone",
    "BackboneInfo",
    "CropMode",
    "Graph",
    "GraphNode",
    "Interpolation",
    "LayerGroup",
    "Preprocessing",
    "TextPreprocessing",
]

Interpolation = Literal["nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"]
CropMode = Literal["center", "squash"]
"""By timm's words. ``center`` keeps the aspect ratio and loses what lies beside the square, ``squash`` keeps the whole
image and loses its aspect ratio."""


@dataclass(frozen=True)
class LayerGroup:
    """Neighbouring layers that are frozen or trained together."""

    name: str
    """Taken from the paths of its modules: ``layer1``, ``features.4-6``."""
    tensors: tuple[str, ...]
    """Names of its parameters and buffers, as in the module's ``state_dict``."""
    modules: tuple[str, ...]
    """Names of the modules that go to ``eval()`` when it is frozen: those with their last operation in it."""
    output: str
    """Name of the traced operation whose result, one single tensor, is all that it passes on; in a network that cannot
    be traced, the path of its last block."""
    sizes: tuple[tuple[str, Any], ...] = ()
    """Heights and widths found up to there that later operations read, by the names of the operations that found
    them: they are the same for all images that the backbone sees, so they need not be passed on. Where the operation
    found the number of images, ``count`` stands for it."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before the network sees it: resize, crop the centre, scale to [0, 1], normalise.

    Networks work best as they were trained, so this is what their own library does, ``crop_mode`` included.
    """

    image_size: int
    """Side in pixels of the square that is cut from the centre, and that the network sees."""
    resize_size: int
    """Length in pixels that the shorter side, or with ``squash`` either side, is resized to before."""
    mean: tuple[float, float, float]
    """Per channel (red, green, blue), of values in [0, 1]; subtracted."""
    std: tuple[float, float, float]
    """Per channel, of values in [0, 1]; divided by."""
    interpolation: Interpolation
    """How pixels are weighed when resizing."""
    crop_mode: CropMode = "center"
    """Whether the image keeps its aspect ratio when it is resized (``center``) or becomes a square (``squash``)."""


@dataclass(frozen=True)
class TextPreprocessing:
    """What is done to a text before the network sees it: cut into tokens, of which the first ``max_length`` are
    kept."""

    tokenizer: str
    """The tokenizer in the JSON format of the ``tokenizers`` library, which adds the special tokens too."""
    max_length: int
    """Tokens of a text, special ones included, at most."""


@dataclass(frozen=True)
class Backbone:
    """A pretrained network, cut into ordered layer groups, with a new head.

    ``module`` takes images ``[N, 3, image_size, image_size]`` (preprocessed), or the tokens of texts, int64 ``[N, T]``
    with -1 after the end of each, to logits ``[N, num_classes]``. The groups are disjoint and ordered from input to
    head, and with the head hold every parameter and buffer exactly once. At every border between groups one single
    tensor is passed on.
    """

    name: str
    module: nn.Module
    layer_groups: tuple[LayerGroup, ...]
    head: LayerGroup
    preprocessing: Preprocessing | TextPreprocessing
    weights_digest: str
    """Sixteen hex digits of the tensors that it was loaded with, the head left out, and of how a text's tokens are
    pooled; random ones have a digest too."""
    architecture: dict[str, Any]
    """What rebuilds the module without Thawline, by :func:`thawline.backbones.networks.build`: plain JSON."""


@dataclass(frozen=True)
class BackboneInfo:
    """What is known of a backbone before it is made for a study; see :func:`thawline.backbones.describe`."""

    name: str
    parameters: int
    """Number of parameters, with a head for 1000 classes."""
    layer_groups: tuple[str, ...]
    weights: tuple[str, ...]
    """Pretrained weights that it has: ``default`` (its library's own), ``starter`` (shipped with Thawline)."""
    image_size: int | None
    """Side in pixels of the images that the default weights were trained for; ``None`` for texts."""
    tags: Mapping[str, int] = field(default_factory=dict)
    """Pretrained weights among which a name chooses (``timm/resnet50.a1_in1k``), each with the image size that it was
    trained for; the first are the default ones."""


@dataclass(frozen=True)
class GraphNode:
    """An operation of a network."""

    name: str
    """Its place, such as ``layer1/0/conv1``, the layer group (or head) first; unique in the graph. The images, which
    are in none, are ``images``."""
    operation: str
    """Such as ``Conv2d``."""
    inputs: tuple[str, ...]
    """Names of the nodes whose output it takes."""
    frozen: bool
    shape: tuple[int, ...] | None = None
    """Of its output, without the batch; ``None`` if that is not one floating-point tensor."""


@dataclass(frozen=True)
class Graph:
    """A network as the graph of its operations, in the order in which they are computed."""

    nodes: tuple[GraphNode, ...]
