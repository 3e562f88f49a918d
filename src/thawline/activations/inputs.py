"""Stored activations as what a tail is trained on."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thawline.activations.store import Activations
from thawline.training import Augmentation, Runtime

__all__ = ["ActivationInputs"]

_RESIDENT_IN_MEMORY = 256_000_000
"""Bytes that a trial keeps in memory: what lies behind all layer groups nearly always fits."""


class ActivationInputs:
    """Rows of one split behind a border, one file for each view.

    Where they fit, they are kept on the GPU (in at most half of its free memory), or, if they are small, in memory;
    else they are read from the file a batch at a time.
    """

    def __init__(
        self,
        views: Sequence[Activations],
        labels: np.ndarray,
        boundary: int,
        runtime: Runtime,
        augmentation: Augmentation | None = None,
    ) -> None:
        """Take the files of ``augmentation.stored_views``, in that order, and labels int64 ``[N]``."""
        self.labels, self.boundary = labels, boundary
        self._views, self._runtime = views, runtime
        self._augmentation = augmentation or Augmentation()
        self._resident: list[Tensor] | None = None
        if sum(view.bytes for view in views) <= _room(runtime.device):
            self._resident = [view.physical(slice(None)).to(runtime.device) for view in views]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: np.ndarray, epoch: int) -> Tensor:
        """Activations ``[n, …]``, as they are stored."""
        view = self._augmentation.view_of(epoch) or 0
        if self._resident is not None:
            indices = torch.from_numpy(rows).to(self._runtime.device)
            return self._views[view].arrange(self._resident[view][indices])
        return self._views[view].rows(rows)

    def prepare(self, read: Tensor, rows: np.ndarray, epoch: int) -> Tensor:
        """The same on the device; what was shortened to half precision is single precision again."""
        moved = read.to(self._runtime.device, non_blocking=True)
        return moved.float() if moved.dtype == torch.float16 else moved


def _room(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free // 2)
    return _RESIDENT_IN_MEMORY
