"""Backbones of other packages, which provide a :class:`BackboneLibrary` as an entry point (ADR 26)."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from thawline.backbones import networks
from thawline.backbones._base import Backbone, BackboneInfo, LayerGroup, Preprocessing
from thawline.backbones._groups import layer_groups_of
from thawline.backbones._registry import refuse_length
from thawline.backbones._weights import check_weights as check_file
from thawline.backbones._weights import digest_of, first_line, load_into, read_file
from thawline.backbones.building import build_without_memory, seeded
from thawline.exceptions import BackboneError, WeightsError

__all__ = ["BackboneLibrary", "PluginNetworks"]

_CLASSES = 1000
"""Classes of the head for cutting a network and counting its parameters."""


class BackboneLibrary(Protocol):
    """The interface of a package of backbones; names exclude the entry point's: ``small`` for ``toy/small``."""

    def names(self) -> Sequence[str]:
        """Names of all networks, in the order of listing."""

    def build(self, name: str, *, num_classes: int, image_size: int) -> nn.Module:
        """Build a network with random weights of torch's generator: images ``[N, 3, S, S]`` to logits ``[N, C]``.

        The same arguments must always give the same architecture, which ``torch.fx`` must be able to trace.
        """

    def head(self, name: str) -> str:
        """Path of the linear or convolutional layer that returns the logits."""

    def preprocessing(self, name: str) -> Preprocessing:
        """The preprocessing of the network's pretraining images."""

    def has_weights(self, name: str) -> bool:
        """Whether it has pretrained weights; downloads nothing."""

    def weights(self, name: str) -> Mapping[str, Tensor]:
        """Pretrained tensors by their names in the network's ``state_dict``; any head is ignored.

        Only called if :meth:`has_weights` is true.
        """


@dataclass(frozen=True)
class _Cut:
    groups: tuple[LayerGroup, ...]
    head: LayerGroup
    parameters: int


@dataclass(frozen=True)
class PluginNetworks:
    """The networks of an entry point, with the interface that the rest of Thawline uses.

    Args:
        library: the entry point's object.
        point: the entry point, of a distribution.
    """

    library: BackboneLibrary
    point: importlib.metadata.EntryPoint

    def list_names(self) -> list[str]:
        """Names of all its networks, with the prefix."""
        return [f"{self.point.name}/{name}" for name in self.library.names()]

    def inspect(self, name: str) -> BackboneInfo:
        """See :func:`thawline.backbones.describe`."""
        size = self.preprocessing_of(name).image_size
        cut = _cut(self, name, size)
        return BackboneInfo(
            name=name,
            parameters=cut.parameters,
            layer_groups=tuple(group.name for group in cut.groups),
            weights=("default",) if self.library.has_weights(self._own(name)) else (),
            image_size=size,
        )

    def preprocessing_of(
        self, name: str, *, weights: str = "default", image_size: int | None = None, max_length: int | None = None
    ) -> Preprocessing:
        """See :func:`thawline.backbones.preprocessing_of`."""
        refuse_length(name, max_length)
        usual = self.library.preprocessing(self._own(name))
        if image_size is None:
            return usual
        resize = round(usual.resize_size * image_size / usual.image_size)
        return Preprocessing(image_size, resize, usual.mean, usual.std, usual.interpolation, usual.crop_mode)

    def check_weights(self, name: str, weights: str) -> None:
        """See :func:`thawline.backbones.check_weights`."""
        if weights == "default" and not self.library.has_weights(self._own(name)):
            raise WeightsError(
                f"{name!r} has no pretrained weights. Use your own file (--weights FILE), or train from random "
                "weights (--weights none)."
            )
        check_file(name, weights)

    def create(
        self,
        name: str,
        *,
        num_classes: int,
        weights: str = "default",
        image_size: int | None = None,
        max_length: int | None = None,
        seed: int = 0,
    ) -> Backbone:
        """See :func:`thawline.backbones.create`."""
        preprocessing = self.preprocessing_of(name, weights=weights, image_size=image_size, max_length=max_length)
        cut = self._cut_at(name, preprocessing.image_size)
        self.check_weights(name, weights)
        architecture = self._architecture(name, preprocessing.image_size, num_classes)
        with seeded(seed):
            module = networks.build(architecture)
        if weights != "none":
            own = (
                self.library.weights(self._own(name)) if weights == "default" else read_file(Path(weights).expanduser())
            )
            load_into(module, cut.head.name, dict(own), repr(weights))
        return Backbone(
            name=name,
            module=module,
            layer_groups=cut.groups,
            head=cut.head,
            preprocessing=preprocessing,
            weights_digest=digest_of(module, cut.head.name),
            architecture=architecture,
        )

    def _own(self, name: str) -> str:
        return name.removeprefix(f"{self.point.name}/")

    def _architecture(self, name: str, image_size: int, num_classes: int) -> dict[str, Any]:
        """The input of :func:`thawline.backbones.networks.build`, as plain JSON."""
        return {
            "library": "entry-point",
            "package": self.point.dist.name if self.point.dist else "",
            "object": self.point.value,
            "builder": self._own(name),
            "kwargs": {"num_classes": num_classes, "image_size": image_size},
        }

    def _cut_at(self, name: str, image_size: int) -> _Cut:
        """The network cut at this size, which must give the same layer groups as its own size."""
        cut, usual = (_cut(self, name, size) for size in (image_size, self.preprocessing_of(name).image_size))
        if [group.name for group in cut.groups] != [group.name for group in usual.groups]:
            raise BackboneError(
                f"At {image_size} x {image_size} pixels {name} would have other layer groups than at its own size. "
                "Give another image_size."
            )
        return cut


@lru_cache(maxsize=32)
def _cut(plugin: PluginNetworks, name: str, image_size: int) -> _Cut:
    """Cut a network into parts.

    Raises:
        BackboneError: for any exception in the package's code.
    """
    head = plugin.library.head(plugin._own(name))
    try:
        module = build_without_memory(lambda: networks.build(plugin._architecture(name, image_size, _CLASSES)))
        with torch.no_grad():
            groups, last = layer_groups_of(module, head, image_size)
    except Exception as error:
        reason = (
            first_line(error) if isinstance(error, BackboneError) else f"{type(error).__name__}: {first_line(error)}"
        )
        raise BackboneError(
            f"{name} of the package {plugin._architecture(name, image_size, _CLASSES)['package']} cannot be used at "
            f"{image_size} x {image_size} pixels: {reason}. Its author can test it with "
            "thawline.testing.BackboneContract."
        ) from error
    return _Cut(groups, last, sum(parameter.numel() for parameter in module.parameters()))
