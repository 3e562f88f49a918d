"""Presets: one word for a shipped recipe, adapted to the data and to the networks that are available."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from thawline import backbones
from thawline.config import SearchConfig, load_recipe
from thawline.config.layers import merge
from thawline.data import DataKind, data_kind
from thawline.exceptions import ConfigError
from thawline.recipes import recipe_path

__all__ = ["Fitted", "Preset", "fitted"]

Preset = Literal["fast", "balanced", "best"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "fast": ("mobilenet_v3_small", "timm/tf_efficientnet_lite0", "squeezenet1_0", "resnet18"),
    "balanced": ("resnet18", "timm/tf_efficientnet_lite0", "efficientnet_b0", "resnet50"),
}
"""Candidate networks for images, the recipe's own first: the first one with cached weights is chosen, else the first
one with downloadable weights. The recipe of ``best`` searches all that it lists."""
_STARTER = {"name": "mobilenet_v3_small", "weights": "starter", "image_size": 64}
"""The choice of ``fast`` if no other weights are available; the size is that of the weights' model card."""


@dataclass(frozen=True)
class Fitted:
    """A preset, adapted to data and machine."""

    layer: dict[str, Any]
    """Settings, which anything the user gave overrides."""
    notes: tuple[str, ...]
    """Sentences on what was chosen and why."""


def fitted(name: str, *layers: Mapping[str, Any]) -> Fitted:
    """Adapt a preset to the data, and to the networks that are available on this machine.

    The user's settings override it: named networks replace the preset's choice, and a number of trials or a time limit
    replaces its budget.

    Args:
        name: name of the preset.
        layers: the user's settings, including ``data``, as nested mappings; later ones override earlier ones.

    Raises:
        ConfigError: if there is no such preset, or the section ``data`` is wrong.
        DataError: if the data do not exist.
    """
    if name not in get_args(Preset):
        raise ConfigError(f"--preset must be one of {', '.join(get_args(Preset))}, but got {name!r}.")
    given: dict[str, Any] = {}
    for each in layers:
        merge(given, each)
    data = SearchConfig.build({"data": given["data"]}).data
    # The kind of data on object storage is unknown before the download; tables are reported then.
    kind: DataKind = "images" if data.url is not None else data_kind(data)
    recipe = name if kind == "images" else f"{name}-texts"
    layer = load_recipe(recipe_path(recipe))
    notes = [f"preset {name}: the recipe {recipe} (`thawline recipes copy {recipe}` writes a copy)"]
    _without_budget(layer, _section(given, "study"))
    if kind == "images":
        notes += _choose(name, layer, given)
    return Fitted(layer, tuple(notes))


def _section(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section that the user gave; empty if it is not a mapping, which is an error when all layers are merged."""
    section = given.get(name)
    return section if isinstance(section, Mapping) else {}


def _without_budget(layer: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Drop the preset's trials and time limit if the user gave one of them."""
    budget = ("trials", "timeout_minutes")
    if any(given.get(key) is not None for key in budget):
        for key in budget:
            layer["study"].pop(key, None)


def _choose(name: str, layer: dict[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Choose the networks for images in a recipe, unless the user named any; returns notes on the choice."""
    own, space = _section(given, "backbone"), _section(given, "space")
    if "name" in own or space.get("backbone") is not None:
        layer.get("space", {}).pop("backbone", None)
        layer["study"].pop("keep_backbones", None)
        return []
    if "backbone" in layer.get("space", {}):
        return _choose_several(name, layer)
    if "weights" in own:
        return []  # those are weights of the recipe's own network
    choice, place = _first_available(_CHOICES[name])
    if choice is not None:
        layer["backbone"]["name"] = choice
        why = "are cached" if place == "cache" else "are not cached and will be downloaded"
        return [f"preset {name}: the network is {choice}, whose weights {why}"]
    if name != "fast":
        return []  # the error when loading the recipe's own says which file to put where
    layer["backbone"] |= _STARTER
    return [
        f"preset {name}: no ImageNet weights are cached or can be downloaded, so the search uses Thawline's starter "
        "weights, which were not trained on photographs. For better results, "
        f"`thawline search DATA --backbone {_CHOICES[name][0]}` says which file to put where"
    ]


def _first_available(choices: Sequence[str]) -> tuple[str | None, backbones.Place]:
    """The first network with cached weights, else the first with downloadable weights, and the place of its weights."""
    fetched = None
    for choice in choices:
        place = backbones.weights_place(choice)
        if place == "cache":
            return choice, place
        if place == "network" and fetched is None:
            fetched = choice
    return fetched, "network"


def _choose_several(name: str, layer: dict[str, Any]) -> list[str]:
    places = {choice: backbones.weights_place(choice) for choice in layer["space"]["backbone"]}
    kept = [choice for choice, place in places.items() if place != "nowhere"] or list(places)[:1]
    if len(kept) > 1:
        layer["space"]["backbone"] = kept
    else:
        del layer["space"]["backbone"], layer["study"]["keep_backbones"]
        layer["backbone"]["name"] = kept[0]
    left_out = [choice for choice in places if choice not in kept]
    notes = [f"preset {name}: the networks are {', '.join(kept)}"]
    if left_out:
        notes.append(
            f"preset {name}: left out {', '.join(left_out)}, whose library is not installed, or whose weights are "
            "neither cached nor downloadable; `--backbone NAME` says which file to put where"
        )
    return notes
