"""Filling the store: one pass over the data, a file for every boundary that it crosses.

A GPU computes batches larger than those of training, while a thread checks and writes what it gave before.
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
from thawline.training.resident import keep_nothing
from thawline.training.runtime import HostCopy, on_device, release_memory

__all__ = ["fill"]

_MOST_ROWS = 2048
"""Images in a block: of what comes last in a network so little is stored that 64 MB would be minutes of work."""
_GPU_ROWS = 512
"""Images that a GPU computes at a time, if it has the memory: more hardly make it faster."""
_AHEAD = 2
"""Batches of a GPU that are on their way to the disk while it computes."""


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
    """Have the activations of ``inputs`` in the store at every boundary in ``keys``; what is there whole stays.

    All boundaries are filled in the same pass, which resumes where a killed one stopped. Of several processes that
    want the same, one computes and the others wait for it.

    Args:
        store: where to.
        backbone: with the weights that the keys name; its module is left in evaluation mode.
        inputs: images, or texts, whose activations are stored as a row for each token, except after the last layer
            group.
        epoch: whose view of the images is stored.
        keys: by boundary, at least 1.
        runtime: device and precision, as the keys say.
        batch_size: images at a time; a GPU takes more where it has the memory.
        exact: whether it may not, since the last bits depend on it.
        block_bytes: of the largest activations in a block, at most, which is what is computed again after a builder was
            killed.
        on_progress: called with (images or texts done, those in all).

    Returns:
        The boundaries that could not be stored, and why: no room, or numbers too large for the type.
    """
    missing = {boundary: key for boundary, key in sorted(keys.items()) if not store.verify(key)}
    if not missing:
        return {}
    # Outside inference mode: what is moved inside it can never be trained again.
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
    """A thread that writes in order, at most some batches behind."""

    def __init__(self, ahead: int) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="thawline-store")
        self._ahead, self._waiting = ahead, deque[Future[None]]()

    def add(self, write: Callable[[], None]) -> None:
        """Write after what was added before."""
        self._waiting.append(self._thread.submit(write))
        self.finish(self._ahead)

    def finish(self, ahead: int = 0) -> None:
        """Wait until no more than so many are unwritten.

        Raises:
            Exception: what a write failed with.
        """
        while len(self._waiting) > ahead:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Write what was begun, and end the thread."""
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
        """Learn the shapes from two rows, and open a file for each boundary."""
        sample = np.arange(min(2, len(self.inputs)))
        for part, batch in batches(self.inputs, [sample], self.epoch, self.runtime):
            for boundary, activations in self._through(part, batch):
                key, starts = self.keys[boundary], self._starts(boundary)
                try:
                    self.writers[boundary] = self.store.writer(key, activations, int(starts[-1]))
                except ActivationError as error:
                    self.refused[boundary] = str(error)

    def _starts(self, boundary: int) -> np.ndarray:
        """Where each image's or text's rows begin in the file of a boundary, and at last their number."""
        lengths = self.inputs.lengths
        if lengths is not None and self._has_tokens(boundary):
            return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return np.arange(len(self.inputs) + 1)

    def _has_tokens(self, boundary: int) -> bool:
        """Whether a file has a row for each token: after its last layer group a text has one row."""
        return self.inputs.lengths is not None and boundary < self.deepest

    def _go_back_to_common_row(self) -> int:
        """The last row at which all files have a block's end; builders of other boundaries had other blocks."""
        done = {b: int(np.searchsorted(self._starts(b), writer.rows_done)) for b, writer in self.writers.items()}
        while len(set(done.values())) > 1:
            least = min(done.values())
            for boundary, writer in self.writers.items():
                writer.rewind(int(self._starts(boundary)[least]))
                done[boundary] = int(np.searchsorted(self._starts(boundary), writer.rows_done))
        return min(done.values(), default=len(self.inputs))

    def _rows_per_block(self, block_bytes: int) -> int:
        """The same for all files, so that a resumed pass finds them all at the end of a block."""
        largest = max((writer.layout.bytes // len(self.inputs) for writer in self.writers.values()), default=1)
        rows = block_bytes // max(1, largest)
        if self.inputs.lengths is None:  # texts are sorted by length within a block: more of them pad less
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
        """The rows of each batch, and their activations at every boundary."""
        parts = evaluation_order(self.inputs, self.at_once, rows)
        for part, batch in batches(self.inputs, parts, self.epoch, self.runtime):
            yield from self._in_memory(part, batch)

    def _in_memory(self, rows: np.ndarray, batch: Tensor) -> Iterator[tuple[np.ndarray, list[tuple[int, Tensor]]]]:
        """A batch in as many pieces as there is memory for, none smaller than those of training."""
        done = 0
        while done < len(rows):
            piece = slice(done, done + self.at_once)
            try:
                passed = self._through(rows[piece], batch[piece])
            except Exception as error:
                if not is_out_of_memory(error) or self.at_once <= self.batch_size:
                    raise
                passed = None
            if passed is not None:
                yield rows[piece], passed
                done += self.at_once
                continue
            keep_nothing()
            release_memory()
            self.at_once = max(self.batch_size, self.at_once // 2)

    def _by_length(self, rows: np.ndarray, lengths: np.ndarray) -> list[tuple[int, Tensor]]:
        """The activations of a block of texts, computed in batches of alike lengths, and put back in order."""
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
        """Write; a disk that is full or numbers that do not fit end this file, and no other."""
        try:
            write(self.writers[boundary])
        except (ActivationError, OSError) as error:
            self.writers.pop(boundary).abandon()
            self.refused[boundary] = str(error)

    def _through(self, rows: np.ndarray, batch: Tensor) -> list[tuple[int, Tensor]]:
        """The activations of a batch at every boundary, rows as they are stored."""
        passed = []
        for boundary, part in self.sections.items():
            with self.runtime.autocast():
                batch = part(batch)
            passed.append((boundary, self._tokens(rows, batch) if self._has_tokens(boundary) else batch))
        return passed

    def _tokens(self, rows: np.ndarray, batch: Tensor) -> Tensor:
        """A row for each token ``[n, T, H + 1]``; the last channel tells where there is one, as lengths do."""
        assert self.inputs.lengths is not None  # noqa: S101  or there are no tokens
        places = places_of_tokens(self.inputs.lengths[rows], batch.shape[1])
        return batch.flatten(0, 1)[on_device(places, batch.device)][:, :-1]

    def _close(self) -> None:
        """Leave what was not published for the next builder to resume."""
        for writer in self.writers.values():
            writer.close()
