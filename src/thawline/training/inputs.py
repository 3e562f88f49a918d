"""Batches for a network, or for its part after a layer group, prefetched where useful."""

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
"""Batches of texts that are sorted by length together: more means less padding, but less randomness."""
_AHEAD = 2
"""Batches read ahead while one is computed."""


class Inputs(Protocol):
    """Rows for training or evaluation: images, or activations of a network's first layer groups."""

    @property
    def labels(self) -> np.ndarray:
        """int64 ``[N]``, class indices."""

    @property
    def boundary(self) -> int:
        """Number of layer groups already applied to the rows; 0 for images."""

    @property
    def lengths(self) -> np.ndarray | None:
        """int32 ``[N]``, number of tokens of each text; ``None`` if all rows have the same size. Batches contain texts
        of similar length, to reduce padding."""

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray, epoch: int) -> Tensor:
        """Rows as stored, on the CPU or, if they are cached there, on the device. May run in another thread."""

    def prepare(self, read: Tensor, rows: np.ndarray, epoch: int) -> Tensor:
        """Turn the result of :meth:`read` into the network's input, on the device."""


def batches(
    inputs: Inputs, parts: Sequence[np.ndarray], epoch: int, runtime: Runtime, *, ahead: bool | None = None
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield each part's rows and the network's input, in order.

    On a GPU, a thread reads and pins the next parts while this one is computed. On a CPU, the thread would compete with
    the computation, so nothing is read ahead.
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
    """All labels, int64 ``[N]``, on a device; a copy, since a memory map is read-only."""
    return torch.from_numpy(np.array(inputs.labels)).to(device)


def batch_sizes(images: int, batch_size: int) -> list[int]:
    """Sizes of an epoch's batches. A single remaining image, which would break batch norm, joins the previous batch."""
    sizes = [batch_size] * (images // batch_size)
    rest = images % batch_size
    if rest == 1 and sizes:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes


def batch_order(inputs: Inputs, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Rows of each batch; the order depends only on seed and epoch, so a resumed epoch sees the same batches.

    Texts are shuffled, then sorted by length within groups of some dozens of batches, and these batches are shuffled:
    batches differ between epochs, and have little padding.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(inputs))
    ends = np.cumsum(batch_sizes(len(inputs), batch_size))[:-1]
    if inputs.lengths is not None:
        among = _SORTED_BATCHES * batch_size
        chunks = np.split(order, range(among, len(order), among))
        order = np.concatenate([chunk[np.argsort(inputs.lengths[chunk], kind="stable")] for chunk in chunks])
    # Ascending within the batch, to read memory maps sequentially; the order within a batch is irrelevant.
    parts = [np.sort(rows) for rows in np.split(order, ends)]
    return parts if inputs.lengths is None else [parts[i] for i in random.permutation(len(parts))]


def evaluation_order(inputs: Inputs, batch_size: int, rows: np.ndarray | None = None) -> list[np.ndarray]:
    """Rows, by default all, in batches in stored order; texts from shortest to longest."""
    order = np.arange(len(inputs)) if rows is None else rows
    if inputs.lengths is not None:
        order = order[np.argsort(inputs.lengths[order], kind="stable")]
    return np.split(order, range(batch_size, len(order), batch_size))


class Part(NamedTuple):
    """Rows of a batch that are computed together."""

    batch: np.ndarray
    """All rows of the batch."""
    rows: np.ndarray
    is_last: bool
    """Whether the optimizer steps after this part."""
    counts: bool
    """False if the rows belong to another process, see :meth:`Ranks.own`."""


def parts_of(batch: np.ndarray, accumulation: int, ranks: Ranks) -> list[Part]:
    """The parts of a batch that this process computes, of about equal size, with at least two rows if possible.

    Args:
        batch: rows of the batch.
        accumulation: number of parts per process, if there are enough rows.
        ranks: the processes among which the parts are divided.
    """
    count = max(1, min(accumulation * ranks.count, len(batch) // 2))
    parts = [batch[start:end] for start, end in pairwise(np.linspace(0, len(batch), count + 1).astype(int))]
    own, counts = ranks.own(parts), ranks.has_own(parts)
    return [Part(batch, rows, rows is own[-1], counts) for rows in own]


def places_of_tokens(lengths: np.ndarray, width: int) -> np.ndarray:
    """Indices of the tokens in flattened padded texts, int64 ``[sum(lengths)]``.

    Computed on the host: finding them in a mask on a GPU would require a sync.

    Args:
        lengths: length of each text, at most ``width``.
        width: padded length.
    """
    return np.concatenate([width * text + np.arange(length) for text, length in enumerate(lengths)])


def padded(rows: Sequence[np.ndarray]) -> Tensor:
    """Pad texts, int32 ``[tokens]`` each, with -1 to tokens int64 ``[n, T]``."""
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
        """Set uint8 images ``[N, S, S, 3]`` (a memory map, or images decoded per batch) and labels [N].

        With a ``key`` that identifies these images, a GPU caches as many as fit when they are read again.
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
        # Rows of a memory map are copied, because torch warns about read-only arrays.
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
        """Set the tokens of ``N`` texts and labels int64 ``[N]``."""
        # A copy, because torch warns about read-only arrays such as a memory map.
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
    """A split of the data as inputs of a network.

    Args:
        path: file of decoded images, of the list of those that are not kept decoded, or of tokenized texts.
        split: name of the split.
        preprocessing: preprocessing of images; ``None`` for texts, whose tokens need none.
        runtime: device and memory order.
        augmentation: augmentation of training images; by default none.
    """
    if preprocessing is None:
        from thawline.data import TokenizedTexts

        return TextInputs(*TokenizedTexts.open(path).split(split), runtime)
    # Undecoded images are decoded with as many threads as compute, which are idle meanwhile.
    images = DecodedImages.open(path, threads=torch.get_num_threads())
    key = (*identity_of(path), split) if images.are_kept else None
    return ImageInputs(*images.split(split), preprocessing, runtime, augmentation, key=key)
