"""The types by which the rest of Thawline uses pretrained networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # the catalogue works without torch, whose import takes seconds
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
"""timm's terms. ``center`` keeps the aspect ratio and crops to a square; ``squash`` keeps the whole image and changes
its aspect ratio."""


@dataclass(frozen=True)
class LayerGroup:
    """Consecutive layers that are frozen or trained together."""

    name: str
    """Derived from the paths of its modules: ``layer1``, ``features.4-6``."""
    tensors: tuple[str, ...]
    """Names of its parameters and buffers, as in the module's ``state_dict``."""
    modules: tuple[str, ...]
    """Names of the modules to set to ``eval()`` when it is frozen: those whose last operation is in it."""
    output: str
    """Name of the traced operation whose result, a single tensor, is its only output; in a network that cannot be
    traced, the path of its last block."""
    sizes: tuple[tuple[str, Any], ...] = ()
    """Heights and widths computed so far that later operations read, by the names of their operations. They are the
    same for all inputs of the backbone, so they need not be passed on. ``count`` stands for the number of images."""


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of an image: resize, crop the centre, scale to [0, 1], normalise.

    Networks work best with the preprocessing of their training, so this follows their own library, including
    ``crop_mode``.
    """

    image_size: int
    """Side in pixels of the square that is cropped from the centre, the network's input."""
    resize_size: int
    """Length in pixels to which the shorter side, or with ``squash`` both sides, are resized before cropping."""
    mean: tuple[float, float, float]
    """Mean per channel (red, green, blue) of values in [0, 1], which is subtracted."""
    std: tuple[float, float, float]
    """Standard deviation per channel of values in [0, 1], by which is divided."""
    interpolation: Interpolation
    """Interpolation for resizing."""
    crop_mode: CropMode = "center"
    """Whether resizing keeps the image's aspect ratio (``center``) or produces a square (``squash``)."""


@dataclass(frozen=True)
class TextPreprocessing:
    """The preprocessing of a text: tokenize and truncate to ``max_length`` tokens."""

    tokenizer: str
    """The tokenizer in the JSON format of the ``tokenizers`` library, which also adds special tokens."""
    max_length: int
    """Maximum number of tokens of a text, including special ones."""


@dataclass(frozen=True)
class Backbone:
    """A pretrained network with a new head, cut into ordered layer groups.

    ``module`` maps preprocessed images ``[N, 3, image_size, image_size]``, or tokens of texts, int64 ``[N, T]`` padded
    with -1, to logits ``[N, num_classes]``. The groups are disjoint and ordered from input to head; together with the
    head they contain every parameter and buffer exactly once. Between groups, a single tensor is passed on.
    """

    name: str
    module: nn.Module
    layer_groups: tuple[LayerGroup, ...]
    head: LayerGroup
    preprocessing: Preprocessing | TextPreprocessing
    weights_digest: str
    """Sixteen hex digits of the loaded tensors, without the head, and of the pooling of a text's tokens; random weights
    have a digest too."""
    architecture: dict[str, Any]
    """Plain JSON from which :func:`thawline.backbones.networks.build` rebuilds the module without Thawline."""


@dataclass(frozen=True)
class BackboneInfo:
    """Information on a backbone; see :func:`thawline.backbones.describe`."""

    name: str
    parameters: int
    """Number of parameters, with a head for 1000 classes."""
    layer_groups: tuple[str, ...]
    weights: tuple[str, ...]
    """Its pretrained weights: ``default`` (its library's own), ``starter`` (shipped with Thawline)."""
    image_size: int | None
    """Side in pixels of the default weights' training images; ``None`` for texts."""
    tags: Mapping[str, int] = field(default_factory=dict)
    """Pretrained weights that a name can select (``timm/resnet50.a1_in1k``), each with its training image size; the
    first are the default."""


@dataclass(frozen=True)
class GraphNode:
    """An operation of a network."""

    name: str
    """Its path, such as ``layer1/0/conv1``, starting with the layer group (or head); unique in the graph. The input is
    ``images``."""
    operation: str
    """Type of operation, such as ``Conv2d``."""
    inputs: tuple[str, ...]
    """Names of its input nodes."""
    frozen: bool
    shape: tuple[int, ...] | None = None
    """Shape of its output, without the batch; ``None`` unless that is one floating-point tensor."""


@dataclass(frozen=True)
class Graph:
    """A network as a graph of its operations, in the order of computation."""

    nodes: tuple[GraphNode, ...]
