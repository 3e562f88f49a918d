"""Write image files byte by byte, so that every pixel is known without the tested reader."""

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["jpeg2000", "pfm", "png", "png_part", "pnm", "tiff"]

Pixels = npt.NDArray[np.number]
_FORMATS = {3: "H", 4: "I"}


def packed(pixels: Pixels, bits: int, order: str) -> bytes:
    """Rows of samples of ``bits`` bits, each row starting at a byte."""
    if bits % 8 == 0:
        return np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(order))).tobytes()
    rows = np.asarray(pixels).reshape(len(pixels), -1)
    digits = ("".join(f"{int(value):0{bits}b}" for value in row) for row in rows)
    padded = (row.ljust(-(-len(row) // 8) * 8, "0") for row in digits)
    return b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in padded)


def tiff(
    pixels: Pixels,
    photometric: int,
    *,
    bits: int | None = None,
    order: str = "<",
    planar: int = 1,
    deflated: bool = False,
    rows_per_strip: int | None = None,
    extra: int | None = None,
    colours: Pixels | None = None,
) -> bytes:
    """A TIFF of ``[H, W]`` or ``[H, W, C]``; ``bits`` if fewer than in the array's type."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    planes = [pixels[..., c] for c in range(channels)] if planar == 2 else [pixels]
    step = rows_per_strip or height
    bits = bits or pixels.dtype.itemsize * 8
    strips = [packed(plane[y : y + step], bits, order) for plane in planes for y in range(0, height, step)]
    if deflated:
        strips = [zlib.compress(strip) for strip in strips]
    tags = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * channels),
        259: (3, [8 if deflated else 1]),
        262: (3, [photometric]),
        277: (3, [channels]),
        278: (4, [step]),
        284: (3, [planar]),
        339: (3, [{"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]] * channels),
    }
    if extra is not None:
        tags[338] = (3, [extra])
    if colours is not None:
        tags[320] = (3, [int(value) for value in colours.ravel()])
    out = bytearray((b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 0))
    offsets = []
    for strip in strips:
        offsets.append(len(out))
        out += strip + b"\0" * (len(strip) % 2)
    tags |= {273: (4, offsets), 279: (4, [len(strip) for strip in strips])}
    entries = b""
    for tag, (kind, values) in sorted(tags.items()):
        content = struct.pack(f"{order}{len(values)}{_FORMATS[kind]}", *values)
        if len(content) > 4:
            content, place = struct.pack(f"{order}I", len(out)), content
            out += place
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + content.ljust(4, b"\0")
    out[4:8] = struct.pack(f"{order}I", len(out))
    return bytes(out) + struct.pack(f"{order}H", len(tags)) + entries + b"\0" * 4


def png_part(name: bytes, content: bytes, *, checksum: int | None = None) -> bytes:
    """A chunk, optionally with a wrong ``checksum``."""
    right = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", right if checksum is None else checksum)


def png(pixels: Pixels, colour_type: int, bits: int, *parts: bytes) -> bytes:
    """A PNG of ``[H, W]`` or ``[H, W, C]`` with additional chunks between header and pixels."""
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    typed = pixels.astype(np.uint16 if bits == 16 else np.uint8)
    rows = b"".join(b"\0" + packed(row[None], bits, ">") for row in typed)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            png_part(b"IHDR", header),
            *parts,
            png_part(b"IDAT", zlib.compress(rows)),
            png_part(b"IEND", b""),
        ]
    )


def pnm(pixels: Pixels, maximum: int, *, plain: bool = False) -> bytes:
    """A PGM of ``[H, W]`` or a PPM of ``[H, W, 3]``, in binary or in plain text."""
    height, width = pixels.shape[:2]
    kind = (5 if pixels.ndim == 2 else 6) - (3 if plain else 0)
    values = pixels.ravel()
    binary = values.astype(np.uint8 if maximum < 256 else ">u2").tobytes()
    return b"P%d %d %d %d\n" % (kind, width, height, maximum) + (
        b" ".join(b"%d" % value for value in values) if plain else binary
    )


def pfm(pixels: Pixels, order: str) -> bytes:
    """A grey PFM of ``[H, W]``, with rows from bottom to top."""
    height, width = pixels.shape
    scale = b"-1.0" if order == "<" else b"1.0"
    return b"Pf\n%d %d\n%s\n" % (width, height, scale) + pixels[::-1].astype(f"{order}f4").tobytes()


def jpeg2000(value: int, channels: int) -> bytes:
    """A code stream of 16 x 16 pixels with the same value in all 16-bit channels.

    Pillow writes such a stream for one channel without wavelets; its single packet is repeated for further channels.
    """
    buffer = io.BytesIO()
    grey = Image.fromarray(np.full((16, 16), value, np.uint16))
    grey.save(buffer, "JPEG2000", num_resolutions=1, no_jp2=True)
    data = buffer.getvalue()
    size, tile, packet = data.index(b"\xff\x51"), data.index(b"\xff\x90"), data.index(b"\xff\x93") + 2
    length = int.from_bytes(data[size + 2 : size + 4], "big")
    header = data[size + 4 : size + 2 + length]
    header = header[:34] + struct.pack(">H", channels) + header[36:39] * channels
    body = data[packet:-2] * channels
    return b"".join(
        [
            data[:size] + b"\xff\x51" + struct.pack(">H", len(header) + 2) + header + data[size + 2 + length : tile],
            b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 14 + len(body), 0, 1) + b"\xff\x93" + body + b"\xff\xd9",
        ]
    )
