"""What a network is shown of an image file, if the file still is what the scan saw."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thawline.data import images
from thawline.data.contract import content_digest, counted
from thawline.exceptions import DataError

__all__ = ["ChangedImageError", "View", "refused"]


class ChangedImageError(Exception):
    """A file that is gone, holds something else or cannot be decoded; ``str(error)`` names it and says which."""


@dataclass(frozen=True)
class View:
    """What is made of each image; see :func:`thawline.data.images.seen`."""

    resize_size: int
    crop_size: int
    interpolation: str
    crop_mode: str
    max_pixels: int

    def of(self, path: Path, digest: str) -> npt.NDArray[np.uint8]:
        """The pixels of a file, uint8 ``[S, S, 3]``.

        Args:
            path: of the file.
            digest: that its content has.

        Raises:
            ChangedImageError: if it is not what it was.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ChangedImageError(f"{path}: {error.strerror}") from None
        if content_digest(data) != digest:
            raise ChangedImageError(f"{path}: its content has changed")
        try:
            return images.seen(
                data,
                max_pixels=self.max_pixels,
                resize_size=self.resize_size,
                crop_size=self.crop_size,
                interpolation=self.interpolation,
                crop_mode=self.crop_mode,
            )
        except images.BadImage as error:
            raise ChangedImageError(f"{path}: {error}") from None


def refused(changed: Sequence[str]) -> DataError:
    """The error for files that are not what they were, each with what is wrong with it."""
    are, they_were = ("is", "it was") if len(changed) == 1 else ("are", "they were")
    return DataError(
        f"{counted(len(changed), 'image')} {are} not what {they_were} when the folder was read, the first: "
        f"{changed[0]}. Start again: the folder is then read again."
    )
