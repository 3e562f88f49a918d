"""The files in a tar."""

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO

__all__ = ["DAMAGED", "files_in"]

DAMAGED = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)
"""What reading a tar that is cut off, damaged or none raises, however it is compressed."""

_BLOCK = 1 << 20


def files_in(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """One after the other, so that a compressed archive is read once. Links, devices and pipes are left out.

    Python's module takes a header that is cut off, or has a wrong checksum, for the end, and what lies behind it would
    be lost without a word. So the rest must be blocks of zeros, at least one, as an end is written; reading them to the
    last one also makes gzip compare its checksum.

    Raises:
        tarfile.TarError: if the archive is damaged, or another one follows it; or another of :data:`DAMAGED`.
    """
    for info in archive:
        if info.isfile():
            yield info
    stream: IO[bytes] = archive.fileobj  # type: ignore[assignment]  # it has none only when it was closed
    stream.seek(archive.offset)  # the last block that was read: of a compressed archive it is still in a buffer
    ended = False
    while block := stream.read(_BLOCK):
        if block.strip(b"\0"):
            ended = False
            break
        ended = True
    if not ended:
        raise tarfile.ReadError(
            f"it is cut off or damaged behind {archive.offset:,} bytes, or another archive follows there"
        )
