"""Pretrained networks of torchvision, timm, HuggingFace and other packages, cut into ordered layer groups.

A backbone takes images ``[N, 3, H, W]``, or the tokens of texts, to logits ``[N, num_classes]``. :func:`create` makes
one; :func:`names` and :func:`describe` answer about torchvision's and timm's from tables that ship with Thawline,
without building anything, and without importing torch or the network's library.
"""

import difflib
import hashlib
import importlib.metadata
import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from thawline.backbones import _catalogue
from thawline.backbones._base import (
    Backbone,
    BackboneInfo,
    CropMode,
    Graph,
    GraphNode,
    Interpolation,
    LayerGroup,
    Preprocessing,
    TextPreprocessing,
)
from thawline.backbones._places import Place, weights_place
from thawline.backbones._recorded import check_architecture
from thawline.backbones._registry import Library, libraries, library_of
from thawline.backbones.summary import DepthCost, depth_costs, info_json, summary_json, summary_text
from thawline.exceptions import BackboneError

if TYPE_CHECKING:
    from torch import Tensor

    from thawline.backbones._plugins import BackboneLibrary as BackboneLibrary
    from thawline.backbones._section import Section as Section

__all__ = [
    "Backbone",
    "BackboneInfo",
    "CropMode",
    "DepthCost",
    "Graph",
    "GraphNode",
    "Interpolation",
    "LayerGroup",
    "Place",
    "Preprocessing",
    "Section",
    "TextPreprocessing",
    "check_architecture",
    "check_weights",
    "create",
    "depth_costs",
    "depth_of",
    "describe",
    "further_names",
    "info_json",
    "kind_of",
    "label",
    "library_version",
    "names",
    "outline",
    "preprocessing_of",
    "section",
    "sections",
    "short_name",
    "summary_json",
    "summary_text",
    "weights_place",
    "write_head",
]


def __getattr__(name: str) -> object:
    """``BackboneLibrary`` and ``Section``, whose modules import torch."""
    if name == "BackboneLibrary":
        from thawline.backbones._plugins import BackboneLibrary

        return BackboneLibrary
    if name == "Section":
        from thawline.backbones._section import Section

        return Section
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_LABEL = 32
"""Characters of a name that break no table."""
_SHORT = 60
"""Characters of a short name, at most."""


def create(
    name: str,
    *,
    num_classes: int,
    weights: str = "default",
    image_size: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
) -> Backbone:
    """Build a backbone with pretrained weights and a new head.

    Args:
        name: one of :func:`names`.
        num_classes: number of logits of the new head, at least 1.
        weights: ``default`` (those of its library, downloaded unless they lie there already: torchvision's into
            ``TORCH_HOME``, timm's and HuggingFace's into ``HF_HOME``; of a folder, its own), ``starter`` (shipped with
            Thawline, for one architecture), ``none`` (random), or a file: ``.safetensors``, or a ``state_dict`` saved
            by ``torch.save``. For timm also a folder with the ``config.json`` and ``model.safetensors`` that it has on
            the hub. Half-precision files are cast to single precision. A head in the file is left out.
        image_size: side in pixels of the images that it will see; by default what the weights were trained for.
        max_length: tokens of a text that it will see, at most; by default what it was trained for, up to 512.
        seed: of all parameters with ``weights="none"``, but for the head, whose weights always begin at 0: the same
            seed, the same numbers. The global random state is left as it was.

    Raises:
        BackboneError: if there is no such backbone, or it does not take images of that size; before anything expensive.
        WeightsError: if the weights are not available, are torn, or do not fit. Random weights are never used instead.
    """
    from thawline.backbones import _heads

    _check_at_least_one(num_classes=num_classes, image_size=image_size)
    backbone: Backbone = (
        _known(name)
        .networks()
        .create(name, num_classes=num_classes, weights=weights, image_size=image_size, max_length=max_length, seed=seed)
    )
    _heads.initialise_head(backbone)
    return backbone


