"""Tensors to a file."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

__all__ = ["write_tensors"]


def write_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file as HuggingFace's libraries read it, which may be read as the umask says."""
    from safetensors.torch import save_file

    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666))
    mode = path.stat().st_mode & 0o777
    # clone: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    save_file(tensors, path, {"format": "pt"})
    path.chmod(mode)
