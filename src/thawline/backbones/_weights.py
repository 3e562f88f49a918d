"""Load pretrained tensors from any source into a network, without a fallback to random weights."""

import contextlib
import hashlib
import pickle
import re
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from thawline.backbones._vision import models
from thawline.exceptions import WeightsError

__all__ = [
    "ALTERNATIVES",
    "STARTER",
    "STARTER_FILE",
    "check_weights",
    "digest_of",
    "first_line",
    "hub_file",
    "load_into",
    "read_file",
    "read_weights",
    "starter_metadata",
]

STARTER = "mobilenet_v3_small"
"""The architecture whose weights are shipped with Thawline."""
STARTER_FILE = Path(__file__).parent / "starter" / f"{STARTER}.safetensors"

# Networks trained with auxiliary heads (GoogLeNet, Inception) are built without them: they are only for training from
# scratch, and add outputs.
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
# Files of torchvision's DenseNets still have the names of 2017, with a dot that module names may no longer contain.
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)")
ALTERNATIVES = (
    "Or use your own file (--weights FILE), the weights shipped with Thawline "
    f"(--backbone {STARTER} --weights starter), or random weights (--weights none)."
)
"""Advice if a library's own weights are not available; the end of an error message."""


def read_weights(name: str, weights: str, default: models.WeightsEnum) -> dict[str, Tensor]:
    """The tensors selected by ``weights``: ``default``, ``starter`` or a file.

    Raises:
        WeightsError: if they are not available, damaged, or would run code when loaded.
    """
    if weights == "default":
        return _read_default(name, default)
    if weights == "starter":
        starter_metadata(name)
        return read_file(STARTER_FILE)
    return read_file(Path(weights).expanduser())


def check_weights(name: str, weights: str) -> None:
    """Check that weights exist, without reading them or using the network.

    Raises:
        WeightsError: if no starter weights are shipped for ``name``, or there is no such file.
    """
    if weights == "starter":
        starter_metadata(name)
    elif weights not in ("default", "none"):
        _check_file(Path(weights).expanduser())


def starter_metadata(name: str) -> dict[str, str]:
    """Metadata in the file of shipped weights.

    Raises:
        WeightsError: if none are shipped for the architecture ``name``, or the file is damaged.
    """
    if name != STARTER:
        raise WeightsError(
            f"Starter weights are shipped for {STARTER!r} only, but the backbone is {name!r}. "
            f"Use --backbone {STARTER}, or --weights default."
        )
    try:
        with safe_open(STARTER_FILE, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"The shipped weights {STARTER_FILE} cannot be read: {error}. Reinstall Thawline.") from None


def _read_default(name: str, default: models.WeightsEnum) -> dict[str, Tensor]:
    file = hub_file(default)
    if file.exists():
        _check_hash(file)
    try:
        # torch.hub announces downloads on stdout, which --json uses.
        with contextlib.redirect_stdout(sys.stderr):
            state = default.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    except (URLError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"The pretrained weights of {name!r} could not be downloaded: {first_line(error)}.\n"
            f"Put the file {file.name} (from {default.url}) into {file.parent} (TORCH_HOME sets its place). "
            f"{ALTERNATIVES}"
        ) from None
    return dict(_tensors_in(state, file))


def hub_file(default: models.WeightsEnum) -> Path:
    """Path of torchvision's weights in torch.hub's cache, whether cached or not; ``TORCH_HOME`` sets its place."""
    return Path(torch.hub.get_dir()) / "checkpoints" / str(default.url).rpartition("/")[2]


def _check_hash(file: Path) -> None:
    """Compare a cached file with the hash in its name, as PyTorch only does for downloads."""
    promised = re.search(r"-([0-9a-f]{8,})\.", file.name)
    if promised is None:
        return
    with file.open("rb") as content:
        actual = hashlib.file_digest(content, "sha256").hexdigest()
    if not actual.startswith(promised[1]):
        raise WeightsError(
            f"The SHA-256 of {file} must start with {promised[1]}, but it is {actual[:16]}…: the file is damaged or "
            "a different one. Delete it to download it again."
        )


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise WeightsError(
            f"Weights must be 'default', 'starter', 'none' or a file, but there is no file {str(file)!r}."
        )


