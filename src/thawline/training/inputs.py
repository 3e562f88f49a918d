"""What a network, or its part after a layer group, is fed with: a batch at a time, prefetched where it pays."""

from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from thawline.backbones import Preprocessing
from thawline.data import DecodedImages, Split, StreamedImages
from thawline.training.augmentation import Augmentation
from thawline.training.ranks import Ranks
from thawline.training.resident import Resident, identity_of, keep_rows
from thawline.training.runtime import Runtime

if TYPE_CHECKING:
    from thawline.data import Tokens

__all__ = [
    "ImageInputs",
    "Inputs",
    "TextInputs",
    "batch_order",
    "batch_sizes",
    "batches",
    "evaluation_order",
    "labels_on",
    "open_inputs",
    "padded",
    "parts_of",
    "places_of_tokens",
]

_SORTED_BATCHES = 32
"""Batches of texts that are sorted by length together: more pad less, and leave less to chance."""
_AHEAD = 2
"""Batches that are read while one is computed."""


class Inputs(Protocol):
    """Rows that a network is trained on or measured with: images, or the activations of its first layer groups."""

    @property
    def labels(self) -> np.ndarray:
        """int64 ``[N]``, indices of classes."""

    @property
    def boundary(self) -> int:
        """Layer groups that the rows have gone through already; 0 for images."""

    @property
    def lengths(self) -> np.ndarray | None:
        """int32 ``[N]``, tokens of each text; ``None`` where all rows are of one size. Batches are made of texts of
        about one length, so that little of them is padding."""

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray, epoch: int) -> Tensor:
        """Rows as they are stored, on the CPU or, if they are kept there, on the device. May run in another thread."""

    def prepare(self, read: Tensor, rows: np.ndarray, epoch: int) -> Tensor:
        """What :meth:`read` gave, on the device, as the network takes it."""


