"""Every classification network of torchvision, built, sized, loaded and cut in one way."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from thawline.backbones import networks
from thawline.backbones._base import Backbone, BackboneInfo, LayerGroup, Preprocessing
from thawline.backbones._groups import layer_groups_of, outputs_of
from thawline.backbones._registry import refuse_length
from thawline.backbones._vision import models
from thawline.backbones._weights import (
    STARTER,
    check_weights,
    digest_of,
    first_line,
    hub_file,
    load_into,
    read_weights,
    starter_metadata,
)
from thawline.backbones.building import build_without_memory, seeded
from thawline.exceptions import BackboneError

__all__ = ["check_weights", "create", "inspect", "is_cached", "list_names", "preprocessing_of"]

# torchvision's own arguments for these two when it loads weights, without the auxiliary heads for training from
# scratch; init_weights would waste minutes.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    name: {"transform_input": True, "aux_logits": False, "init_weights": False}
    for name in ("googlenet", "inception_v3")
}
# Networks that are built for a fixed image size.
_SIZE_ARGUMENT: dict[str, Callable[[int], dict[str, Any]]] = {
    "torchvision.models.vision_transformer": lambda size: {"image_size": size},
    "torchvision.models.maxvit": lambda size: {"input_size": [size, size]},
}
_STARTER_SIZE = 64
"""Side in pixels recommended by the shipped weights' model card; they were trained at 48 to 80."""


def is_cached(name: str) -> bool:
    """Whether the file of the default weights is in torch.hub's cache."""
    return hub_file(models.get_model_weights(name).DEFAULT).is_file()


def list_names() -> list[str]:
    """Names of the installed torchvision's classification networks."""
    return list(models.list_models(module=models))


def preprocessing_of(
    name: str, *, weights: str = "default", image_size: int | None = None, max_length: int | None = None
) -> Preprocessing:
    """The preprocessing of the weights; for files and random weights, that of the architecture's default weights.

    Raises:
        BackboneError: if ``image_size`` is not positive, or ``max_length`` is given.
        WeightsError: if ``weights`` is ``starter`` and none are shipped for ``name``.
    """
    refuse_length(name, max_length)
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    size, resize = transforms.crop_size[0], transforms.resize_size[0]
    mean, std, interpolation = transforms.mean, transforms.std, transforms.interpolation.value
    if weights == "starter":
        metadata = starter_metadata(name)
        mean, std = ([float(value) for value in metadata[key].split(",")] for key in ("mean", "std"))
        size, resize, interpolation = _STARTER_SIZE, _STARTER_SIZE, "bilinear"
    if image_size is not None:
        size, resize = image_size, round(resize * image_size / size)
    return Preprocessing(size, resize, tuple(mean), tuple(std), interpolation)


def create(
    name: str,
    *,
    num_classes: int,
    weights: str = "default",
    image_size: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
) -> Backbone:
    """See :func:`thawline.backbones.create`."""
    preprocessing = preprocessing_of(name, weights=weights, image_size=image_size, max_length=max_length)
    architecture = _architecture(name, preprocessing.image_size, num_classes)
    groups, head, _ = _cut(name)
    if image_size is not None or weights == "starter":  # otherwise it is the size of the cut
        _check_size(name, preprocessing.image_size)

    state = None if weights == "none" else read_weights(name, weights, models.get_model_weights(name).DEFAULT)
    with seeded(seed):
        module = networks.build(architecture)
    if state is not None:
        load_into(module, head.name, state, repr(weights))
    return Backbone(
        name=name,
        module=module,
        layer_groups=groups,
        head=head,
        preprocessing=preprocessing,
        weights_digest=digest_of(module, head.name),
        architecture=architecture,
    )


def inspect(name: str) -> BackboneInfo:
    """Information on a network, from building it without memory; takes up to a few seconds."""
    groups, _, parameters = _cut(name)
    return BackboneInfo(
        name=name,
        parameters=parameters,
        layer_groups=tuple(group.name for group in groups),
        weights=("default", "starter") if name == STARTER else ("default",),
        image_size=preprocessing_of(name).image_size,
    )


def _architecture(name: str, image_size: int, num_classes: int) -> dict[str, Any]:
    """The input of :func:`thawline.backbones.networks.build`, as plain JSON."""
    sized = _SIZE_ARGUMENT.get(models.get_model_builder(name).__module__)
    arguments = dict(_ARGUMENTS.get(name, {})) | (sized(image_size) if sized else {})
    return {"library": "torchvision", "builder": name, "kwargs": arguments | {"num_classes": num_classes}}


@lru_cache(maxsize=32)
def _cut(name: str) -> tuple[tuple[LayerGroup, ...], LayerGroup, int]:
    """Layer groups, head and number of parameters (with 1000 classes).

    Always uses the network's own size, so that the groups are the same for all image sizes.
    """
    default = models.get_model_weights(name).DEFAULT
    classes = len(default.meta["categories"])
    image_size = preprocessing_of(name).image_size
    module = build_without_memory(lambda: networks.build(_architecture(name, image_size, classes)))
    heads = [path for path, layer in module.named_modules() if outputs_of(layer) == classes]
    if len(heads) != 1:
        raise BackboneError(f"Exactly one layer of {name!r} must have {classes} outputs, its head, but got {heads}.")
    groups, head = layer_groups_of(module, heads[0], image_size)
    return groups, head, sum(parameter.numel() for parameter in module.parameters())


@lru_cache(maxsize=32)
def _check_size(name: str, image_size: int) -> None:
    """Run the network on one image without memory or real values, in milliseconds, to find errors.

    Raises:
        BackboneError: if it does not support images of this size.
    """
    try:
        module = build_without_memory(lambda: networks.build(_architecture(name, image_size, num_classes=1000)))
        with torch.no_grad():
            module(torch.empty(1, 3, image_size, image_size, device="meta"))
    except (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
        raise BackboneError(
            f"{name} does not support images of {image_size} x {image_size} pixels. {_size_rule(name)} "
            f"({first_line(error)})"
        ) from None


def _size_rule(name: str) -> str:
    default = models.get_model_weights(name).DEFAULT
    height = default.meta["min_size"][0]
    match models.get_model_builder(name).__module__.rpartition(".")[2]:
        case "vision_transformer":
            return f"It must be a multiple of its patch size, {name.rpartition('_')[2]}."
        case "maxvit":
            return f"It must be a multiple of {height}."
    return f"It must be at least {height} x {height}."
