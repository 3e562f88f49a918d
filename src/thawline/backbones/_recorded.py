"""Check architectures read from files: they may only name networks, built from plain values."""

import importlib.metadata
import re
from collections.abc import Callable, Mapping
from typing import Any

from thawline.backbones._catalogue import catalogue_of
from thawline.backbones._registry import GROUP, LIBRARIES
from thawline.exceptions import BackboneError

__all__ = ["check_architecture"]

_KEYS = {
    "torchvision": {"library", "builder", "kwargs"},
    "timm": {"library", "builder", "kwargs", "one_head"},
    "transformers": {"library", "task", "config", "num_classes", "kwargs", "pooling"},
    "entry-point": {"library", "package", "object", "builder", "kwargs"},
}
_ARGUMENTS = {
    "torchvision": {
        *("num_classes", "image_size", "input_size", "dropout"),
        *("transform_input", "aux_logits", "init_weights"),
    },
    "timm": {"num_classes", "img_size"},
    "transformers": {"interpolate_positions", "is_bgr"},
    "entry-point": {"num_classes", "image_size"},
}
"""Allowed arguments. Others could load pickled weights (timm's ``checkpoint_path``) or download files."""
_ATTENTION = (None, "eager", "sdpa")
"""transformers' own attention implementations; other names stand for kernels that it would download and run."""
_FETCHING = ("auto_map", "custom_pipelines", "trust_remote_code", "use_timm_backbone", "use_pretrained_backbone")
"""Keys of a transformers configuration that refer to external code or weights."""


def check_architecture(architecture: Mapping[str, Any]) -> None:
    """Refuse an architecture that would run or download anything except a network of an installed library.

    The arguments of :func:`thawline.backbones.networks.build` determine which function is called with which arguments.
    From an untrusted file, only names of networks and plain values are accepted.

    Args:
        architecture: see :attr:`thawline.backbones.Backbone.architecture`.

    Raises:
        BackboneError: if it is refused, or the library of the network is not installed.
    """
    name = str(architecture.get("library", "torchvision"))
    if name not in _KEYS:
        raise BackboneError(f"Its network is from the library {name!r}, but the supported ones are {', '.join(_KEYS)}.")
    arguments = architecture.get("kwargs", {})
    if unknown := [*(architecture.keys() - _KEYS[name]), *(arguments.keys() - _ARGUMENTS[name])]:
        raise BackboneError(f"Its network has unknown settings: {', '.join(sorted(map(str, unknown)))}.")
    if not all(map(_is_number, arguments.values())):
        raise BackboneError(f"Its network must be built from numbers only, but got {dict(arguments)}.")
    library = next((one for one in LIBRARIES if one.package == name), None)
    if library is not None:
        library.check_installed()
    _CHECKS[name](architecture)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, list) and all(isinstance(one, int) for one in value))


def _of_torchvision(architecture: Mapping[str, Any]) -> None:
    """Accept torchvision's classifiers: those in the shipped table, which needs no import, or in its own list."""
    library, name = LIBRARIES[0], str(architecture["builder"])
    if name not in catalogue_of(library.package).infos and name not in library.networks().list_names():
        raise BackboneError(f"Its network is {name!r}, which the installed {library.package} does not have.")


def _of_timm(architecture: Mapping[str, Any]) -> None:
    """Accept plain names: with a colon, timm searches folders and the hub. Weights after a dot are not read."""
    import timm

    name = str(architecture["builder"])
    if re.fullmatch(r"\w+(\.\w+)?", name) is None or not timm.is_model(name):
        raise BackboneError(f"Its network is {name!r}, which the installed timm does not have.")


def _of_transformers(architecture: Mapping[str, Any]) -> None:
    for key, value in _entries(architecture["config"]):
        if key in _FETCHING and value:
            raise BackboneError(f"Its network has {key}, which refers to external code or weights.")
        if key.endswith("attn_implementation") and value not in _ATTENTION:
            raise BackboneError(f"Its attention is {value!r}, but it must be one of {_ATTENTION}.")
        if key == "model_type" and str(value).startswith("timm"):
            raise BackboneError(f"Its network is of the type {value!r}, which names a network of another library.")


def _entries(value: object) -> list[tuple[str, object]]:
    """Keys and values of a configuration, including nested ones."""
    if isinstance(value, Mapping):
        return [entry for key, inner in value.items() for entry in [(str(key), inner), *_entries(inner)]]
    return [entry for inner in value for entry in _entries(inner)] if isinstance(value, list) else []


def _of_entry_point(architecture: Mapping[str, Any]) -> None:
    """Accept installed packages that declare this object as their library."""
    points = {point.value for point in importlib.metadata.entry_points(group=GROUP)}
    if architecture["object"] not in points:
        raise BackboneError(
            f"Its network needs {architecture['object']!r} of the package {architecture['package']}, which is not "
            f"installed: no installed package names it among its entry points of {GROUP}. Install the package."
        )


_CHECKS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "torchvision": _of_torchvision,
    "timm": _of_timm,
    "transformers": _of_transformers,
    "entry-point": _of_entry_point,
}