def batches(
    inputs: Inputs, parts: Sequence[np.ndarray], epoch: int, runtime: Runtime, *, ahead: bool | None = None
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """The rows of each part and the tensor for the network, in order.

    On a GPU the next parts are read and pinned by a thread while this one is computed. On a CPU that thread would take
    its time from the computation, so nothing is read ahead.
    """
    on_gpu = runtime.device.type == "cuda"
    if not (on_gpu if ahead is None else ahead):
        for rows in parts:
            yield rows, inputs.prepare(inputs.read(rows, epoch), rows, epoch)
        return

    def read(rows: np.ndarray) -> Tensor:
        tensor = inputs.read(rows, epoch)
        return tensor.pin_memory() if on_gpu and tensor.device.type == "cpu" else tensor

    with ThreadPoolExecutor(1, thread_name_prefix="thawline-read") as reader:
        waiting: list[Future[Tensor]] = [reader.submit(read, rows) for rows in parts[:_AHEAD]]
        for i, rows in enumerate(parts):
            tensor = waiting.pop(0).result()
            if i + _AHEAD < len(parts):
                waiting.append(reader.submit(read, parts[i + _AHEAD]))
            yield rows, inputs.prepare(tensor, rows, epoch)


def labels_on(inputs: Inputs, device: torch.device) -> Tensor:
    """All labels, int64 ``[N]``, on a device; a copy, since those of a memory map are read-only."""
    return torch.from_numpy(np.array(inputs.labels)).to(device)


def batch_sizes(images: int, batch_size: int) -> list[int]:
    """Sizes of an epoch's batches. A last batch of a single image would break batch norm: it joins the one before."""
    sizes = [batch_size] * (images // batch_size)
    rest = images % batch_size
    if rest == 1 and sizes:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes


def batch_order(inputs: Inputs, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Rows of each batch; the order depends on seed and epoch alone, so a resumed epoch sees the same.

    Texts are shuffled, then sorted by length among some dozens of batches at a time, and these batches shuffled: each
    epoch has others, and none is padded much.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(inputs))
    ends = np.cumsum(batch_sizes(len(inputs), batch_size))[:-1]
    if inputs.lengths is not None:
        among = _SORTED_BATCHES * batch_size
        chunks = np.split(order, range(among, len(order), among))
        order = np.concatenate([chunk[np.argsort(inputs.lengths[chunk], kind="stable")] for chunk in chunks])
    # Ascending within the batch: a memory map is read forwards, and a batch's order means nothing.
    parts = [np.sort(rows) for rows in np.split(order, ends)]
    return parts if inputs.lengths is None else [parts[i] for i in random.permutation(len(parts))]


def evaluation_order(inputs: Inputs, batch_size: int, rows: np.ndarray | None = None) -> list[np.ndarray]:
    """Rows, by default all, in batches as they lie; texts from the shortest to the longest."""
    order = np.arange(len(inputs)) if rows is None else rows
    if inputs.lengths is not None:
        order = order[np.argsort(inputs.lengths[order], kind="stable")]
    return np.split(order, range(batch_size, len(order), batch_size))


class Part(NamedTuple):
    """Rows of a batch that are computed at once."""

    batch: np.ndarray
    """All rows of the batch."""
    rows: np.ndarray
    is_last: bool
    """Whether the optimizer steps after them."""
    counts: bool
    """False if they are another process's, see :meth:`Ranks.own`."""


def parts_of(batch: np.ndarray, accumulation: int, ranks: Ranks) -> list[Part]:
    """The parts of a batch that this process computes: of about equal size, and none of a single row unless the batch
    is one.

    Args:
        batch: its rows.
        accumulation: parts that each process computes, if there are rows enough.
        ranks: the processes that share them out.
    """
    count = max(1, min(accumulation * ranks.count, len(batch) // 2))
    parts = [batch[start:end] for start, end in pairwise(np.linspace(0, len(batch), count + 1).astype(int))]
    own, counts = ranks.own(parts), ranks.has_own(parts)
    return [Part(batch, rows, rows is own[-1], counts) for rows in own]


def places_of_tokens(lengths: np.ndarray, width: int) -> np.ndarray:
    """Where the tokens of padded texts lie, int64 ``[sum(lengths)]``, if one text follows the other.

    Counted on the host: a GPU that is to find them in a mask is waited for.

    Args:
        lengths: of each text, at most ``width``.
        width: to which they are padded.
    """
    return np.concatenate([width * text + np.arange(length) for text, length in enumerate(lengths)])


def padded(rows: Sequence[np.ndarray]) -> Tensor:
    """Tokens int64 ``[n, T]`` of texts, int32 ``[tokens]`` each, with -1 after the end of each."""
    tokens = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
    for place, row in zip(tokens, rows, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(tokens)


class ImageInputs:
    """Decoded images, normalised and augmented on the device."""

    boundary = 0
    lengths: np.ndarray | None = None

    def __init__(
        self,
        images: np.ndarray | StreamedImages,
        labels: np.ndarray,
        preprocessing: Preprocessing,
        runtime: Runtime,
        augmentation: Augmentation | None = None,
        *,
        key: Hashable | None = None,
    ) -> None:
        """Take uint8 images ``[N, S, S, 3]`` (a memory map, or what is decoded a batch at a time) and labels [N].

        With a ``key`` that tells these images from all others, a GPU keeps those that fit, once they are read again.
        """
        self.images, self.labels = images, labels
        self._key = key if runtime.device.type == "cuda" else None
        self._resident: Resident | None = None
        self._read = 0
        self._runtime = runtime
        self._augmentation = augmentation or Augmentation()
        self._mean = torch.tensor(preprocessing.mean, device=runtime.device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocessing.std, device=runtime.device).view(1, 3, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: np.ndarray, epoch: int) -> Tensor:
        """uint8 ``[n, S, S, 3]``."""
        if self._key is not None and self._resident is None and self._read >= len(self):
            self._resident = keep_rows(self._key, len(self), self._from_host, self._runtime.device)
        self._read += len(rows)
        return self._from_host(rows) if self._resident is None else self._resident.take(rows, self._from_host)

    def _from_host(self, rows: np.ndarray | slice) -> Tensor:
        # Rows of a memory map are copied, because torch would warn that it cannot guard what is read-only.
        return torch.from_numpy(np.require(self.images[rows], requirements="W"))

    def prepare(self, read: Tensor, rows: np.ndarray, epoch: int) -> Tensor:
        """Normalised fp32 ``[n, 3, S, S]``."""
        pixels = read.to(self._runtime.device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
        view = self._augmentation.view_of(epoch)
        pixels = self._augmentation.apply(pixels, rows, view)
        normalised = self._augmentation.erase((pixels - self._mean) / self._std, rows, view)
        return normalised.contiguous(memory_format=self._runtime.memory_format)


class TextInputs:
    """Tokens of texts, padded to the longest of a batch."""

    boundary = 0

    def __init__(self, tokens: "Tokens", labels: np.ndarray, runtime: Runtime) -> None:
        """Take the tokens of ``N`` texts and labels int64 ``[N]``."""
        # A copy: a memory map is read-only, and torch would warn that it cannot guard it.
        self.labels, self.lengths = np.array(labels), tokens.lengths
        self._tokens, self._runtime = tokens, runtime

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: np.ndarray, epoch: int) -> Tensor:
        """int64 ``[n, T]``, -1 after the end of each text."""
        return padded(self._tokens.rows(rows))

    def prepare(self, read: Tensor, rows: np.ndarray, epoch: int) -> Tensor:
        """The same on the device."""
        return read.to(self._runtime.device, non_blocking=True)


def open_inputs(
    path: Path,
    split: Split,
    preprocessing: Preprocessing | None,
    runtime: Runtime,
    augmentation: Augmentation | None = None,
) -> ImageInputs | TextInputs:
    """A split of the data as a network takes it.

    Args:
        path: file of decoded images, of the list of those that are not kept decoded, or of tokenized texts.
        split: which.
        preprocessing: of images; ``None`` for texts, whose tokens need none.
        runtime: device and memory order.
        augmentation: of training images; by default none.
    """
    if preprocessing is None:
        from thawline.data import TokenizedTexts

        return TextInputs(*TokenizedTexts.open(path).split(split), runtime)
    # Images that are not kept decoded are decoded by as many threads as compute, which wait meanwhile.
    images = DecodedImages.open(path, threads=torch.get_num_threads())
    key = (*identity_of(path), split) if images.are_kept else None
    return ImageInputs(*images.split(split), preprocessing, runtime, augmentation, key=key)
