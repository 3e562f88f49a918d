"""Information on every backbone without building it, so that listing over a thousand networks takes no time.

There is one file per library that can list its networks, written by ``python -m thawline.backbones.write_catalogue``.
Imports neither torch nor the library.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from thawline.backbones._base import BackboneInfo

__all__ = ["Catalogue", "catalogue_of", "file_of", "write"]


@dataclass(frozen=True)
class Catalogue:
    """The networks of a version of a library."""

    version: str
    infos: dict[str, BackboneInfo]
    """Information by name, sorted by name."""
    refused: dict[str, str]
    """The error message of each unusable network of the library, by name."""


def file_of(library: str) -> Path:
    """File of a library's catalogue."""
    return Path(__file__).parent / f"catalogue_{library}.json"


@cache
def catalogue_of(library: str) -> Catalogue:
    """The catalogue of a library with its version; empty and without a version if there is no file."""
    file = file_of(library)
    if not file.exists():
        return Catalogue("", {}, {})
    content = json.loads(file.read_text(encoding="utf-8"))
    groups = [tuple(names) for names in content["layer_groups"]]
    return Catalogue(
        content["version"],
        {
            name: BackboneInfo(
                name,
                entry["parameters"],
                groups[entry["layer_groups"]],
                tuple(entry["weights"]),
                entry["image_size"],
                entry.get("tags", {}),
            )
            for name, entry in content["backbones"].items()
        },
        content["refused"],
    )


def write(library: str, catalogue: Catalogue) -> None:
    """Write the catalogue of a library: one line per backbone; lists of layer groups, which many share, only once."""
    groups = list(dict.fromkeys(info.layer_groups for info in catalogue.infos.values()))
    place = {names: i for i, names in enumerate(groups)}
    parts = {
        "version": json.dumps(catalogue.version),
        "backbones": _lines({info.name: _entry(info, place[info.layer_groups]) for info in catalogue.infos.values()}),
        "layer_groups": "[\n" + ",\n".join(f"  {json.dumps(names)}" for names in groups) + "\n ]",
        "refused": _lines(catalogue.refused),
    }
    text = ",\n".join(f" {json.dumps(name)}: {part}" for name, part in parts.items())
    file_of(library).write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


def _entry(info: BackboneInfo, groups: int) -> dict[str, Any]:
    entry = {
        "parameters": info.parameters,
        "image_size": info.image_size,
        "weights": info.weights,
        "layer_groups": groups,
    }
    return entry | ({"tags": dict(info.tags)} if info.tags else {})


def _lines(values: Mapping[str, Any]) -> str:
    return "{\n" + ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()) + "\n }"
