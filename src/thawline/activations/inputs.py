"""Stored activations as training inputs of the rest of a network."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thawline.activations.store import Activations
from thawline.training import Augmentation, Runtime
from thawline.training.inputs import places_of_tokens
from thawline.training.resident import BLOCK, Resident, copied, keep_rows
from thawline.training.runtime import on_device

__all__ = ["ActivationInputs", "TextActivationInputs"]

_RESIDENT = 256_000_000
"""Maximum bytes that a trial keeps in memory: activations after the last layer group nearly always fit."""


class ActivationInputs:
    """Rows of one split after a layer group, one file per view.

    Rows are cached on the GPU (in at most half of its free memory) as far as they fit, or in memory if they are small.
    Others are read from the file batch by batch.
    """

    def __init__(
        self,
        views: Sequence[Activations],
        labels: np.ndarray,
        boundary: int,
        runtime: Runtime,
        augmentation: Augmentation | None = None,
        lengths: np.ndarray | None = None,
        *,
        resident: int = _RESIDENT,
        block: int = BLOCK,
    ) -> None:
        """
        Args:
            views: the files of ``augmentation.stored_views``, in that order.
            labels: int64 ``[N]``.
            boundary: number of layer groups before them.
            runtime: the device.
            augmentation: augmentation of training; none by default.
            lengths: for texts, the number of tokens int32 ``[N]``, so that batches are the same as for tokens.
            resident: maximum bytes to keep in memory.
            block: bytes per copy.
        """
        self.labels, self.boundary, self.lengths = labels, boundary, lengths
        self._runtime = runtime
        self._augmentation = augmentation or Augmentation()
        fit = sum(view.bytes for view in views) <= resident
        self._views = [_Rows(view, runtime.device, in_memory=fit, block=block) for view in views]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: np.ndarray, epoch: int) -> Tensor:
        """Activations ``[n, …]``, as stored."""
        return self._views[self._augmentation.view_of(epoch) or 0].take(rows)

    def prepare(self, read: Tensor, rows: np.ndarray, epoch: int) -> Tensor:
        """The same on the device; values stored in half precision are converted back to single precision."""
        return _on_device(read, self._runtime.device)


class TextActivationInputs:
    """A text network's activations per token, at a boundary before its last layer group, where texts differ in length.

    The file has a row for each token of each text in turn, and none for padding.
    """

    def __init__(
        self, activations: Activations, lengths: np.ndarray, labels: np.ndarray, boundary: int, runtime: Runtime
    ) -> None:
        """Set rows ``[sum(lengths), H]``, the number of tokens of each text int32 ``[N]`` and labels int64 ``[N]``."""
        self.labels, self.boundary, self.lengths = labels, boundary, lengths
        self._starts = np.cumsum(lengths, dtype=np.int64) - lengths
        self._runtime = runtime
        fit = activations.bytes <= _RESIDENT
        self._rows = _Rows(activations, runtime.device, in_memory=fit, block=BLOCK)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: np.ndarray, epoch: int) -> Tensor:
        """``[n, T, H + 1]``, zero-padded; the last channel is 1 for tokens and 0 for padding."""
        lengths = self.lengths[rows]
        tokens = self._rows.take(
            np.concatenate([np.arange(self._starts[row], self._starts[row] + self.lengths[row]) for row in rows])
        )
        shape = (len(rows), int(lengths.max()))
        places = places_of_tokens(lengths, shape[1])
        activations = tokens.new_zeros(shape[0] * shape[1], tokens.shape[1] + 1)
        activations[on_device(places, tokens.device)] = torch.nn.functional.pad(tokens, (0, 1), value=1.0)
        return activations.view(*shape, -1)

    def prepare(self, read: Tensor, rows: np.ndarray, epoch: int) -> Tensor:
        """The same on the device; values stored in half precision are converted back to single precision."""
        return _on_device(read, self._runtime.device)


class _Rows:
    """Rows of a file: cached on a GPU as far as they fit, or in memory if requested, or read on demand."""

    def __init__(self, activations: Activations, device: torch.device, *, in_memory: bool, block: int) -> None:
        self._activations = activations
        self._kept: Resident | None = None
        count, read = len(activations), activations.physical
        if device.type == "cuda":
            self._kept = keep_rows(activations.identity, count, read, device)
        elif in_memory:
            self._kept = Resident(copied(count, read(slice(0, 1)), read, device, block=block))

    def take(self, rows: np.ndarray) -> Tensor:
        """Some rows, ``[n, …]``, in the original type and memory format."""
        if self._kept is None:
            return self._activations.rows(rows)
        return self._activations.arrange(self._kept.take(rows, self._activations.physical))


def _on_device(read: Tensor, device: torch.device) -> Tensor:
    moved = read.to(device, non_blocking=True)
    return moved.float() if moved.dtype == torch.float16 else moved