def read_file(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, ``.safetensors`` or a ``state_dict`` saved by ``torch.save``, by name.

    Raises:
        WeightsError: if there is no such file, it is damaged, or loading it would run code.
    """
    _check_file(file)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and zipfile.is_zipfile(file):
            raise WeightsError(
                f"{file} contains more than tensors, and loading it could run any code. Save only its state_dict: "
                "torch.save(model.state_dict(), FILE), or as safetensors."
            ) from None
        raise WeightsError(_torn(file, error)) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(_torn(file, error)) from None
    return dict(_tensors_in(state, file))


def _torn(file: Path, error: Exception) -> str:
    return f"{file} must be .safetensors or a state_dict saved by torch.save, but cannot be read: {first_line(error)}."


def _tensors_in(state: Any, file: Path) -> Iterable[tuple[str, Tensor]]:
    """The named tensors of a loaded file, unwrapped from the containers of training scripts."""
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{file} must contain a state_dict (names to tensors), but has a {type(state).__name__}.")
    wrapped = all(name.startswith("module.") for name in state)  # by DataParallel
    for name, value in state.items():
        yield name.removeprefix("module.") if wrapped else name, value


def load_into(module: nn.Module, head: str, tensors: dict[str, Tensor], source: str) -> None:
    """Copy all pretrained tensors except the head's into ``module``, converted to its precision.

    Args:
        module: a module with a new head, which is unchanged.
        head: path of the last layer.
        tensors: tensors by torchvision's names; any head is ignored.
        source: description of the tensors, for the error.

    Raises:
        WeightsError: with all tensors that are missing, unexpected or of another shape.
    """
    wanted = {name: value for name, value in module.state_dict().items() if not name.startswith(f"{head}.")}
    given = {
        _OLD_DENSENET.sub(r"\1\2", name): value
        for name, value in tensors.items()
        if not name.startswith((f"{head}.", *_AUXILIARY))
    }
    if isinstance(module, models.VisionTransformer):
        given = _with_interpolated_positions(module, given)
    shapes = [
        f"{name}: {list(value.shape)} instead of {list(wanted[name].shape)}"
        for name, value in given.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    fitting = {name: value for name, value in given.items() if name not in wanted or value.shape == wanted[name].shape}
    # Only the root's version, which MNASNet requires. Without versions of its parts, batch-norms of old files may lack
    # their counter, and vision transformers accept the old names of their linear layers.
    fitting = _StateDict(fitting)
    fitting._metadata = {"": module.state_dict()._metadata[""]}  # type: ignore[attr-defined]
    missing, unexpected = module.load_state_dict(fitting, strict=False)
    missing = [name for name in missing if name in wanted and name not in given]
    problems = [
        f"  {title} ({len(names)}): {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
        for title, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise WeightsError(f"The weights {source} do not match a {type(module).__name__}:\n" + "\n".join(problems))


class _StateDict(dict[str, Tensor]):
    """A dict with the versions of the modules (``_metadata``), like ``module.state_dict()``."""

    _metadata: dict[str, Any]


def _with_interpolated_positions(module: models.VisionTransformer, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Position embeddings interpolated from another image size to the module's."""
    if "encoder.pos_embedding" not in given:
        return given
    try:
        return dict(models.vision_transformer.interpolate_embeddings(module.image_size, module.patch_size, dict(given)))
    except ValueError as error:
        raise WeightsError(f"encoder.pos_embedding cannot be interpolated: {error}") from None


def digest_of(module: nn.Module, head: str, *, pooling: str = "mean") -> str:
    """Sixteen hex digits of all parameters and buffers except the head's: names, types, shapes and bytes.

    Includes a text network's pooling, because it affects the features; the mean, once the only one, is omitted.
    """
    digest = hashlib.sha256()
    if pooling != "mean":
        digest.update(f"pooled by {pooling}\n".encode())
    for name, value in sorted(module.state_dict().items()):
        if not name.startswith(f"{head}."):
            digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def first_line(error: BaseException) -> str:
    """The first line of an error's message without its full stop; the error's type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
