"""Read the files in a tar."""

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO

__all__ = ["DAMAGED", "files_in"]

DAMAGED = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)
"""Errors of reading a truncated, damaged or invalid tar with any compression."""

_BLOCK = 1 << 20


def files_in(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield files in order, so that a compressed archive is read once. Skips links, devices and pipes.

    Python's module treats a truncated header, or one with a wrong checksum, as the end, and would silently lose the
    rest. So the rest must be at least one block of zeros; reading all of them also lets gzip verify its checksum.

    Raises:
        tarfile.TarError: if the archive is damaged, or another one follows it; or another of :data:`DAMAGED`.
    """
    for info in archive:
        if info.isfile():
            yield info
    stream: IO[bytes] = archive.fileobj  # type: ignore[assignment]  # it has none only when it was closed
    stream.seek(archive.offset)  # the last block read, which is still buffered if the archive is compressed
    ended = False
    while block := stream.read(_BLOCK):
        if block.strip(b"\0"):
            ended = False
            break
        ended = True
    if not ended:
        raise tarfile.ReadError(
            f"it is truncated or damaged after {archive.offset:,} bytes, or another archive follows there"
        )
