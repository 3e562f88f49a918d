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
    """Where the default weights of a backbone of torchvision, timm or HuggingFace's hub are.

    Nothing is downloaded; a server is only asked whether it is there, and only once.

    Returns:
        ``cache`` if their file is on this machine, ``network`` if the server that has it answers, else ``nowhere``, as
        where the library is not installed.
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
    """Whether a server can be reached; of one behind a proxy it is taken for granted."""
    from urllib.request import getproxies, proxy_bypass  # here: it loads much that `--help` does not need

    if "https" in getproxies() and not proxy_bypass(host):
        return True
    try:
        socket.create_connection((host, 443), timeout=_ANSWER_SECONDS).close()
    except OSError:
        return False
    return True
