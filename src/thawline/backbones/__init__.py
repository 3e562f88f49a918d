"""Pretrained networks, cut into ordered layer groups.

A backbone takes images ``[N, 3, H, W]`` to logits ``[N, num_classes]``. :func:`create` makes one; :func:`names` and
:func:`describe` answer from a table that ships with Thawline, without building anything, and without importing torch.
"""

import difflib
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from thawline.backbones import _catalogue
from thawline.backbones._base import Backbone, BackboneInfo, Graph, GraphNode, Interpolation, LayerGroup, Preprocessing
from thawline.backbones.summary import DepthCost, depth_costs, info_json, listing, summary_json, summary_text
from thawline.exceptions import BackboneError

if TYPE_CHECKING:
    from torch import fx

__all__ = [
    "Backbone",
    "BackboneInfo",
    "DepthCost",
    "Graph",
    "GraphNode",
    "Interpolation",
    "LayerGroup",
    "Preprocessing",
    "check_weights",
    "create",
    "depth_costs",
    "depth_of",
    "describe",
    "info_json",
    "listing",
    "names",
    "outline",
    "preprocessing_of",
    "section",
    "summary_json",
    "summary_text",
]


def create(
    name: str, *, num_classes: int, weights: str = "default", image_size: int | None = None, seed: int = 0
) -> Backbone:
    """Build a backbone with pretrained weights and a new head.

    Args:
        name: one of :func:`names`.
        num_classes: number of logits of the new head, at least 1.
        weights: ``default`` (torchvision's own, downloaded into ``TORCH_HOME`` unless they lie there already),
            ``starter`` (shipped with Thawline, for one architecture), ``none`` (random), or a file:
            ``.safetensors``, or a ``state_dict`` saved by ``torch.save``. Half-precision files are cast to single
            precision. A head in the file is left out.
        image_size: side in pixels of the images that it will see; by default what the weights were trained for.
        seed: of the head, and with ``weights="none"`` of all parameters: the same seed, the same numbers. The global
            random state is left as it was.

    Raises:
        BackboneError: if there is no such backbone, or it does not take images of that size; before anything expensive.
        WeightsError: if the weights cannot be had, are torn, or do not fit. Random weights are never a way out.
    """
    _known(name)
    from thawline.backbones import _torchvision

    return _torchvision.create(name, num_classes=num_classes, weights=weights, image_size=image_size, seed=seed)


def section(backbone: Backbone, start: int, stop: int | None = None, *, exact: bool = True) -> "fx.GraphModule":
    """See :func:`thawline.backbones._sections.section`."""
    from thawline.backbones import _sections

    return _sections.section(backbone, start, stop, exact=exact)


def outline(backbone: Backbone, freeze_depth: int) -> Graph:
    """See :func:`thawline.backbones._outline.outline`."""
    from thawline.backbones import _outline

    return _outline.outline(backbone, freeze_depth)


def check_weights(name: str, weights: str) -> None:
    """Refuse weights that are not there, in a moment: nothing is read or downloaded.

    Raises:
        BackboneError: if there is no such backbone.
        WeightsError: if no starter weights are shipped for it, or there is no such file.
    """
    _known(name)
    from thawline.backbones import _weights

    _weights.check_weights(name, weights)


def names(pattern: str | None = None) -> list[str]:
    """Names of all backbones, in order; with ``pattern``, of those that hold it or match it (``vgg*``)."""
    if _catalogue.is_of_installed_torchvision():
        found = list(_catalogue.catalogued())
    else:
        from thawline.backbones import _torchvision

        found = _torchvision.list_names()
    if pattern is None:
        return found
    wanted = pattern.lower()
    if any(sign in wanted for sign in "*?["):
        return [name for name in found if fnmatchcase(name, wanted)]
    return [name for name in found if wanted in name]


def describe(name: str) -> BackboneInfo:
    """Layer groups, parameters, weights and image size of a backbone, without building it.

    Raises:
        BackboneError: if there is no such backbone.
    """
    _known(name)
    if info := _catalogue.catalogued().get(name):
        return info
    from thawline.backbones import _torchvision

    return _torchvision.inspect(name)


def depth_of(name: str) -> int:
    """Number of layer groups of a backbone, which is its largest freeze depth, without building it.

    Raises:
        BackboneError: if there is no such backbone.
    """
    return len(describe(name).layer_groups)


def preprocessing_of(name: str, *, weights: str = "default", image_size: int | None = None) -> Preprocessing:
    """How images must be prepared for a backbone, without building it or reading its weights.

    With ``image_size`` the resize before the crop changes in proportion.

    Raises:
        BackboneError: if there is no such backbone, or ``image_size`` is not positive.
        WeightsError: if ``weights`` is ``starter`` and none are shipped for this backbone.
    """
    _known(name)
    from thawline.backbones import _torchvision

    return _torchvision.preprocessing_of(name, weights=weights, image_size=image_size)


def _known(name: str) -> None:
    found = names()
    if name not in found:
        close = difflib.get_close_matches(name.lower(), found, n=1)
        suggestion = f" Did you mean {close[0]!r}?" if close else ""
        raise BackboneError(f"Unknown backbone {name!r}.{suggestion} `thawline backbones` lists all.")
