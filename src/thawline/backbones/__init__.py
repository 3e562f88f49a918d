"""Pretrained networks of torchvision, timm, Hugging Face and other packages, cut into ordered layer groups.

A backbone maps images ``[N, 3, H, W]``, or tokens of texts, to logits ``[N, num_classes]``. :func:`create` builds one.
For torchvision and timm, :func:`names` and :func:`describe` read tables that ship with Thawline, without building
networks, and without importing torch or the network's library.
"""

import difflib
import hashlib
import importlib.metadata
import re
from collections.abc import Iterable, Sequence
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
from thawline.backbones._registry import LIBRARIES, Library, libraries, library_of
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
    "modules_of",
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
"""Maximum number of characters of a name in a table."""
_SHORT = 60
"""Maximum number of characters of a short name."""


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
        weights: ``default`` (the library's, downloaded unless cached: torchvision's into ``TORCH_HOME``, timm's and
            Hugging Face's into ``HF_HOME``; for a folder, its own), ``starter`` (shipped with Thawline, for one
            architecture), ``none`` (random), or a file: ``.safetensors``, or a ``state_dict`` saved by ``torch.save``.
            For timm also a folder with the ``config.json`` and ``model.safetensors`` from the hub. Half-precision files
            are converted to single precision. A head in the file is ignored.
        image_size: side of the input images in pixels; by default that of the weights' training.
        max_length: maximum number of tokens of a text; by default that of its training, up to 512.
        seed: seed of all parameters with ``weights="none"``, except for the head, whose weights are initialised to 0.
            The global random state is unchanged.

    Raises:
        BackboneError: if there is no such backbone, or it does not support this image size; before anything expensive.
        WeightsError: if the weights are not available, damaged, or do not match. Random weights are never used instead.
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
    """The operations from layer group ``start`` up to, but excluding, layer group ``stop``.

    ``section(b, 0, d)`` is the *prefix* of depth ``d``: images ``[N, 3, H, W]`` to activations, whose shape beyond
    ``N`` depends on the architecture. ``section(b, d)`` is the *tail*: those activations to logits ``[N,
    num_classes]``. In evaluation mode, on the CPU in single precision, the parts in sequence are bit-equal to the
    whole.

    The section shares parameters, buffers and modules with the backbone, under their names. In evaluation mode it never
    modifies its input; in training mode an in-place dropout may. Create it after ``train_mode`` or ``eval()`` and after
    moving the module: code that reads ``self.training`` is traced in its current mode, and bare buffers on their
    current device.

    For texts, the input is tokens int64 ``[N, T]``, and activations are ``[N, T, H + 1]``, whose last channel is 1 for
    tokens and 0 for padding; after the last layer group they are pooled, ``[N, H]``.

    Args:
        backbone: any backbone.
        start: number of layer groups to skip at the input, ``0 <= start <= len(layer_groups)``.
        stop: number of layer groups after which the section ends, more than ``start``; ``None`` includes the head.
        exact: with False, operations that cannot affect the output are skipped (other tokens in the last block of a
            vision transformer); results then differ in the last bits, because of different matrix shapes.

    Raises:
        BackboneError: if ``start`` or ``stop`` is out of range.
    """
    (made,) = sections(backbone, [(start, stop)], exact=exact)
    return made


def sections(backbone: Backbone, spans: Sequence[tuple[int, int | None]], *, exact: bool = True) -> "Sequence[Section]":
    """Several sections of a backbone in its current mode, which is traced only once.

    Args:
        backbone: any backbone.
        spans: ``start`` and ``stop`` of each; see :func:`section`.
        exact: see :func:`section`.

    Raises:
        BackboneError: if ``start`` or ``stop`` is out of range.
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
    """Check that weights exist, without a download; at most a file's header is read.

    Raises:
        BackboneError: if there is no such backbone.
        WeightsError: if its library has no weights for it, none are shipped, or there is no such file.
    """
    _known(name).networks().check_weights(name, weights)


def names(pattern: str | None = None) -> list[str]:
    """Names of all backbones of the installed libraries, in order.

    Hugging Face's are not included: the hub's models are not listed.

    If a library's version differs from its table's, some names may be unusable.

    Args:
        pattern: only names that contain or match it (``vgg*``). A pattern with a dot also searches names with tags, the
            pretrained weights of an architecture (``timm/resnet50.``).
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

    From the tables this takes no time. For Hugging Face, and for a library whose version differs from its table's, the
    network itself is inspected, which takes up to a few seconds. For ``hf:…`` it also takes the network's memory, and
    the small files of a network on the hub are downloaded.

    Raises:
        BackboneError: if there is no such backbone, it cannot be used, or its library is not installed.
        WeightsError: if the small files of a network ``hf:…`` are not available.
    """
    library = _known(name)
    architecture, tag = _architecture_and_tag(library, name)
    info = catalogue.infos.get(architecture) if (catalogue := _current_catalogue(library)) else None
    if info is None:
        return library.networks().inspect(name)
    return replace(info, name=name, image_size=info.tags[tag], tags={}) if tag else info


def further_names() -> str:
    """How to name backbones that are not listed, one line per library."""
    lines = {
        "timm": "timm/NAME.TAG selects other pretrained weights: `thawline backbones timm/NAME.` lists them.",
        "transformers": "hf:FOLDER or hf:ORG/NAME[@REVISION] loads a text encoder or an image classifier from "
        "Hugging Face.",
    }
    install = " Requires: pip install 'thawline[{}]'."
    return "\n".join(
        lines[library.package] + ("" if library.is_installed() else install.format(library.extra))
        for library in libraries()
        if library.package in lines
    )


def kind_of(name: str) -> Literal["images", "texts"]:
    """The kind of a backbone's inputs. For ``hf:…`` its configuration decides, which is downloaded if necessary.

    Raises:
        BackboneError: if there is no such backbone.
        WeightsError: if the configuration is not available.
    """
    if _known(name).package != "transformers":
        return "images"
    from thawline.backbones import _huggingface

    return _huggingface.kind_of(name)


def modules_of(names: Iterable[str]) -> list[str]:
    """The modules, to be imported ahead of time, with which Thawline creates these backbones."""
    found = dict.fromkeys(library_of(name) for name in names)
    own = [library for library in found if library in LIBRARIES and library.is_installed()]
    return [module for library in own for module in (library.package, library.module)]


def label(name: str) -> str:
    """A backbone's label in tables and charts: its name, or its :func:`short_name` for a long path."""
    return short_name(name) if name.startswith("hf:") and len(name) > _LABEL else name


