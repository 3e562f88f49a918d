"""timm's classification networks, as ``timm/NAME`` or ``timm/NAME.TAG``, cut along timm's own layer groups."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from timm.data.config import resolve_data_config
from timm.models import PretrainedCfg, group_parameters
from torch import Tensor, nn

from thawline.backbones import networks
from thawline.backbones._base import Backbone, BackboneInfo, LayerGroup, Preprocessing
from thawline.backbones._groups import layer_groups_of, outputs_of
from thawline.backbones._registry import refuse_length
from thawline.backbones._weights import ALTERNATIVES, digest_of, first_line, load_into, read_file
from thawline.backbones._weights import check_weights as check_file
from thawline.backbones.building import build_without_memory, seeded
from thawline.exceptions import BackboneError, WeightsError

__all__ = ["check_weights", "create", "inspect", "list_names", "preprocessing_of"]

_PREFIX = "timm/"
_NETWORK = "network."
"""Prefix of the network in :class:`thawline.backbones.networks.OneHead`."""
_CLASSES = 1000
"""Classes of the head for cutting a network and counting its parameters."""


def list_names() -> list[str]:
    """All architectures of the installed timm, including unusable ones."""
    return [_PREFIX + name for name in timm.list_models()]


def preprocessing_of(
    name: str, *, weights: str = "default", image_size: int | None = None, max_length: int | None = None
) -> Preprocessing:
    """The preprocessing of the pretrained weights, from timm's configuration, or from that in the weights' folder.

    Images are squashed into a square if timm does so. Its third mode, ``border``, which pads the shorter side, is not
    supported: the two networks of timm 1.0.31 with that mode (``deepseek_vit_412m``, ``deepseek_vit_412m_align``) get
    the centre crop.

    Raises:
        BackboneError: if ``image_size`` is not positive, or ``max_length`` is given, or the images are not square.
        WeightsError: if ``weights`` is a folder without the layout of timm's hub models.
    """
    refuse_length(name, max_length)
    folder = _folder_of(weights)
    settings = _settings_in(folder, name) if folder else _config(name).to_dict()
    data = resolve_data_config({}, pretrained_cfg=settings)
    channels, height, width = data["input_size"]
    if channels != 3 or height != width:
        raise _refusal(name, f"it was made for images of {channels} channels and {height} x {width} pixels")
    size = image_size or width
    return Preprocessing(
        image_size=size,
        resize_size=math.floor(size / data["crop_pct"]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=data["interpolation"],
        crop_mode="squash" if data["crop_mode"] == "squash" else "center",
    )


def check_weights(name: str, weights: str) -> None:
    """See :func:`thawline.backbones.check_weights`."""
    if weights == "default":
        _on_hub(name)
    if folder := _folder_of(weights):
        _settings_in(folder, name)
    check_file(name, _file_of(weights))


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
    cut = _cut_at(name, preprocessing.image_size)
    check_weights(name, weights)

    architecture = _architecture(name, preprocessing.image_size, num_classes, one_head=cut.one_head)
    with seeded(seed):
        module = networks.build(architecture)
        if weights != "none":
            tensors = _pretrained(name, weights, preprocessing.image_size)
            load_into(module, cut.head.name, _body(tensors, module) if cut.one_head else tensors, repr(weights))
    return Backbone(
        name=name,
        module=module,
        layer_groups=cut.groups,
        head=cut.head,
        preprocessing=preprocessing,
        weights_digest=digest_of(module, cut.head.name),
        architecture=architecture,
    )


def inspect(name: str) -> BackboneInfo:
    """Information on a network, from building it without memory; takes up to a few seconds.

    Raises:
        BackboneError: if it cannot be used.
    """
    image_size = preprocessing_of(name).image_size
    cut = _cut_at(name, image_size)
    config = _config(name)
    return BackboneInfo(
        name=name,
        parameters=cut.parameters,
        layer_groups=tuple(group.name for group in cut.groups),
        weights=("default",) if config.hf_hub_id else (),
        image_size=image_size,
        tags={} if "." in name else _tags_of(name),
    )


def _folder_of(weights: str) -> Path | None:
    """The folder of the weights, with the layout of timm's hub models, if they are in a folder."""
    folder = Path(weights).expanduser()
    return folder if weights not in ("default", "starter", "none") and folder.is_dir() else None


def _file_of(weights: str) -> str:
    """The file of the weights, which may be in a folder."""
    folder = _folder_of(weights)
    return str(folder / "model.safetensors") if folder else weights


