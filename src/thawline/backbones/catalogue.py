"""Writes ``catalogue.json``, the table behind ``thawline backbones``, anew for the installed torchvision.

Run ``python -m thawline.backbones.catalogue`` after a new torchvision or a change to how networks are cut. Takes about
a minute; no network is built with real numbers. A test compares a sample of the table with the networks.
"""

from thawline.backbones._catalogue import write
from thawline.backbones._torchvision import inspect, list_names

if __name__ == "__main__":
    write([inspect(name) for name in list_names()])
