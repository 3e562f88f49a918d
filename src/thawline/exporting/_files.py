"""Writing tensors to a file."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

__all__ = ["write_tensors"]


def write_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file for Hugging Face's libraries, with the permissions of the umask."""
    from safetensors.torch import save_file

    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666))
    mode = path.stat().st_mode & 0o777
    # clone: safetensors rejects tensors that share memory, such as tied weights.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    save_file(tensors, path, {"format": "pt"})
    path.chmod(mode)
