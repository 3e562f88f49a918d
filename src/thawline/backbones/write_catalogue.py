"""Regenerate the tables of ``thawline backbones`` for the installed torchvision and timm.

Run ``python -m thawline.backbones.write_catalogue`` after a new version of one of them, or a change in how networks are
cut. Networks are built without real values; torchvision's take about a minute, timm's about ten. Tests compare a sample
of the tables with the networks.
"""

import sys

from thawline.backbones._catalogue import Catalogue, write
from thawline.backbones._registry import LIBRARIES, Library
from thawline.exceptions import BackboneError

__all__: list[str] = []


def catalogued(library: Library) -> Catalogue:
    """Inspect all networks of a library."""
    networks = library.networks()
    infos, refused = {}, {}
    for name in networks.list_names():
        try:
            infos[name] = networks.inspect(name)
        except BackboneError as error:
            refused[name] = str(error)
    return Catalogue(library.version(), infos, refused)


if __name__ == "__main__":
    for library in LIBRARIES:
        if library.package in (sys.argv[1:] or ("torchvision", "timm")):
            write(library.package, catalogued(library))
