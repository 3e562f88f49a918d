"""From a text to the tokens that a network is given, in training and in serving alike.

Packaged models hold a copy of this file, so it needs nothing of Thawline: NumPy and the package ``tokenizers``.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TextTokenizer", "normalized"]


def normalized(text: str) -> str:
    """The text as it is trained on: in Unicode's form NFC, every run of whitespace one space, none at the ends.

    What differs in this way alone looks the same to a person, and comes from line breaks and keyboards rather than from
    what was meant; so it is the same text. Upper and lower case are kept apart: they carry meaning, and tokenizers that
    fold them do so themselves.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


class TextTokenizer:
    """Cuts texts into tokens, special ones included, at most ``max_length`` of them.

    Args:
        tokenizer: in the JSON format of the ``tokenizers`` library (``tokenizer.json``); its own padding and truncation
            are ignored.
        max_length: tokens of a text, special ones included, at most.

    Raises:
        ValueError: if that is no tokenizer, or ``max_length`` leaves no room beside the special tokens.
        ImportError: if the package ``tokenizers`` is not installed.
    """

    def __init__(self, tokenizer: str, max_length: int) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(tokenizer)
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"it is no tokenizer of the tokenizers library: {error}") from None
        special = self._tokenizer.num_special_tokens_to_add(False)
        if max_length <= special:
            raise ValueError(
                f"max_length must be more than the {special} special tokens of every text, but got {max_length}"
            )
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Token ids, int32 ``[length]`` of each text, after :func:`normalized`; on all cores where they are many."""
        return [ids for ids, _ in self.encode_and_tell(texts)]

    def encode_and_tell(self, texts: Sequence[str]) -> list[tuple[npt.NDArray[np.int32], bool]]:
        """The same, each with whether the text was longer and is cut."""
        encodings: list[Any] = self._tokenizer.encode_batch_fast([normalized(text) for text in texts])
        return [(np.array(encoding.ids, dtype=np.int32), bool(encoding.overflowing)) for encoding in encodings]
