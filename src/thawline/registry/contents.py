"""The contents of a package: allowed files, their digests, and how MLflow would load it.

To Thawline, a package is only data. Before any of its files is used, they are compared with the digests recorded at
packaging, and no code in it is run (ADR 30).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from thawline.data import DataKind
from thawline.exceptions import RegistryError
from thawline.registry.names import COLUMNS

__all__ = ["DIGEST_TAG", "Description", "check_files", "describe", "record_digests", "refusal"]

DIGEST_TAG = "thawline.digest"
"""Tag of a logged model and of versions registered from it: SHA-256 of its list of digests."""

_LIST = "digests.json"
"""The list: SHA-256 of every other file of the package, by its path."""
_NOTE = "registered_model_meta"
_FILES = re.compile(
    r"MLmodel|conda\.yaml|python_env\.yaml|requirements\.txt|(serving_)?input_example\.json|(pyfunc|servable)\.py"
    r"|code/thawline_(images|networks|servable|tokenizing)_[0-9a-f]{12}\.py"
    r"|artifacts/(model\.(json|safetensors|pt2|onnx)|(sample|reference)\.safetensors|tokenizer\.json)"
)
_LOADER = "mlflow.pyfunc.loaders.code_model"
_CODE = ("pyfunc.py", "servable.py")
"""Files that MLflow runs to load a package, in any folder; earlier versions of Thawline wrote the second."""


@dataclass(frozen=True)
class Description:
    """The contents of a package's ``MLmodel``."""

    kind: DataKind
    metadata: Mapping[str, Any]
    """Metadata written by Thawline: classes, calibration, origin of the model."""


def describe(text: str | bytes, name: str) -> Description:
    """Read an ``MLmodel``, which must have the form that Thawline writes.

    Args:
        text: the file.
        name: name of the model, for messages.

    Raises:
        RegistryError: if the model was not packaged by Thawline: it has another loader or flavor, or a pickle.
    """
    try:
        found = yaml.safe_load(text)
        loading = found["flavors"]["python_function"]
        columns = [column["name"] for column in json.loads(found["signature"]["inputs"])]
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError):
        raise refusal(name, "its MLmodel does not describe a classifier of images or texts") from None
    if others := sorted(map(str, found["flavors"].keys() - {"python_function"})):
        raise refusal(name, f"it has the flavor {', '.join(others)}")
    if loading.get("loader_module") != _LOADER:
        raise refusal(name, f"it has its own loader, {loading.get('loader_module')!r}")
    if pickle := loading.get("python_model"):
        raise refusal(name, f"it is a pickle ({pickle})")
    code = str(loading.get("model_code_path"))
    if re.split(r"[/\\]", code)[-1] not in _CODE:
        raise refusal(name, f"MLflow would load it with {code}")
    kinds = [kind for kind, column in COLUMNS.items() if columns == [column]]
    if not kinds:
        raise refusal(name, f"its input columns are {', '.join(map(str, columns)) or 'none'}")
    return Description(kinds[0], found.get("metadata") or {})


def record_digests(folder: Path) -> str:
    """Write the list of digests into a package, and return the digest of the list for the registry."""
    files = sorted(_files(folder).items())
    text = json.dumps({name: _digest(path) for name, path in files if name != _LIST}, indent=1)
    (folder / _LIST).write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def check_files(folder: Path, name: str, recorded: str | None) -> bool:
    """Compare every file of a package with its recorded digest; nothing is run, and only the list is parsed.

    Args:
        folder: folder of the package.
        name: name of the model, for messages.
        recorded: the version's tag :data:`DIGEST_TAG`; ``None`` if it has none.

    Returns:
        Whether there were digests: packages of earlier versions have none.

    Raises:
        RegistryError: if a file is unknown, missing or has changed.
    """
    files = _files(folder)
    if strange := sorted(path for path, file in files.items() if not _is_known(path) or not _is_plain(file)):
        raise refusal(name, f"it contains {', '.join(map(repr, strange[:5]))}")
    if _LIST not in files:
        if recorded is not None:
            raise _changed(name, f"{_LIST} is missing")
        return False
    listed = files[_LIST].read_bytes()
    if recorded is not None and hashlib.sha256(listed).hexdigest() != recorded:
        raise _changed(name, f"{_LIST} has changed")
    try:
        expected: dict[str, str] = dict(json.loads(listed))
    except (ValueError, TypeError):
        raise _changed(name, f"{_LIST} is not a list of digests") from None
    del files[_LIST]
    for what, paths in (
        ("is missing", expected.keys() - files.keys()),
        ("was added", files.keys() - expected.keys()),
        ("has changed", {path for path in files.keys() & expected.keys() if _digest(files[path]) != expected[path]}),
    ):
        if paths:
            raise _changed(name, f"{', '.join(sorted(paths)[:5])} {what}")
    return True


def refusal(name: str, reason: str) -> RegistryError:
    """The error for packages that Thawline did not write."""
    return RegistryError(
        f"{name} was not packaged by Thawline: {reason}. Thawline reads only its own packages, and runs no code in "
        "them. If you trust the author of this model, serve it with `mlflow models serve`; otherwise name a version "
        "that `thawline search` registered."
    )


def _changed(name: str, reason: str) -> RegistryError:
    return RegistryError(
        f"{name} is not what was registered: {reason}. Restore its files from a backup, or return to another version: "
        f"thawline rollback {re.split('[@/]', name)[0]}"
    )


def _files(folder: Path) -> dict[str, Path]:
    """Files of a package by their path in it.

    Files that MLflow adds when it loads a package in place are ignored: a note of its version, and the bytecode of
    imported modules. Thawline reads neither.
    """
    found = {}
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if (path.is_symlink() or not path.is_dir()) and not {"__pycache__", _NOTE} & set(inside.parts):
            found[inside.as_posix()] = path
    return found


def _is_known(path: str) -> bool:
    return path == _LIST or _FILES.fullmatch(path) is not None


def _is_plain(file: Path) -> bool:
    """Whether it is a regular file: a link may lead anywhere, and a pipe may never end."""
    return file.is_file() and not file.is_symlink()


def _digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
