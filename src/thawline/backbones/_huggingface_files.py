"""HuggingFace's files: of a folder, of the hub's cache, or fetched from the hub. Only tensors and JSON are read."""

import copy
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial, wraps
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from thawline.backbones._registry import library_of
from thawline.backbones._weights import first_line
from thawline.exceptions import WeightsError

__all__ = [
    "CONVERT",
    "WAYS_OUT",
    "check_weights",
    "config_of",
    "is_cached",
    "json_beside",
    "load",
    "remembered",
    "source_of",
]

_Answer = TypeVar("_Answer")

_HUB_ID = re.compile(r"([A-Za-z0-9_][\w.-]*(?:/[A-Za-z0-9_][\w.-]*)?)(?:@([\w.-]+))?")
"""Of a repository, and of one of its branches, tags or commits."""

CONVERT = (
    "Convert another format with transformers (model.save_pretrained(FOLDER)) and name that folder: hf:FOLDER. Or "
    "train from random weights (--weights none)."
)

WAYS_OUT = (
    "Where the hub cannot be reached, download it elsewhere (`hf download ID --local-dir FOLDER`) and name the folder: "
    "hf:FOLDER."
)


def remembered(answer: Callable[[str], _Answer]) -> Callable[[str], _Answer]:
    """Remember the answers about a few names; those about a folder until a file in it is another one."""
    kept = lru_cache(maxsize=32)(lambda name, _files: answer(name))

    @wraps(answer)
    def answered(name: str) -> _Answer:
        return kept(name, _files_of(name))

    return answered


def _files_of(name: str) -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of the files in a folder; none of what the hub holds, which has a cache of its own."""
    folder, is_local = source_of(name)
    if not (is_local and folder.is_dir()):
        return ()
    with os.scandir(folder) as entries:
        return tuple(sorted((entry.name, entry.stat().st_mtime_ns, entry.stat().st_size) for entry in entries))


def json_beside(name: str, file: str) -> Any:
    """What a JSON file beside the weights says; ``None`` if there is no such file.

    Raises:
        WeightsError: if it cannot be read, or if neither the hub nor its cache says whether there is one.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError

    source, is_local = source_of(name)
    try:
        # What is neither a path nor None is the cache's word for a file that the hub does not have.
        path: Any = source / file if is_local else try_to_load_from_cache(str(source), file, revision=_revision(name))
        if path is None:
            with _quiet():
                path = hf_hub_download(str(source), file, revision=_revision(name))
        if not isinstance(path, str | Path) or not Path(path).is_file():
            return None
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RemoteEntryNotFoundError:  # the hub's own answer, and an OSError too
        return None
    except (OSError, ValueError, HfHubHTTPError) as error:  # a hub that is out of reach among them
        raise WeightsError(
            f"The {file} of {name!r}, which says how the network pools its tokens, could not be loaded: "
            f"{first_line(error)}. {'' if is_local else WAYS_OUT}".rstrip()
        ) from error


def config_of(name: str) -> Any:
    """A copy of the configuration, which the caller may change."""
    return copy.deepcopy(_read_config(name))


@remembered
def _read_config(name: str) -> Any:
    from transformers import AutoConfig

    check_weights(name, "none")
    return load(AutoConfig, name)


def check_weights(name: str, weights: str) -> None:
    """Refuse weights that are not there, without reading them or asking the network.

    Raises:
        WeightsError: if ``weights`` is neither ``default`` nor ``none``, or the folder does not hold them.
    """
    if weights not in ("default", "none"):
        raise WeightsError(
            f"The weights of {name!r} must be 'default' (those of its folder or hub page) or 'none' (random), but got "
            f"{weights!r}. Name the folder that holds them instead: hf:FOLDER."
        )
    source, is_local = source_of(name)
    if is_local and not (source / "config.json").is_file():
        raise WeightsError(f"The folder of {name!r} must hold a config.json, but there is no {source / 'config.json'}.")
    if is_local and weights == "default" and not any(source.glob("*.safetensors")):
        raise WeightsError(f"The folder of {name!r} must hold a .safetensors, but there is none in {source}. {CONVERT}")


def is_cached(name: str) -> bool:
    """Whether configuration and weights are in the folder, or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    source, is_local = source_of(name)
    if is_local:
        return (source / "config.json").is_file() and any(source.glob("*.safetensors"))
    names = ("config.json", "model.safetensors")
    return all(isinstance(try_to_load_from_cache(str(source), each, revision=_revision(name)), str) for each in names)


def source_of(name: str) -> tuple[Path, bool]:
    """The folder or hub id that a name stands for, and whether it is a folder."""
    given = _given(name)
    path = Path(given).expanduser()  # which no longer tells ./a/b from a/b
    hub_id = _HUB_ID.fullmatch(given)
    if path.exists() or hub_id is None:
        return path, True
    return Path(hub_id[1]), False


def _revision(name: str) -> str | None:
    """The branch, tag or commit that the name of a network of the hub ends with."""
    hub_id = _HUB_ID.fullmatch(_given(name))
    return hub_id[2] if hub_id is not None else None


def _given(name: str) -> str:
    return name.removeprefix(library_of(name).prefix)


def load(library: Any, name: str, *, is_whole: Callable[[Any], bool] = lambda _: True, **arguments: Any) -> Any:
    """Load the files of a folder, or of the hub (from its cache if possible), with a class of transformers.

    Args:
        library: such as ``AutoConfig``.
        name: of the backbone.
        is_whole: whether the cache held all of it; if not, the hub is asked.
        arguments: of ``from_pretrained``.

    Raises:
        WeightsError: with the ways out.
    """
    source, is_local = source_of(name)
    if not is_local and (revision := _revision(name)):
        arguments["revision"] = revision
    load = partial(library.from_pretrained, str(source), trust_remote_code=False, **arguments)
    try:
        with _quiet(), _without_conversion():
            try:
                found = load(local_files_only=True)
                if is_local or is_whole(found):
                    return found
            except (OSError, ValueError):  # a ValueError where a tokenizer's files are not in the cache
                if is_local:
                    raise
            return load()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if is_local:
            raise WeightsError(f"The files of {name!r} cannot be used: {first_line(error)}.") from error
        if "cannot be loaded with `safetensors`" in str(error):
            raise WeightsError(
                f"{name!r} has no .safetensors on the hub, and other files could run code. {CONVERT}"
            ) from error
        raise WeightsError(
            f"There is no folder {str(source)!r}, and {name!r} could not be downloaded from HuggingFace's hub: "
            f"{first_line(error)}. {WAYS_OUT}"
        ) from error


@contextmanager
def _without_conversion() -> Iterator[None]:
    """Keep transformers from asking a public service to convert a repository that has no safetensors."""
    switch = "DISABLE_SAFETENSORS_CONVERSION"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Take the reports and progress bars of transformers and its hub off the terminal, where --json writes."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    levels, bars = (logging.get_verbosity(), hub_logging.get_verbosity()), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(levels[0])
        hub_logging.set_verbosity(levels[1])
        if bars:
            logging.enable_progress_bar()