def _settings_in(folder: Path, name: str) -> dict[str, Any]:
    """The settings of the ``config.json`` beside the weights in a folder.

    Raises:
        WeightsError: if the file is missing or cannot be read, or the weights are for another architecture.
    """
    file = folder / "config.json"
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
        architecture, settings = described["architecture"], dict(described.get("pretrained_cfg", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"A folder of weights for {name!r} must have the config.json and model.safetensors of timm's model on "
            f"the hub, but {file} cannot be read: {first_line(error)}. Or give a weights file (--weights FILE)."
        ) from None
    if architecture != _bare(name).partition(".")[0]:
        raise WeightsError(
            f"The weights in {folder} are for 'timm/{architecture}', but the backbone is {name!r}. "
            f"Use --backbone timm/{architecture}."
        )
    return settings


def _tags_of(name: str) -> dict[str, int]:
    """All pretrained weights of an architecture with their training image sizes, the default first."""
    default = f"{name}.{_config(name).tag}"
    tagged = [_PREFIX + known for known in timm.list_pretrained(f"{_bare(name)}.*")]
    tagged.sort(key=lambda known: known != default)
    return {known.partition(".")[2]: _config(known).input_size[-1] for known in tagged}


def _bare(name: str) -> str:
    return name.removeprefix(_PREFIX)


def _config(name: str) -> PretrainedCfg:
    """timm's configuration of the weights that a name selects."""
    config = timm.get_pretrained_cfg(_bare(name))
    return config if config is not None else PretrainedCfg()


def _architecture(name: str, image_size: int, num_classes: int, *, one_head: bool) -> dict[str, Any]:
    """The input of :func:`thawline.backbones.networks.build`, as plain JSON."""
    sized = {"img_size": image_size} if _config(name).fixed_input_size else {}
    made = {"library": "timm", "builder": _bare(name), "kwargs": sized | {"num_classes": num_classes}}
    return made | {"one_head": True} if one_head else made


class _UnusableError(Exception):
    """The reason why a network cannot be cut, as the end of a sentence."""


@dataclass(frozen=True)
class _Cut:
    """A network cut into parts."""

    groups: tuple[LayerGroup, ...]
    head: LayerGroup
    parameters: int
    """Number of parameters, with 1000 classes."""
    one_head: bool
    """Whether its several heads were replaced by one."""


def _cut_at(name: str, image_size: int) -> _Cut:
    """Cut a network at an image size, on which its structure may depend.

    Raises:
        BackboneError: if it cannot be used, or not at this size.
    """
    default = preprocessing_of(name).image_size
    try:
        found = usual = _cut(name, default)
    except _UnusableError as error:
        raise _refusal(name, str(error)) from None
    if image_size == default:
        return found
    try:
        found = _cut(name, image_size)
    except _UnusableError as error:
        raise BackboneError(
            f"{name} does not support images of {image_size} x {image_size} pixels: {error}. Its own size is "
            f"{default} x {default}."
        ) from None
    if [group.name for group in found.groups] != [group.name for group in usual.groups]:
        raise BackboneError(
            f"At {image_size} x {image_size} pixels {name} would have other layer groups than at its own {default} x "
            f"{default}. Give another image_size."
        )
    return found


@lru_cache(maxsize=32)
def _cut(name: str, image_size: int) -> _Cut:
    """Cut a network into parts, with one head in place of several.

    Raises:
        _UnusableError: for any failure.
    """
    try:
        module = _outline(name, image_size, one_head=False)
        heads = _heads_of(module, name)
        one_head = len(heads) > 1
        if one_head:
            module = _outline(name, image_size, one_head=True)
            heads = ["head"]
        groups, head = layer_groups_of(module, heads[0], image_size, _order_of(module))
    except BackboneError as error:
        raise _UnusableError(str(error).rstrip(".")) from None
    except _UnusableError:
        raise
    except Exception as error:  # building, tracing, or running on shapes can raise anything
        raise _UnusableError(f"{type(error).__name__}: {first_line(error)}") from None
    return _Cut(groups, head, sum(parameter.numel() for parameter in module.parameters()), one_head)


def _outline(name: str, image_size: int, *, one_head: bool) -> nn.Module:
    """The network with 1000 classes, without memory."""
    architecture = _architecture(name, image_size, _CLASSES, one_head=one_head)
    return build_without_memory(lambda: networks.build(architecture))


def _refusal(name: str, why: str) -> BackboneError:
    return BackboneError(f"{name!r} cannot be used: {why}. `thawline backbones timm/` lists usable ones.")


def _heads_of(module: Any, name: str) -> list[str]:
    """Paths of the layers that return the logits, at least one.

    Raises:
        _UnusableError: if there is none.
    """
    if not hasattr(module, "get_classifier"):
        raise _UnusableError("it is not a classifier")
    classifier = module.get_classifier()
    parts = list(classifier) if isinstance(classifier, tuple) else [classifier]
    described: Any = _config(name).classifier
    if isinstance(described, tuple):  # the only place with VOLO's second head
        parts += map(module.get_submodule, described)
    inside = {id(layer) for part in parts for layer in part.modules()}
    heads = [path for path, layer in module.named_modules() if id(layer) in inside and outputs_of(layer) == _CLASSES]
    if not heads:
        raise _UnusableError(f"it must have a head with {_CLASSES} outputs, but has none")
    return heads


def _order_of(module: nn.Module) -> Mapping[str, int] | None:
    """The layer group's number of each parameter; ``None`` if timm has no groups, or only the finest."""
    if isinstance(module, networks.OneHead):
        order = _order_of(module.network)
        return order and {_NETWORK + name: number for name, number in order.items()}
    try:
        matcher = module.group_matcher(coarse=True)  # type: ignore[operator]
    except (AttributeError, AssertionError):
        return None
    numbers: dict[str, int] = group_parameters(module, matcher, reverse=True)
    return numbers


def _body(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network without its heads, named as in :class:`thawline.backbones.networks.OneHead`."""
    wanted = module.state_dict()
    return {_NETWORK + name: value for name, value in tensors.items() if _NETWORK + name in wanted}


def _pretrained(name: str, weights: str, image_size: int) -> dict[str, Tensor]:
    """The tensors of the default weights or of a file, renamed and resized by timm for the network.

    They are loaded into a network with their own head, because timm checks all tensors only then.

    Raises:
        WeightsError: if they are not available, or do not match.
    """
    config = _config(name)
    source: dict[str, Any]
    if weights == "default":
        classes, source = config.num_classes, {"file": str(_from_hub(name))}
    else:
        tensors = read_file(Path(_file_of(weights)).expanduser())
        classes, source = _classes_in(tensors, config), {"state_dict": tensors}
    arguments = _architecture(name, image_size, classes, one_head=False)["kwargs"]
    try:
        filled = timm.create_model(
            _bare(name), pretrained=True, pretrained_cfg_overlay={**source, "num_classes": classes}, **arguments
        )
    except (RuntimeError, KeyError, ValueError, AssertionError, OSError) as error:
        lines = "\n".join(str(error).splitlines()[:6])
        raise WeightsError(f"The weights {weights!r} do not match {name!r}: {lines}") from None
    return dict(filled.state_dict())


def _classes_in(tensors: Mapping[str, Tensor], config: PretrainedCfg) -> int:
    """Number of classes of the head in a file; 0 without a head."""
    heads = config.classifier if isinstance(config.classifier, tuple) else (config.classifier,)
    head = tensors.get(f"{heads[0]}.weight")
    return 0 if head is None else len(head)


def _on_hub(name: str) -> tuple[str, str | None, str]:
    """Repository, revision and file of the default weights: always safetensors, since other formats may contain code.

    Raises:
        WeightsError: if timm has none on the hub.
    """
    config = _config(name)
    if not config.hf_hub_id:
        at = f" They are at {config.url} as a pickle, which could run code: download it yourself." if config.url else ""
        raise WeightsError(f"timm has no pretrained weights for {name!r} on the hub.{at} {ALTERNATIVES}")
    repository, _, revision = config.hf_hub_id.partition("@")
    file = Path(config.hf_hub_filename or "model").with_suffix(".safetensors")
    return repository, revision or None, str(file)


def is_cached(name: str) -> bool:
    """Whether the file of the default weights is in the hub's cache."""
    try:
        repository, revision, file = _on_hub(name)
    except WeightsError:
        return False
    return isinstance(try_to_load_from_cache(repository, file, revision=revision), str)


def _from_hub(name: str) -> Path:
    """The file of the default weights, downloaded unless it is in the hub's cache.

    Raises:
        WeightsError: if it is not available.
    """
    repository, revision, file = _on_hub(name)
    try:
        try:
            return Path(hf_hub_download(repository, file, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(hf_hub_download(repository, file, revision=revision, library_name="timm"))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise WeightsError(
            f"The pretrained weights of {name!r} could not be downloaded: {first_line(error)}.\n"
            f"They are the file {file} of the model {repository!r} on the Hugging Face hub. If the hub is "
            f"unreachable, copy its cache to this machine (HF_HOME sets its place). {ALTERNATIVES}"
        ) from None
