"""The files in a tar."""

import io
import tarfile
from collections.abc import Iterator

__all__ = ["files_in"]


def files_in(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """One after the other, so that a compressed archive is read once. Links, devices and pipes are left out.

    Raises:
        tarfile.TarError: if the archive is damaged. Python's module takes a header that is cut off, or has a
            wrong checksum, for the end: whatever lies behind it would be lost without a word.
    """
    for info in archive:
        if info.isfile():
            yield info
    if isinstance(archive.fileobj, io.BufferedReader):  # compressed archives have a checksum, and cannot go back
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) not in (b"", bytes(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError(f"it is cut off or damaged behind {archive.offset:,} bytes")