def short_name(name: str) -> str:
    """A name for files and studies: at most 60 letters, digits, ``.``, ``_`` and ``-``.

    ``resnet18`` is itself, ``timm/resnet50`` becomes ``timm-resnet50``; for a folder or a longer name, it is a part of
    it with 24 bits of a digest, so that the backbones of one study in practice never share a name.
    """
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    if not name.startswith("hf:"):
        plain = _without_signs(name)
        return plain if len(plain) <= _SHORT else f"{plain[: _SHORT - 7].strip('-._')}-{digest}"
    parts = [part for part in re.split(r"[/\\]+", name.removeprefix("hf:")) if part not in {"", ".", ".."}]
    *above, last = parts or [""]
    own = f"{above[-1]}-{last}" if above and last == "model" else last  # a common, uninformative name of a folder
    return f"{_without_signs(own)[:50].strip('-._') or 'model'}-{digest}"


def _without_signs(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def library_version(name: str) -> str:
    """The library of a backbone, with its installed version: ``torchvision 0.29.2``."""
    library = library_of(name)
    return f"{library.package} {importlib.metadata.version(library.package)}"


def depth_of(name: str) -> int:
    """Number of layer groups of a backbone, which is its largest freeze depth; as expensive as :func:`describe`.

    Raises:
        BackboneError: if there is no such backbone, or it cannot be used.
        WeightsError: if the small files of a network ``hf:…`` are not available.
    """
    return len(describe(name).layer_groups)


def preprocessing_of(
    name: str, *, weights: str = "default", image_size: int | None = None, max_length: int | None = None
) -> Preprocessing | TextPreprocessing:
    """The preprocessing of images or texts for a backbone, without building it or reading its weights.

    With ``image_size``, the size before cropping changes in proportion.

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
    """The table of a library, if it exists for the installed version."""
    catalogue = _catalogue.catalogue_of(library.package)
    return catalogue if catalogue.version == library.version() else None


def _names_of(library: Library) -> list[str]:
    """All usable names; without a table for its version, also unusable ones."""
    if not (library.is_listed and library.is_installed()):
        return []
    catalogue = _current_catalogue(library)
    return list(catalogue.infos) if catalogue else library.networks().list_names()


def _usable(library: Library) -> list[str]:
    """Its names without those that were unusable when its table was written."""
    refused = _catalogue.catalogue_of(library.package).refused
    return [name for name in _names_of(library) if name not in refused]


def _tagged(library: Library) -> list[tuple[str, str]]:
    """Every backbone with each of its tags."""
    if not library.is_installed():
        return []
    return [(info.name, tag) for info in _catalogue.catalogue_of(library.package).infos.values() for tag in info.tags]


def _known(name: str) -> Library:
    """The library of an existing backbone.

    Raises:
        BackboneError: if the library has no such backbone, cannot use it, or is not installed.
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
    """The nearest name, or how to name a folder or a model of the hub, which are not listed."""
    plain = name[3:] if name[:3].lower() == "hf:" else name
    of_huggingface = f" For a folder or a Hugging Face model, write 'hf:{plain}'."
    if plain != name or Path(name).expanduser().is_dir():
        return of_huggingface
    return _suggestion(name) or ("" if name.startswith("timm/") else of_huggingface)


def _suggestion(name: str) -> str:
    """The nearest name of any library, with or without the library's prefix."""
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
