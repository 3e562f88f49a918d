"""Where the default weights of a backbone are available: in a cache, by a download, or nowhere."""

import socket
from functools import cache
from typing import Literal

from thawline.backbones._registry import library_of

__all__ = ["Place", "weights_place"]

Place = Literal["cache", "network", "nowhere"]

_TORCHVISION = "download.pytorch.org"
_ANSWER_SECONDS = 3.0


def weights_place(name: str) -> Place:
    """Where the default weights of a backbone of torchvision, timm or Hugging Face's hub are available.

    Nothing is downloaded; each server is only contacted once, to check that it is reachable.

    Returns:
        ``cache`` if their file is on this machine, ``network`` if its server responds, else ``nowhere``, also if the
        library is not installed.
    """
    library = library_of(name)
    if not library.is_installed():
        return "nowhere"
    if library.package == "torchvision":
        from thawline.backbones import _torchvision

        return "cache" if _torchvision.is_cached(name) else _from(_TORCHVISION)
    if library.package == "timm":
        from thawline.backbones import _timm

        cached = _timm.is_cached(name)
    else:
        from thawline.backbones import _huggingface_files

        cached = _huggingface_files.is_cached(name)
    if cached:
        return "cache"
    from huggingface_hub import constants

    host = constants.ENDPOINT.partition("://")[2].partition("/")[0].partition(":")[0]
    return "nowhere" if constants.HF_HUB_OFFLINE else _from(host)


def _from(host: str) -> Place:
    return "network" if _answers(host) else "nowhere"


@cache
def _answers(host: str) -> bool:
    """Whether a server is reachable, which is assumed behind a proxy."""
    from urllib.request import getproxies, proxy_bypass  # here, as it loads much that `--help` does not need

    if "https" in getproxies() and not proxy_bypass(host):
        return True
    try:
        socket.create_connection((host, 443), timeout=_ANSWER_SECONDS).close()
    except OSError:
        return False
    return True
