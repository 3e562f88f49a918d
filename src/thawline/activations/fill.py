"""Fill the store in one pass over the data, with a file per boundary.

A GPU computes larger batches than in training, while a thread checks and writes the previous ones.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from thawline.activations.store import ActivationKey, ActivationStore, ActivationWriter
from thawline.backbones import Backbone, sections
from thawline.exceptions import ActivationError
from thawline.training import Inputs, Runtime, batches, evaluation_order, is_out_of_memory
from thawline.training.inputs import places_of_tokens
from thawline.training.resident import forget_unused
from thawline.training.runtime import HostCopy, on_device, release_memory

__all__ = ["fill"]

_MOST_ROWS = 2048
"""Maximum number of images per block: activations after the last layers are so small that 64 MB would take minutes to
compute."""
_GPU_ROWS = 512
"""Images per GPU batch, if memory suffices: more are hardly faster."""
_AHEAD = 2
"""Number of GPU batches that may be waiting to be written while it computes."""


def fill(
    store: ActivationStore,
    backbone: Backbone,
    inputs: Inputs,
    epoch: int,
    keys: Mapping[int, ActivationKey],
    runtime: Runtime,
    *,
    batch_size: int,
    exact: bool = False,
    block_bytes: int = 64 * 2**20,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[int, str]:
    """Store the activations of ``inputs`` at every boundary in ``keys``; complete files are kept.

    All boundaries are filled in one pass, which resumes where a killed one stopped. If several processes need the same
    file, one computes it and the others wait.

    Args:
        store: the store.
        backbone: the backbone, with the weights in the keys; its module is left in evaluation mode.
        inputs: images or texts. Activations of texts are stored as a row per token, except after the last layer group.
        epoch: the epoch with the view of the images to store.
        keys: keys by boundary, which is at least 1.
        runtime: device and precision, matching the keys.
        batch_size: images per batch; a GPU computes more if memory suffices.
        exact: never compute larger batches, because the last bits depend on the batch size.
        block_bytes: maximum bytes per block of the largest activations; at most one block is recomputed after a killed
            pass.
        on_progress: called with (images or texts done, total).

    Returns:
        The boundaries that could not be stored, with the reason: no space, or values out of the type's range.
    """
    missing = {boundary: key for boundary, key in sorted(keys.items()) if not store.verify(key)}
    if not missing:
        return {}
    # Outside inference mode: tensors moved inside it can never be trained again.
    backbone.module.to(runtime.device).to(memory_format=runtime.memory_format).eval()
    with store.building(list(missing.values())), torch.inference_mode():
        missing = {boundary: key for boundary, key in missing.items() if not store.verify(key)}  # another was faster
        if not missing:
            return {}
        on_gpu = runtime.device.type == "cuda"
        at_once = max(batch_size, _GPU_ROWS) if on_gpu and not exact else batch_size
        filling = _Pass(store, backbone, inputs, epoch, missing, runtime, batch_size, at_once)
        return filling.run(block_bytes, on_progress)


class _Writing:
    """A thread that writes in order, with a bounded queue."""

    def __init__(self, ahead: int) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="thawline-store")
        self._ahead, self._waiting = ahead, deque[Future[None]]()

    def add(self, write: Callable[[], None]) -> None:
        """Add a write to the queue."""
        self._waiting.append(self._thread.submit(write))
        self.finish(self._ahead)

    def finish(self, ahead: int = 0) -> None:
        """Wait until at most this many writes are pending.

        Raises:
            Exception: the error of a failed write.
        """
        while len(self._waiting) > ahead:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Finish pending writes, and end the thread."""
        self._thread.shutdown()