def section(backbone: Backbone, start: int, stop: int | None = None, *, exact: bool = True) -> "Section":
    """The operations from layer group ``start`` up to, but not including, layer group ``stop``.

    ``section(b, 0, d)`` is the *prefix* of depth ``d``: images ``[N, 3, H, W]`` to activations, whose shape beyond
    ``N`` depends on the architecture. ``section(b, d)`` is the *tail*: those activations to logits ``[N,
    num_classes]``. In evaluation mode, on the CPU in single precision, the parts one after the other are bit-equal to
    the whole.

    The section shares parameters, buffers and modules with the backbone, under their names. In evaluation mode it
    never writes into its input; in training mode a dropout in place may. Take it after ``train_mode`` or ``eval()``
    and after moving the module: code that reads ``self.training`` by itself is recorded in the mode that it is in now,
    and bare buffers where they are now.

    Of texts, tokens int64 ``[N, T]`` go in, and activations are ``[N, T, H + 1]``, whose last channel is 1 where there
    is a token and 0 after the end of a text; after the last layer group they are pooled, ``[N, H]``.

    Args:
        backbone: any backbone.
        start: number of layer groups left out at the input, ``0 <= start <= len(layer_groups)``.
        stop: number of layer groups after which it ends, more than ``start``; ``None`` includes the head.
        exact: with False, work that cannot reach the output is left out (the other tokens in the last block of a
            vision transformer); results then differ in the last bits, as its matrices have other shapes.

    Raises:
        BackboneError: if there are no such borders.
    """
    (made,) = sections(backbone, [(start, stop)], exact=exact)
    return made


def sections(backbone: Backbone, spans: Sequence[tuple[int, int | None]], *, exact: bool = True) -> "Sequence[Section]":
    """Several sections of a backbone, all taken in the mode that it is in now: it is traced once for all of them.

    Args:
        backbone: any backbone.
        spans: ``start`` and ``stop`` of each; see :func:`section`.
        exact: see :func:`section`.

    Raises:
        BackboneError: if there are no such borders.
    """
    from thawline.backbones._traced import traced_sections
    from thawline.backbones._windows import is_windowed, window

    deepest = len(backbone.layer_groups)
    for start, stop in spans:
        if not 0 <= start <= deepest or (stop is not None and not start < stop <= deepest):
            raise BackboneError(f"`0 <= start < stop <= {deepest}` must hold, but got start={start}, stop={stop}.")
    if is_windowed(backbone):
        return [window(backbone, start, stop) for start, stop in spans]
    return traced_sections(backbone, spans, exact=exact)


def write_head(backbone: Backbone, weight: "Tensor", bias: "Tensor", *, lowest: float) -> None:
    """See :func:`thawline.backbones._heads.write_head`."""
    from thawline.backbones import _heads

    _heads.write_head(backbone, weight, bias, lowest=lowest)


def outline(backbone: Backbone, freeze_depth: int) -> Graph:
    """See :func:`thawline.backbones._outline.outline`."""
    from thawline.backbones import _outline

    return _outline.outline(backbone, freeze_depth)


def check_weights(name: str, weights: str) -> None:
    """Refuse weights that are not there: nothing is downloaded, and of a file at most its head is read.

    Raises:
        BackboneError: if there is no such backbone.
        WeightsError: if its library has no weights for it, or none are shipped, or there is no such file.
    """
    _known(name).networks().check_weights(name, weights)


def names(pattern: str | None = None) -> list[str]:
    """Names of all backbones of the libraries that are installed, in order.

    HuggingFace's are not among them: what the hub holds is not listed.

    Of a library whose version is another than that of its table, some may turn out to be unusable.

    Args:
        pattern: only those that hold it or match it (``vgg*``). One with a dot is looked for among the names with tags
            too, of all pretrained weights of an architecture (``timm/resnet50.``).
    """
    found = [name for library in libraries() for name in _usable(library)]
    if pattern is None:
        return found
    wanted = pattern.lower()
    if "." in wanted:
        found += [f"{name}.{tag}" for library in libraries() for name, tag in _tagged(library)]
    if any(sign in wanted for sign in "*?["):
        return [name for name in found if fnmatchcase(name.lower(), wanted)]
    return [name for name in found if wanted in name.lower()]


