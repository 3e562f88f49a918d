"""What is known of every backbone without building it, so that listing 80 networks takes no time.

Written by ``python -m thawline.backbones.catalogue``; imports neither torch nor torchvision.
"""

import importlib.metadata
import json
from functools import cache
from pathlib import Path

from thawline.backbones._base import BackboneInfo

__all__ = ["CATALOGUE_FILE", "catalogued", "is_of_installed_torchvision", "write"]

CATALOGUE_FILE = Path(__file__).parent / "catalogue.json"


@cache
def _content() -> tuple[str, dict[str, BackboneInfo]]:
    content = json.loads(CATALOGUE_FILE.read_text(encoding="utf-8"))
    return content["torchvision"], {
        name: BackboneInfo(
            name, entry["parameters"], tuple(entry["layer_groups"]), tuple(entry["weights"]), entry["image_size"]
        )
        for name, entry in content["backbones"].items()
    }


def catalogued() -> dict[str, BackboneInfo]:
    """All backbones of the torchvision that the catalogue was written with, by name, in order of names."""
    return dict(_content()[1])


def is_of_installed_torchvision() -> bool:
    """Whether the catalogue was written with the very torchvision that is installed, and so has all its networks."""
    # A build's local part (+cpu, +cu132) does not change the networks.
    return importlib.metadata.version("torchvision").partition("+")[0] == _content()[0]


def write(infos: list[BackboneInfo], file: Path = CATALOGUE_FILE) -> None:
    """Write the catalogue for the installed torchvision."""
    content = {
        "torchvision": importlib.metadata.version("torchvision").partition("+")[0],
        "backbones": {
            info.name: {
                "parameters": info.parameters,
                "image_size": info.image_size,
                "weights": info.weights,
                "layer_groups": info.layer_groups,
            }
            for info in infos
        },
    }
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
