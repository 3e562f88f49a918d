"""Tokenize texts for a network, in training and in serving.

Packaged models contain a copy of this file, so it must not import Thawline, only NumPy and ``tokenizers``.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TextTokenizer", "normalized"]


def normalized(text: str) -> str:
    """Normalise a text: Unicode normal form NFC, runs of whitespace as one space, stripped.

    Texts that differ only in this look the same to a person: the differences come from line breaks and keyboards and
    have no meaning. Case is kept, because it has meaning, and tokenizers that fold it do so themselves.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


class TextTokenizer:
    """Splits texts into at most ``max_length`` tokens, including special ones.

    Args:
        tokenizer: in the JSON format of the ``tokenizers`` library (``tokenizer.json``); its own padding and truncation
            are ignored.
        max_length: maximum number of tokens of a text, including special ones.

    Raises:
        ValueError: if it is not a tokenizer, or ``max_length`` leaves no room besides the special tokens.
        ImportError: if the package ``tokenizers`` is not installed.
    """

    def __init__(self, tokenizer: str, max_length: int) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(tokenizer)
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"it is not a tokenizer of the tokenizers library: {error}") from None
        special = self._tokenizer.num_special_tokens_to_add(False)
        if max_length <= special:
            raise ValueError(
                f"max_length must be more than the {special} special tokens of every text, but got {max_length}"
            )
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Token ids, int32 ``[length]``, of each text after :func:`normalized`; uses all cores for many texts."""
        return [ids for ids, _ in self.encode_and_tell(texts)]

    def encode_and_tell(self, texts: Sequence[str]) -> list[tuple[npt.NDArray[np.int32], bool]]:
        """The same, each with a flag for truncation."""
        encodings: list[Any] = self._tokenizer.encode_batch_fast([normalized(text) for text in texts])
        return [(np.array(encoding.ids, dtype=np.int32), bool(encoding.overflowing)) for encoding in encodings]
