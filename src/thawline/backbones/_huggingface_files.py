"""Hugging Face's files, from a folder, the hub's cache, or the hub. Only tensors and JSON are read."""

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
"""A repository, optionally with a branch, tag or commit."""

CONVERT = (
    "Convert other formats with transformers (model.save_pretrained(FOLDER)) and use that folder: hf:FOLDER. Or "
    "train from random weights (--weights none)."
)

WAYS_OUT = (
    "If the hub is unreachable, download it elsewhere (`hf download ID --local-dir FOLDER`) and use the folder: "
    "hf:FOLDER."
)


def remembered(answer: Callable[[str], _Answer]) -> Callable[[str], _Answer]:
    """Cache the results for a few names; for a folder, until a file in it changes."""
    kept = lru_cache(maxsize=32)(lambda name, _files: answer(name))

    @wraps(answer)
    def answered(name: str) -> _Answer:
        return kept(name, _files_of(name))

    return answered


def _files_of(name: str) -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of the files in a folder; empty for the hub, which has its own cache."""
    folder, is_local = source_of(name)
    if not (is_local and folder.is_dir()):
        return ()
    with os.scandir(folder) as entries:
        return tuple(sorted((entry.name, entry.stat().st_mtime_ns, entry.stat().st_size) for entry in entries))


def json_beside(name: str, file: str) -> Any:
    """The content of a JSON file beside the weights; ``None`` if there is no such file.

    Raises:
        WeightsError: if it cannot be read, or if neither the hub nor its cache can tell whether it exists.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError

    source, is_local = source_of(name)
    try:
        # Any other value is the cache's marker for a file that the hub does not have.
        path: Any = source / file if is_local else try_to_load_from_cache(str(source), file, revision=_revision(name))
        if path is None:
            with _quiet():
                path = hf_hub_download(str(source), file, revision=_revision(name))
        if not isinstance(path, str | Path) or not Path(path).is_file():
            return None
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RemoteEntryNotFoundError:  # a response of the hub, and also an OSError
        return None
    except (OSError, ValueError, HfHubHTTPError) as error:  # including an unreachable hub
        raise WeightsError(
            f"The {file} of {name!r}, which defines the pooling of tokens, could not be loaded: "
            f"{first_line(error)}. {'' if is_local else WAYS_OUT}".rstrip()
        ) from error


def config_of(name: str) -> Any:
    """A copy of the configuration, which the caller may modify."""
    return copy.deepcopy(_read_config(name))


@remembered
def _read_config(name: str) -> Any:
    from transformers import AutoConfig

    check_weights(name, "none")
    return load(AutoConfig, name)


def check_weights(name: str, weights: str) -> None:
    """Check that weights exist, without reading them or using the network.

    Raises:
        WeightsError: if ``weights`` is neither ``default`` nor ``none``, or the folder does not contain them.
    """
    if weights not in ("default", "none"):
        raise WeightsError(
            f"The weights of {name!r} must be 'default' (those of its folder or hub page) or 'none' (random), but got "
            f"{weights!r}. Use the folder that contains them instead: hf:FOLDER."
        )
    source, is_local = source_of(name)
    if is_local and not (source / "config.json").is_file():
        raise WeightsError(f"The folder of {name!r} must have a config.json, but there is no {source / 'config.json'}.")
    if is_local and weights == "default" and not any(source.glob("*.safetensors")):
        raise WeightsError(f"The folder of {name!r} must have a .safetensors file, but none is in {source}. {CONVERT}")


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
    path = Path(given).expanduser()  # here ./a/b becomes a/b
    hub_id = _HUB_ID.fullmatch(given)
    if path.exists() or hub_id is None:
        return path, True
    return Path(hub_id[1]), False


def _revision(name: str) -> str | None:
    """The branch, tag or commit at the end of the name of a hub model."""
    hub_id = _HUB_ID.fullmatch(_given(name))
    return hub_id[2] if hub_id is not None else None


def _given(name: str) -> str:
    return name.removeprefix(library_of(name).prefix)


def load(library: Any, name: str, *, is_whole: Callable[[Any], bool] = lambda _: True, **arguments: Any) -> Any:
    """Load files from a folder, or from the hub (from its cache if possible), with a class of transformers.

    Args:
        library: a class such as ``AutoConfig``.
        name: name of the backbone.
        is_whole: returns whether the cached result is complete; otherwise the hub is used.
        arguments: arguments of ``from_pretrained``.

    Raises:
        WeightsError: with alternatives.
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
            except (OSError, ValueError):  # a ValueError if a tokenizer's files are not cached
                if is_local:
                    raise
            return load()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if is_local:
            raise WeightsError(f"The files of {name!r} cannot be used: {first_line(error)}.") from error
        if "cannot be loaded with `safetensors`" in str(error):
            raise WeightsError(
                f"{name!r} has no .safetensors file on the hub, and other formats could run code. {CONVERT}"
            ) from error
        raise WeightsError(
            f"There is no folder {str(source)!r}, and {name!r} could not be downloaded from Hugging Face's hub: "
            f"{first_line(error)}. {WAYS_OUT}"
        ) from error


@contextmanager
def _without_conversion() -> Iterator[None]:
    """Prevent transformers from asking a public service to convert a repository without safetensors."""
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
    """Silence reports and progress bars of transformers and its hub, for the output of --json."""
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