def describe(name: str) -> BackboneInfo:
    """Layer groups, parameters, weights and image size of a backbone.

    From the tables this takes no time. Of a library whose version is another than that of its table, and of
    HuggingFace, the network itself is asked: that takes up to a few seconds, of a network ``hf:…`` also its memory, and
    of one on the hub a download of its small files.

    Raises:
        BackboneError: if there is no such backbone, or it cannot be used, or its library is not installed.
        WeightsError: if the small files of a network ``hf:…`` are not available.
    """
    library = _known(name)
    architecture, tag = _architecture_and_tag(library, name)
    info = catalogue.infos.get(architecture) if (catalogue := _current_catalogue(library)) else None
    if info is None:
        return library.networks().inspect(name)
    return replace(info, name=name, image_size=info.tags[tag], tags={}) if tag else info


def further_names() -> str:
    """How to name backbones that are not listed, a line for each library."""
    lines = {
        "timm": "timm/NAME.TAG takes others of its pretrained weights: `thawline backbones timm/NAME.` lists them.",
        "transformers": "hf:FOLDER or hf:ORG/NAME[@REVISION] takes an encoder of texts or a classifier of images from "
        "HuggingFace.",
    }
    install = " It needs: pip install 'thawline[{}]'."
    return "\n".join(
        lines[library.package] + ("" if library.is_installed() else install.format(library.extra))
        for library in libraries()
        if library.package in lines
    )


def kind_of(name: str) -> Literal["images", "texts"]:
    """What a backbone takes. Of a network ``hf:…`` its configuration says so, which is downloaded if need be.

    Raises:
        BackboneError: if there is no such backbone.
        WeightsError: if the configuration is not available.
    """
    if _known(name).package != "transformers":
        return "images"
    from thawline.backbones import _huggingface

    return _huggingface.kind_of(name)


def label(name: str) -> str:
    """A backbone as tables and charts have room for it: its name, or the :func:`short_name` of a folder far away."""
    return short_name(name) if name.startswith("hf:") and len(name) > _LABEL else name


def short_name(name: str) -> str:
    """A name for files and studies: letters, digits, ``.``, ``_`` and ``-`` only, at most 60.

    ``resnet18`` is itself, ``timm/resnet50`` becomes ``timm-resnet50``; of a folder, and of a name that is longer, it
    is a part and 24 bits of a digest, so that the backbones of one study in practice never share one.
    """
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    if not name.startswith("hf:"):
        plain = _without_signs(name)
        return plain if len(plain) <= _SHORT else f"{plain[: _SHORT - 7].strip('-._')}-{digest}"
    parts = [part for part in re.split(r"[/\\]+", name.removeprefix("hf:")) if part not in {"", ".", ".."}]
    *above, last = parts or [""]
    own = f"{above[-1]}-{last}" if above and last == "model" else last  # a usual name for a folder, which tells nothing
    return f"{_without_signs(own)[:50].strip('-._') or 'model'}-{digest}"