class _Pass:
    """One pass over the data."""

    def __init__(
        self,
        store: ActivationStore,
        backbone: Backbone,
        inputs: Inputs,
        epoch: int,
        keys: Mapping[int, ActivationKey],
        runtime: Runtime,
        batch_size: int,
        at_once: int,
    ) -> None:
        self.store, self.inputs, self.epoch, self.keys = store, inputs, epoch, keys
        self.runtime, self.batch_size, self.at_once = runtime, batch_size, at_once
        self.writing = _Writing(_AHEAD if runtime.device.type == "cuda" else 0)
        self.deepest = len(backbone.layer_groups)
        self.sections = dict(zip(keys, sections(backbone, list(pairwise([0, *keys]))), strict=True))
        self.writers: dict[int, ActivationWriter] = {}
        self.refused: dict[int, str] = {}

    def run(self, block_bytes: int, on_progress: Callable[[int, int], None] | None) -> dict[int, str]:
        with ExitStack() as stack:
            stack.callback(self._close)
            stack.callback(self.writing.close)
            self._begin()
            total = len(self.inputs)
            done = self._go_back_to_common_row()
            block = self._rows_per_block(block_bytes)
            while done < total and self.writers:
                self._block(np.arange(done, min(done + block, total)))
                done = min(done + block, total)
                if on_progress is not None:
                    on_progress(done, total)
            self.writing.finish()
            for boundary in list(self.writers):
                self._guarded(boundary, self.store.publish)
                self.writers.pop(boundary, None)
        return self.refused

    def _begin(self) -> None:
        """Determine the shapes from two rows, and open a file for each boundary."""
        sample = np.arange(min(2, len(self.inputs)))
        for part, batch in batches(self.inputs, [sample], self.epoch, self.runtime):
            for boundary, activations in self._through(part, batch):
                key, starts = self.keys[boundary], self._starts(boundary)
                try:
                    self.writers[boundary] = self.store.writer(key, activations, int(starts[-1]))
                except ActivationError as error:
                    self.refused[boundary] = str(error)

    def _starts(self, boundary: int) -> np.ndarray:
        """The first row of each image or text in a boundary's file, and finally the number of rows."""
        lengths = self.inputs.lengths
        if lengths is not None and self._has_tokens(boundary):
            return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return np.arange(len(self.inputs) + 1)

    def _has_tokens(self, boundary: int) -> bool:
        """Whether a file has a row per token: after the last layer group a text has one row."""
        return self.inputs.lengths is not None and boundary < self.deepest

    def _go_back_to_common_row(self) -> int:
        """Rewind to the last row where all files end a block; passes for other boundaries used other blocks."""
        done = {b: int(np.searchsorted(self._starts(b), writer.rows_done)) for b, writer in self.writers.items()}
        while len(set(done.values())) > 1:
            least = min(done.values())
            for boundary, writer in self.writers.items():
                writer.rewind(int(self._starts(boundary)[least]))
                done[boundary] = int(np.searchsorted(self._starts(boundary), writer.rows_done))
        return min(done.values(), default=len(self.inputs))

    def _rows_per_block(self, block_bytes: int) -> int:
        """Rows per block, the same for all files, so that all end a block at the same row on a resume."""
        largest = max((writer.layout.bytes // len(self.inputs) for writer in self.writers.values()), default=1)
        rows = block_bytes // max(1, largest)
        if self.inputs.lengths is None:  # texts are sorted by length within a block: larger blocks need less padding
            rows = min(rows, _MOST_ROWS)
        return max(1, rows // self.batch_size) * self.batch_size

    def _block(self, rows: np.ndarray) -> None:
        if self.inputs.lengths is None:
            for _, passed in self._computed(rows):
                self._write(passed)
        else:
            self._write(self._by_length(rows, self.inputs.lengths))
        self.writing.add(self._end_block)

    def _end_block(self) -> None:
        for boundary in list(self.writers):
            self._guarded(boundary, ActivationWriter.end_block)

    def _computed(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, list[tuple[int, Tensor]]]]:
        """Yield the rows of each batch, and their activations at every boundary."""
        left = evaluation_order(self.inputs, self.at_once, rows)
        while left:
            try:
                for part, batch in batches(self.inputs, left, self.epoch, self.runtime):
                    yield from self._in_memory(part, batch)
                    left = left[1:]
            except Exception as error:
                if not self._may_shrink(error):
                    raise
            else:
                return
            self._shrink()  # memory ran out while a batch was prepared
            left = evaluation_order(self.inputs, self.at_once, np.concatenate(left))

    def _in_memory(self, rows: np.ndarray, batch: Tensor) -> Iterator[tuple[np.ndarray, list[tuple[int, Tensor]]]]:
        """Compute a batch in pieces that fit into memory, but not smaller than in training."""
        done = 0
        while done < len(rows):
            piece = slice(done, done + self.at_once)
            try:
                passed = self._through(rows[piece], batch[piece])
            except Exception as error:
                if not self._may_shrink(error):
                    raise
                passed = None
            if passed is not None:
                yield rows[piece], passed
                done += self.at_once
                continue
            self._shrink()

    def _may_shrink(self, error: Exception) -> bool:
        return is_out_of_memory(error) and self.at_once > self.batch_size

    def _shrink(self) -> None:
        """Compute smaller batches from now on; call it where no tensor of the failed one is referenced."""
        forget_unused()
        release_memory()
        self.at_once = max(self.batch_size, self.at_once // 2)

    def _by_length(self, rows: np.ndarray, lengths: np.ndarray) -> list[tuple[int, Tensor]]:
        """The activations of a block of texts, computed in batches of similar length, in the original order."""
        computed: list[np.ndarray] = []
        texts: dict[int, list[Tensor]] = {}
        for part, passed in self._computed(rows):
            computed.append(part)
            for boundary, activations in passed:
                sizes = lengths[part].tolist() if self._has_tokens(boundary) else [1] * len(part)
                texts.setdefault(boundary, []).extend(torch.split(activations, sizes))
        places = np.argsort(np.concatenate(computed))
        return [(boundary, torch.cat([found[i] for i in places])) for boundary, found in texts.items()]

    def _write(self, passed: list[tuple[int, Tensor]]) -> None:
        arriving = [(boundary, HostCopy(activations)) for boundary, activations in passed if boundary in self.writers]

        def write() -> None:
            for boundary, copy in arriving:
                if boundary in self.writers:
                    self._guarded(boundary, lambda writer: writer.write(copy.get()))  # noqa: B023  called at once

        self.writing.add(write)

    def _guarded(self, boundary: int, write: Callable[[ActivationWriter], None]) -> None:
        """Write; a full disk or values out of range end only this file."""
        try:
            write(self.writers[boundary])
        except (ActivationError, OSError) as error:
            self.writers.pop(boundary).abandon()
            self.refused[boundary] = str(error)

    def _through(self, rows: np.ndarray, batch: Tensor) -> list[tuple[int, Tensor]]:
        """The activations of a batch at every boundary, as stored rows."""
        passed = []
        for boundary, part in self.sections.items():
            with self.runtime.autocast():
                batch = part(batch)
            passed.append((boundary, self._tokens(rows, batch) if self._has_tokens(boundary) else batch))
        return passed

    def _tokens(self, rows: np.ndarray, batch: Tensor) -> Tensor:
        """A row per token ``[n, T, H + 1]``; the last channel is 1 for tokens and 0 for padding."""
        assert self.inputs.lengths is not None  # noqa: S101  or there are no tokens
        places = places_of_tokens(self.inputs.lengths[rows], batch.shape[1])
        return batch.flatten(0, 1)[on_device(places, batch.device)][:, :-1]

    def _close(self) -> None:
        """Close unpublished files, which the next pass resumes."""
        for writer in self.writers.values():
            writer.close()
