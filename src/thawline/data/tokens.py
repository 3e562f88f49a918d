"""Tokenize once: all texts of a manifest in one memory-mapped file, shared by all processes of a search."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thawline.data._arrays import allocate, build, digest, locked, open_array, rows_digest, split_slices
from thawline.data.contract import Manifest
from thawline.data.splits import Split
from thawline.data.text import texts_of
from thawline.data.tokenizer import TextTokenizer
from thawline.exceptions import DataError

__all__ = ["TokenizedTexts", "Tokens", "tokenized"]

_VERSION = 1  # increment when the results of tokenizer.py change
_BATCH = 1000  # texts between two progress reports: some 50 ms
_HALVES = 2  # int32 values per int64


@dataclass(frozen=True, eq=False)
class Tokens:
    """The concatenated token ids of ``N`` texts of different lengths."""

    ids: npt.NDArray[np.int32]
    """int32 ``[tokens of all texts]``, including those of other splits."""
    offsets: npt.NDArray[np.int64]
    """int64 ``[N + 1]``: text ``i`` is ``ids[offsets[i]:offsets[i + 1]]``."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Number of tokens of each text, int32 ``[N]``, including special ones."""
        return np.diff(self.offsets).astype(np.int32)

    def rows(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> list[npt.NDArray[np.int32]]:
        """The ids of these texts, int32 ``[length]`` each, as views that are read from disk on access."""
        return [self.ids[self.offsets[index] : self.offsets[index + 1]] for index in indices]


@dataclass(frozen=True, eq=False)
class TokenizedTexts:
    """The texts of a manifest as tokens, in the order of its rows, read from disk on access.

    Pickling only stores the path, so passing it to another process is cheap.
    """

    path: Path
    tokens: Tokens
    labels: npt.NDArray[np.int64]
    """int64 ``[N]``."""
    splits: dict[Split, slice]
    """The rows of each split."""
    cut: int
    """Number of truncated texts."""

    @classmethod
    def open(cls, path: Path) -> "TokenizedTexts":
        """Open a result of :func:`tokenized`; takes milliseconds for any size.

        Raises:
            DataError: if the file is missing, truncated, or was changed after it was built.
        """
        opened = _open(path, None)
        if opened is None:
            raise DataError(f"{path} is missing or damaged. Start the search again to rebuild it.")
        return opened

    def split(self, split: Split) -> tuple[Tokens, npt.NDArray[np.int64]]:
        """Tokens of ``n`` texts and labels ``[n]`` of one split: views, nothing is copied."""
        rows = self.splits[split]
        return Tokens(self.tokens.ids, self.tokens.offsets[rows.start : rows.stop + 1]), self.labels[rows]

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenizedTexts.open, (self.path,)


def tokenized(
    manifest: Manifest,
    *,
    tokenizer: str,
    max_length: int,
    cache_dir: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> TokenizedTexts:
    """Tokenize every text of the manifest once; later calls, in any process, open the same file.

    The file is named after the manifest's digest, the tokenizer and the length, and built and protected as in
    :func:`thawline.data.decoded`.

    Args:
        manifest: manifest of a table of texts, from :func:`thawline.data.scan`.
        tokenizer: in the JSON format of the ``tokenizers`` library (``tokenizer.json``).
        max_length: maximum number of tokens of a text, including special ones.
        cache_dir: folder of all such files; created if missing.
        on_progress: called with (texts tokenized, total); not called if the file exists.

    Raises:
        DataError: if the table has changed since the scan, there is not enough disk space, ``tokenizers`` is not
            installed, or the tokenizer cannot be used.
    """
    if find_spec("tokenizers") is None:
        raise DataError("Texts require the package tokenizers: pip install 'thawline[huggingface]'")
    described = [manifest.digest, tokenizer, max_length, _VERSION, version("tokenizers")]
    path = cache_dir.absolute() / f"{digest(described)}.npy"
    expected = {"rows": rows_digest(manifest), "texts": len(manifest.rows)}
    with locked(path):
        opened = _open(path, expected)
        if opened is None:
            try:
                cutter = TextTokenizer(tokenizer, max_length)
            except ValueError as error:
                raise DataError(f"The tokenizer cannot be used: {error}.") from None
            build(path, partial(_write, manifest, cutter, expected, on_progress))
            opened = TokenizedTexts.open(path)
    return opened


def _write(
    manifest: Manifest,
    tokenizer: TextTokenizer,
    expected: dict[str, Any],
    on_progress: Callable[[int, int], None] | None,
    target: Path,
) -> dict[str, Any]:
    """Tokenize all texts into the file; returns its description.

    The file is one int32 array: N + 1 offsets and N labels, each an int64 in two values, then all ids.
    """
    texts = texts_of(manifest, manifest.rows)
    rows: list[npt.NDArray[np.int32]] = []
    cut = 0
    for start in range(0, len(texts), _BATCH):
        for ids, was_longer in tokenizer.encode_and_tell(texts[start : start + _BATCH]):
            rows.append(ids)
            cut += was_longer
        if on_progress is not None:
            on_progress(len(rows), len(texts))
    lengths = [len(ids) for ids in rows]
    head = _HALVES * (2 * len(rows) + 1)
    shape = [head + sum(lengths)]
    array = allocate(target, np.int32, shape, what="The tokens", remedy="choose a smaller backbone.max_length")
    numbers = array[:head].view(np.int64)
    numbers[: len(rows) + 1] = np.concatenate([[0], np.cumsum(lengths)])
    numbers[len(rows) + 1 :] = [row.label for row in manifest.rows]
    for ids, (start, stop) in zip(rows, pairwise(numbers[: len(rows) + 1]), strict=True):
        array[head + start : head + stop] = ids
    array.flush()  # type: ignore[attr-defined]  # a memmap
    return {
        **expected,
        "dtype": "int32",
        "shape": shape,
        "cut": cut,
        "splits": {split: [rows.start, rows.stop] for split, rows in split_slices(manifest).items()},
    }


def _open(path: Path, expected: dict[str, Any] | None) -> TokenizedTexts | None:
    """The file if it is complete, unchanged and has the expected rows, if given; else None."""
    opened = open_array(path, expected)
    if opened is None:
        return None
    array, description = opened[0].view(np.ndarray), opened[1]  # creating slices of a memmap is slow
    if "texts" not in description:  # decoded images
        return None
    count = description["texts"]
    head = _HALVES * (2 * count + 1)
    numbers = array[:head].view(np.int64)
    splits: dict[Split, slice] = {split: slice(*rows) for split, rows in description["splits"].items()}
    tokens = Tokens(array[head:], numbers[: count + 1])
    return TokenizedTexts(path, tokens, numbers[count + 1 :], splits, description["cut"])