def _without_signs(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def library_version(name: str) -> str:
    """The library that a backbone is from, with the version that is installed: ``torchvision 0.29.2``."""
    library = library_of(name)
    return f"{library.package} {importlib.metadata.version(library.package)}"


def depth_of(name: str) -> int:
    """Number of layer groups of a backbone, which is its largest freeze depth; costs what :func:`describe` does.

    Raises:
        BackboneError: if there is no such backbone, or it cannot be used.
        WeightsError: if the small files of a network ``hf:…`` are not available.
    """
    return len(describe(name).layer_groups)


def preprocessing_of(
    name: str, *, weights: str = "default", image_size: int | None = None, max_length: int | None = None
) -> Preprocessing | TextPreprocessing:
    """How images or texts must be prepared for a backbone, without building it or reading its weights.

    With ``image_size`` the resize before the crop changes in proportion.

    Raises:
        BackboneError: if there is no such backbone, or ``image_size`` is not positive.
        WeightsError: if ``weights`` is ``starter`` and none are shipped for this backbone.
    """
    _check_at_least_one(image_size=image_size)
    return _known(name).networks().preprocessing_of(name, weights=weights, image_size=image_size, max_length=max_length)


def _check_at_least_one(**numbers: int | None) -> None:
    for what, number in numbers.items():
        if number is not None and number < 1:
            raise BackboneError(f"`{what} >= 1` must hold, but got {what}={number}.")


def _current_catalogue(library: Library) -> _catalogue.Catalogue | None:
    """The table of a library, unless it is of another version than is installed, or there is none."""
    catalogue = _catalogue.catalogue_of(library.package)
    return catalogue if catalogue.version == library.version() else None


def _names_of(library: Library) -> list[str]:
    """All that it has; where its table is not of its version, also what cannot be used."""
    if not (library.is_listed and library.is_installed()):
        return []
    catalogue = _current_catalogue(library)
    return list(catalogue.infos) if catalogue else library.networks().list_names()


def _usable(library: Library) -> list[str]:
    """Its names without those that could not be used when its table was written."""
    refused = _catalogue.catalogue_of(library.package).refused
    return [name for name in _names_of(library) if name not in refused]


def _tagged(library: Library) -> list[tuple[str, str]]:
    """Every backbone with each of its tags."""
    if not library.is_installed():
        return []
    return [(info.name, tag) for info in _catalogue.catalogue_of(library.package).infos.values() for tag in info.tags]


def _known(name: str) -> Library:
    """The library of a backbone that it has.

    Raises:
        BackboneError: if it has none of that name, or one that cannot be used, or is not installed itself.
    """
    library = library_of(name)
    if not library.is_listed:
        return library
    library.check_installed()
    catalogue = _current_catalogue(library)
    architecture, tag = _architecture_and_tag(library, name)
    if catalogue and architecture in catalogue.refused:
        raise BackboneError(catalogue.refused[architecture])
    if architecture not in _names_of(library) or (tag and tag not in describe(architecture).tags):
        raise BackboneError(f"Unknown backbone {name!r}.{_hint(name)} `thawline backbones` lists all.")
    return library


def _architecture_and_tag(library: Library, name: str) -> tuple[str, str]:
    """``timm/resnet50`` and ``a1_in1k`` of ``timm/resnet50.a1_in1k``; the tag may be empty."""
    if library.package != "timm":
        return name, ""
    architecture, _, tag = name.partition(".")
    return architecture, tag


def _hint(name: str) -> str:
    """The nearest name; or how to name a folder, or what the hub may have, which no list holds."""
    plain = name[3:] if name[:3].lower() == "hf:" else name
    of_huggingface = f" For a folder, or a network of HuggingFace, write 'hf:{plain}'."
    if plain != name or Path(name).expanduser().is_dir():
        return of_huggingface
    return _suggestion(name) or ("" if name.startswith("timm/") else of_huggingface)


def _suggestion(name: str) -> str:
    """The nearest name of any library, also by what follows the library's prefix."""
    name = name.removeprefix("torchvision/")  # whose names have no prefix
    if name in names():
        return f" Did you mean {name!r}?"
    found = names(name.rpartition(".")[0] + ".") if "." in name else []
    found += names()
    missing = [library for library in libraries() if library.is_listed and not library.is_installed()]
    found += [known for library in missing for known in _catalogue.catalogue_of(library.package).infos]
    full = {known.rpartition("/")[2]: known for known in reversed(found)} | {known: known for known in found}
    close = difflib.get_close_matches(name.lower(), full, n=1)
    return f" Did you mean {full[close[0]]!r}?" if close else ""
