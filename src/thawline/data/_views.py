"""Compute a network's view of an image file, after checking that it is unchanged since the scan."""

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
    """A file is missing, changed or cannot be decoded; ``str(error)`` has its name and the reason."""


@dataclass(frozen=True)
class View:
    """Preprocessing of each image; see :func:`thawline.data.images.seen`."""

    resize_size: int
    crop_size: int
    interpolation: str
    crop_mode: str
    max_pixels: int

    def of(self, path: Path, digest: str) -> npt.NDArray[np.uint8]:
        """The pixels of a file, uint8 ``[S, S, 3]``.

        Args:
            path: path of the file.
            digest: expected digest of its content.

        Raises:
            ChangedImageError: if it has changed.
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
    """The error for changed files, given their messages."""
    return DataError(
        f"{counted(len(changed), 'image')} changed since the folder was read, the first: "
        f"{changed[0]}. Start again to read the folder again."
    )
