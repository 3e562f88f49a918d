"""Presets: one word for a shipped recipe, fitted to the data, to what is installed and to what is cached."""

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
"""Networks for images, the recipe's own first, of which one is taken: the first whose weights are cached, else the
first whose weights can be downloaded. The recipe of ``best`` searches all that it lists."""
_STARTER = {"name": "mobilenet_v3_small", "weights": "starter", "image_size": 64}
"""What ``fast`` takes where no other weights are available; the size is that of the weights' model card."""


@dataclass(frozen=True)
class Fitted:
    """A preset as it is searched here."""

    layer: dict[str, Any]
    """Settings, below all that the user gave."""
    notes: tuple[str, ...]
    """What was chosen and why, in sentences."""


def fitted(name: str, *layers: Mapping[str, Any]) -> Fitted:
    """Fit a preset to the data, and to the networks that are available on this machine.

    What the user gave comes over it: networks that are named are not chosen, and a number of trials or a time limit
    takes the place of the preset's budget.

    Args:
        name: of the preset.
        layers: all that the user gave, ``data`` among it, as nested settings; later ones win.

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
    # What lies on object storage is not known before it is fetched; a search of tables is told so then.
    kind: DataKind = "images" if data.url is not None else data_kind(data)
    recipe = name if kind == "images" else f"{name}-texts"
    layer = load_recipe(recipe_path(recipe))
    notes = [f"preset {name}: the recipe {recipe} (`thawline recipes copy {recipe}` writes it)"]
    _without_budget(layer, _section(given, "study"))
    if kind == "images":
        notes += _choose(name, layer, given)
    return Fitted(layer, tuple(notes))


def _section(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section that the user gave; empty if it is none, which is refused when all layers are merged."""
    section = given.get(name)
    return section if isinstance(section, Mapping) else {}


def _without_budget(layer: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Leave out trials and time limit where the user gave one of them."""
    budget = ("trials", "timeout_minutes")
    if any(given.get(key) is not None for key in budget):
        for key in budget:
            layer["study"].pop(key, None)


def _choose(name: str, layer: dict[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Choose the networks for images in a recipe, unless the user named any; returns what there is to say about it."""
    own, space = _section(given, "backbone"), _section(given, "space")
    if "name" in own or space.get("backbone") is not None:
        layer.get("space", {}).pop("backbone", None)
        layer["study"].pop("keep_backbones", None)
        return []
    if "backbone" in layer.get("space", {}):
        return _choose_several(name, layer)
    if "weights" in own:
        return []  # they are of the recipe's own network
    choice, place = _first_available(_CHOICES[name])
    if choice is not None:
        layer["backbone"]["name"] = choice
        why = "are cached" if place == "cache" else "are not cached, and downloaded"
        return [f"preset {name}: the network is {choice}, whose weights {why}"]
    if name != "fast":
        return []  # loading those of the recipe's own says which file to put where
    layer["backbone"] |= _STARTER
    return [
        f"preset {name}: no ImageNet weights are cached or can be downloaded, so the search begins with those that "
        f"Thawline ships, which have seen no photograph. `thawline search DATA --backbone {_CHOICES[name][0]}` says "
        "which file to put where for a better result"
    ]


def _first_available(choices: Sequence[str]) -> tuple[str | None, backbones.Place]:
    """The first network whose weights are cached, else the first whose weights can be downloaded, and which it is."""
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
            "neither cached nor to be downloaded; `--backbone NAME` says which file to put where"
        )
    return notes
