"""The section ``activations``."""

import re
from typing import Annotated

from pydantic import AfterValidator

from thawline.config.model import Model

__all__ = ["ActivationsConfig"]

_SIZE_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}


def _size(value: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)?(MB|GB|TB)", value):
        raise ValueError(f"must be a size such as 500MB, 20GB or 1.5TB, but got {value!r}")
    return value


class ActivationsConfig(Model):
    """Frozen activations, computed once and stored for all trials."""

    store: bool = True
    """Store activations where the plan estimates that it pays off; ``false`` recomputes them in every trial."""
    budget: Annotated[str, AfterValidator(_size)] | None = None
    """Maximum disk space for all stored activations, such as ``20GB``; by default half of the sum of their size and the
    free space. The least recently used are evicted to make room."""

    @property
    def budget_bytes(self) -> int | None:
        """The budget as a number of bytes; ``None`` for the default."""
        if self.budget is None:
            return None
        return int(float(self.budget[:-2]) * _SIZE_UNITS[self.budget[-2:]])
