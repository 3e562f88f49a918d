"""Stored activations as what a tail is trained on."""

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
"""Bytes that a trial keeps in memory: what comes after all layer groups nearly always fits."""


class ActivationInputs:
    """Rows of one split after a layer group, one file for each view.

    As far as they fit, they are kept on the GPU (in at most half of its free memory), or, if they are small, in memory;
    else they are read from the file a batch at a time.
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
            boundary: number of layer groups that they lie behind.
            runtime: device.
            augmentation: of training; none by default.
            lengths: of texts, the number of their tokens int32 ``[N]``, so that batches are those that tokens would be
                in.
            resident: bytes that are kept in memory, at most.
            block: bytes that are copied there at a time.
        """
        self.labels, self.boundary, self.lengths = labels, boundary, lengths
        self._runtime = runtime
        self._augmentation = augmentation or Augmentation()
        fit = sum(view.bytes for view in views) <= resident
        self._views = [_Rows(view, runtime.device, in_memory=fit, block=block) for view in views]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: np.ndarray, epoch: int) -> Tensor:
        """Activations ``[n, …]``, as they are stored."""
        return self._views[self._augmentation.view_of(epoch) or 0].take(rows)

    def prepare(self, read: Tensor, rows: np.ndarray, epoch: int) -> Tensor:
        """The same on the device; what was shortened to half precision is single precision again."""
        return _on_device(read, self._runtime.device)


class TextActivationInputs:
    """A text network's activations for each token, at a boundary before its last layer group: texts differ in length.

    The file has a row for each token of all texts, one text after the other, and none for padding.
    """

    def __init__(
        self, activations: Activations, lengths: np.ndarray, labels: np.ndarray, boundary: int, runtime: Runtime
    ) -> None:
        """Take rows ``[sum(lengths), H]``, the tokens of each text int32 ``[N]`` and labels int64 ``[N]``."""
        self.labels, self.boundary, self.lengths = labels, boundary, lengths
        self._starts = np.cumsum(lengths, dtype=np.int64) - lengths
        self._runtime = runtime
        fit = activations.bytes <= _RESIDENT
        self._rows = _Rows(activations, runtime.device, in_memory=fit, block=BLOCK)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: np.ndarray, epoch: int) -> Tensor:
        """``[n, T, H + 1]``, zeros after the end of each text; the last channel is 1 where there is a token."""
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
        """The same on the device; what was shortened to half precision is single precision again."""
        return _on_device(read, self._runtime.device)


class _Rows:
    """Rows of a file: on a GPU as far as they fit, in memory if they are to be, else read when they are asked for."""

    def __init__(self, activations: Activations, device: torch.device, *, in_memory: bool, block: int) -> None:
        self._activations = activations
        self._kept: Resident | None = None
        count, read = len(activations), activations.physical
        if device.type == "cuda":
            self._kept = keep_rows(activations.identity, count, read, device)
        elif in_memory:
            self._kept = Resident(copied(count, read(slice(0, 1)), read, device, block=block))

    def take(self, rows: np.ndarray) -> Tensor:
        """Some rows, ``[n, …]``, in the type and memory order that they were computed in."""
        if self._kept is None:
            return self._activations.rows(rows)
        return self._activations.arrange(self._kept.take(rows, self._activations.physical))


def _on_device(read: Tensor, device: torch.device) -> Tensor:
    moved = read.to(device, non_blocking=True)
    return moved.float() if moved.dtype == torch.float16 else moved
