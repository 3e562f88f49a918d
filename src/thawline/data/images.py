"""Safe decoding: from bytes of any common image format to an RGB image as displayed by a viewer.

This module only needs Pillow and NumPy and must not import Thawline, because it is copied into packaged models, so that
serving decodes exactly like training.
"""

import base64
import contextlib
import importlib
import importlib.util
import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

__all__ = ["EXTENSIONS", "BadImage", "declared_pixels", "decode", "encoded_image", "resize_and_crop", "seen"]

# Pillow supports some forty formats. These are common for photographs; others are excluded because they are not images
# (HDF5, MPEG), run other programs (EPS starts Ghostscript) or have rarely tested decoders.
_FORMATS = {
    "AVIF": (".avif", ".avifs"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "HEIF": (".heic", ".heics", ".heif", ".heifs", ".hif"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx"),
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
# `Image.init()` would load forty formats, which takes a third of a second in every decoding process.
Image.preinit()
for _plugin in ("AvifImagePlugin", "Jpeg2KImagePlugin", "TiffImagePlugin", "WebPImagePlugin"):
    with contextlib.suppress(ImportError):  # AVIF requires Pillow 11.3
        importlib.import_module(f"PIL.{_plugin}")
_HEIF = importlib.util.find_spec("pillow_heif") is not None
"""Whether Pillow's package for HEIC is installed. Its import, a tenth of a second, is deferred until such a file."""
_AVAILABLE = tuple(name for name in _FORMATS if name in Image.OPEN and name != "HEIF")

EXTENSIONS = frozenset(
    extension for name in (*_AVAILABLE, *(["HEIF"] if _HEIF else [])) for extension in _FORMATS[name]
)
"""Lower-case file extensions with dot of all formats that :func:`decode` can read on this machine."""

_PIXEL_BYTES = {"I": 4, "F": 4}
"""Bytes per pixel of modes with more than three that are not 8-bit colours."""
_STRIP = 1_000_000
"""Pixels per conversion step, which limits temporary memory to some 50 MB."""
_PNG = b"\x89PNG\r\n\x1a\n"
_LONGEST_PART = 1 << 20
"""Maximum bytes of a compressed text or profile that Pillow decompresses."""
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1"}
_INSTALL_HEIC = "pip install 'thawline[heic]'"
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
_MAX_ASPECT = 16
_ORIENTATION = 0x0112
"""EXIF's tag of the orientation."""

# Oddities of a file that do not prevent its display. Filtered globally: `warnings.catch_warnings` swaps a list shared
# by all threads, so decoding threads would need a lock and run one by one.
warnings.filterwarnings("ignore", module=r"PIL\.")


class BadImage(ValueError):
    """A file that cannot be decoded; ``str(error)`` is the reason, without the file's name."""


def decode(data: bytes, *, max_pixels: int = 64_000_000, shortest: int | None = None) -> Image.Image:
    """Decode an image completely and return it in mode RGB, as displayed by a viewer.

    EXIF rotation and embedded colour profiles are applied; transparent pixels are composed on white; animations give
    their first frame; 16-bit grey is scaled by 255/65535. Floating-point grey ranges from black 0 to white 1 if all
    values are within, and is otherwise stretched from its minimum to its maximum, like 32-bit integers.

    Args:
        data: the bytes of the file.
        max_pixels: larger images (width times height) are refused before decoding. For 32-bit pixels, which take four
            bytes instead of three, the limit is three quarters of this. Pillow's own limit of twice
            ``PIL.Image.MAX_IMAGE_PIXELS`` (179 million) still applies.
        shortest: decode a JPEG at a half, a quarter or an eighth of its size if that divides both sides, and both keep
            at least this many pixels: libjpeg then skips detail that resizing would remove, in a fraction of the time.
            ``None`` decodes at full size.

    Raises:
        BadImage: if the data is empty, of an unknown format, truncated, damaged, or too large.
    """
    if not data:
        raise BadImage("the file is empty")
    data, profile = _readable_png(data)
    try:
        with Image.open(io.BytesIO(data), formats=_formats(data)) as image:
            pixels, most = image.width * image.height, max_pixels * 3 // _PIXEL_BYTES.get(image.mode, 3)
            if pixels > most:
                deep = " of 32 bits" if image.mode in _PIXEL_BYTES else ""
                raise BadImage(
                    f"it has {pixels:,} pixels{deep} ({image.width} x {image.height}); at most {most:,} are allowed"
                )
            if shortest is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
                _reduce(image, shortest)
            depth = _depth(image, data)
            # verify() accepts truncated JPEGs; only a full decode detects them.
            image.load()
            if profile is not None:
                image.info["icc_profile"] = profile
            return _to_rgb(_upright(image), depth)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(f"not an image of a known format{_looks_like(data)}") from None
    except Image.DecompressionBombError:
        raise BadImage("it has more pixels than Pillow allows") from None
    except MemoryError:
        raise BadImage("not enough memory to decode it") from None
    except Exception as error:
        # Pillow's decoders raise many types: OSError, SyntaxError, ValueError, struct.error, KeyError,
        # ZeroDivisionError … Any list would be incomplete for the next version.
        raise BadImage(_reason(error)) from None


def _formats(data: bytes) -> tuple[str, ...]:
    """Names of possible formats of a file; registers the HEIC decoder at the first such file."""
    if not _HEIF or not _is_heic(data):
        return _AVAILABLE
    with contextlib.suppress(ImportError):  # its libraries may be missing
        importlib.import_module("pillow_heif.HeifImagePlugin")
    return (*_AVAILABLE, "HEIF") if "HEIF" in Image.OPEN else _AVAILABLE


def _is_heic(data: bytes) -> bool:
    """Whether the file is HEIC, by the brands in its header."""
    return data[4:8] == b"ftyp" and bool(_HEIC & {data[place : place + 4] for place in range(8, min(64, len(data)), 4)})


def _reduce(image: JpegImagePlugin.JpegImageFile, shortest: int) -> None:
    """Let libjpeg decode at a reduced size, unless a fraction of a pixel at an edge would shift the others."""
    for scale in (8, 4, 2):
        width, height = image.width // scale, image.height // scale
        if min(width, height) >= shortest and (width * scale, height * scale) == image.size:
            image.draft(None, (width, height))
            return


def declared_pixels(data: bytes) -> int:
    """Width times height from the file's header, or 0 if it cannot be read; does not decode."""
    try:
        with Image.open(io.BytesIO(data), formats=_formats(data)) as image:
            return image.width * image.height
    except Exception:  # parsers raise many types; decode() reports the error
        return 0


def encoded_image(value: object) -> bytes:
    """The bytes of an image file from a client's input: raw bytes, or base64 as text or bytes.

    MLflow's server decodes base64 for ``dataframe_records`` and ``dataframe_split`` but not for ``instances`` and
    ``inputs``. A prefix ``data:image/jpeg;base64,``, the URL-safe alphabet (``-`` and ``_``), and missing padding are
    allowed.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(value, str):
        text = re.sub(r"^data:[^,]*,", "", value)
        try:
            return _from_base64("".join(text.split()).encode())
        except ValueError:
            raise ValueError("the text is not base64") from None
    if not isinstance(value, bytes | bytearray | memoryview):
        raise ValueError(f"an image must be bytes or base64 text, but got {type(value).__name__}")
    data = bytes(value)
    # Among image formats, only the plain-text ones of the PPM family could be mistaken for base64.
    if re.fullmatch(rb"[\w+/\s-]+={0,2}\s*", data) and not re.match(rb"P[1-6]\s", data):
        try:
            return _from_base64(b"".join(data.split()))
        except ValueError:
            return data
    return data


def _from_base64(text: bytes) -> bytes:
    """Decode base64 of either alphabet, padded or not; raises ``ValueError`` for anything else."""
    padded = text if text.endswith(b"=") else text + b"=" * (-len(text) % 4)
    return base64.b64decode(padded.translate(bytes.maketrans(b"-_", b"+/")), validate=True)


def seen(
    data: bytes,
    *,
    max_pixels: int,
    resize_size: int,
    crop_size: int,
    interpolation: str,
    crop_mode: str = "center",
    reduced: bool = True,
) -> npt.NDArray[np.uint8]:
    """A network's view of an encoded image, in training and in serving.

    This is :func:`decode` and :func:`resize_and_crop`, but a large JPEG is decoded at a reduced size, at least twice
    that of the resize; with ``nearest``, which is sensitive to that, always at full size.

    Args:
        data: bytes of the file.
        max_pixels: see :func:`decode`.
        resize_size: see :func:`resize_and_crop`, as for the next three.
        crop_size: side of the square.
        interpolation: interpolation of the resize.
        crop_mode: ``center`` or ``squash``.
        reduced: False always decodes JPEGs at full size, as in the first versions of Thawline.

    Returns:
        uint8 ``[crop_size, crop_size, 3]``.

    Raises:
        BadImage: see :func:`decode`.
        ValueError: see :func:`resize_and_crop`.
    """
    shortest = 2 * resize_size if reduced and not interpolation.startswith("nearest") else None
    return resize_and_crop(
        decode(data, max_pixels=max_pixels, shortest=shortest),
        resize_size=resize_size,
        crop_size=crop_size,
        interpolation=interpolation,
        crop_mode=crop_mode,
    )


def resize_and_crop(
    image: Image.Image, *, resize_size: int, crop_size: int, interpolation: str, crop_mode: str = "center"
) -> npt.NDArray[np.uint8]:
    """Resize the shorter side (``squash``: both sides) to ``resize_size`` pixels and crop the centre.

    Pixel-equal to torchvision's ``Resize`` and ``CenterCrop``, and so to timm's, on a PIL image (antialiased, black if
    the image is smaller than the crop): always with ``squash``, otherwise up to an aspect ratio of 16. Longer strips
    are first cropped to their middle: a strip of 1 x 60,000 pixels would otherwise grow to gigabytes that the crop
    discards.

    Args:
        image: in mode RGB.
        resize_size: length of the shorter side, or of both, after resizing, in pixels.
        crop_size: side of the square, in pixels.
        interpolation: ``nearest``, ``bilinear``, ``bicubic``, ``lanczos``, ``box`` or ``hamming``.
        crop_mode: ``center`` keeps the aspect ratio, ``squash`` resizes the whole image to a square.

    Returns:
        uint8 ``[crop_size, crop_size, 3]``.

    Raises:
        ValueError: if the image is not RGB, a size is not positive, or the interpolation or the crop mode is unknown.
    """
    if image.mode != "RGB":
        raise ValueError(f"image must be in mode RGB, but it is in mode {image.mode!r}: decode() returns RGB")
    if resize_size < 1 or crop_size < 1:
        raise ValueError(f"sizes must be at least 1, but got resize_size={resize_size}, crop_size={crop_size}")
    if interpolation not in _INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {', '.join(_INTERPOLATIONS)}, but got {interpolation!r}")
    if crop_mode not in ("center", "squash"):
        raise ValueError(f"crop_mode must be center or squash, but got {crop_mode!r}")
    size = (resize_size, resize_size)
    if crop_mode == "center":
        image, size = _keeping_aspect(image, resize_size, crop_size)
    if size != image.size:
        image = image.resize(size, resample=_INTERPOLATIONS[interpolation])
    return np.array(_crop_centre(image, crop_size, crop_size), dtype=np.uint8)


def _keeping_aspect(image: Image.Image, resize_size: int, crop_size: int) -> tuple[Image.Image, tuple[int, int]]:
    """The image, or the middle of a long strip, and the size with a shorter side of ``resize_size`` pixels."""
    short, long = sorted(image.size)
    longest = short * max(_MAX_ASPECT, math.ceil(2 * crop_size / resize_size))
    if long > longest:
        image = _crop_centre(image, min(image.width, longest), min(image.height, longest))
        long = longest
    other = int(resize_size * long / short)
    return image, (resize_size, other) if image.width <= image.height else (other, resize_size)


def _crop_centre(image: Image.Image, width: int, height: int) -> Image.Image:
    """Crop the centre, black where the image is smaller, like torchvision's ``center_crop``, including its rounding."""

    def start(have: int, want: int) -> int:
        return round((have - want) / 2) if have >= want else -((want - have) // 2)

    left, top = start(image.width, width), start(image.height, height)
    return image.crop((left, top, left + width, top + height))


def _upright(image: Image.Image) -> Image.Image:
    try:
        # Without this check every image would be copied.
        return image if image.getexif().get(_ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block does not affect the pixels; viewers ignore it
        return image


def _to_rgb(image: Image.Image, depth: "_Depth") -> Image.Image:
    if depth.maximum is not None or depth.signed_bytes or image.mode in ("I", "F"):
        return _eight_bit(image, depth).convert("RGB")
    image = _to_srgb(image)
    if depth.transparent is not None:
        image.info["transparency"] = depth.transparent
    return _in_strips(image, "RGB", _on_white) if image.has_transparency_data else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    # Palettes and "transparent" colours hide arbitrary colours under the transparency, which a plain convert("RGB")
    # would reveal, usually as black.
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _in_strips(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Apply ``convert`` to some rows at a time: arrays of the whole image would take many times its memory."""
    made = Image.new(mode, image.size)
    for strip, top in _strips(image):
        made.paste(convert(strip), (0, top))
    return made


def _strips(image: Image.Image) -> Iterator[tuple[Image.Image, int]]:
    """Strips of the image from top to bottom, and the first row of each."""
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height))), top


def _eight_bit(image: Image.Image, depth: "_Depth") -> Image.Image:
    """Scale grey values of more than 8 bits; ``convert`` would clip them at 255, so that nearly all become white."""
    if depth.maximum is not None:
        return _in_strips(image, "L", lambda strip: _grey(_of_maximum(np.asarray(strip), depth), depth))
    low, high = math.inf, -math.inf
    for strip, _ in _strips(image):
        values = _numbers(strip, depth)
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high or (image.mode == "F" and low >= 0 and high <= 1):
        low, high = 0.0, 1.0
    span = high - low or 1.0

    def stretched(strip: Image.Image) -> Image.Image:
        values = _numbers(strip, depth).astype(np.float64)
        values = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / span
        return _grey(np.rint(values * 255).astype(np.uint8), depth)

    return _in_strips(image, "L", stretched)


def _of_maximum(values: npt.NDArray[Any], depth: "_Depth") -> npt.NDArray[np.uint8]:
    """Grey with a known white, scaled to 8 bits."""
    assert depth.maximum is not None  # noqa: S101  narrows the type
    grey = ((values.astype(np.uint32) * 255 + depth.maximum // 2) // depth.maximum).clip(0, 255).astype(np.uint8)
    if isinstance(depth.transparent, int):
        grey[values == depth.transparent] = 255
    return grey


def _numbers(image: Image.Image, depth: "_Depth") -> npt.NDArray[Any]:
    """The pixels with their intended values."""
    values = np.asarray(image)
    if depth.signed_bytes:
        return values.view(np.int8)
    return values.view(np.uint32) if depth.unsigned else values


def _grey(values: npt.NDArray[np.uint8], depth: "_Depth") -> Image.Image:
    return Image.fromarray(255 - values if depth.white_is_zero else values)


# ---------------------------------------------------------------- what Pillow does not say, or gets wrong, of an image


@dataclass(frozen=True)
class _Depth:
    """The meaning of an image's values beyond its mode."""

    maximum: int | None = None
    """The value of white for grey with more than 8 bits; ``None`` for all other images."""
    white_is_zero: bool = False
    """Whether values must still be inverted: Pillow only does it for 8 bits."""
    unsigned: bool = False
    """Whether 32-bit integers, which Pillow treats as signed, are unsigned."""
    signed_bytes: bool = False
    """Whether bytes, which Pillow treats as unsigned, are signed."""
    transparent: int | tuple[int, ...] | None = None
    """The transparent value or colour, if Pillow's scale for it differs from that of the pixels."""


def _depth(image: Image.Image, data: bytes) -> _Depth:
    """The meaning of the pixels; call it before decoding, because it corrects the decoder.

    Raises:
        BadImage: if Pillow would decode them wrongly.
    """
    # 16 bits in a 32-bit image: Pillow's representation of PGM (and PNG until version 11). In TIFF they are really 32
    # bits.
    sixteen_bit = image.mode in _SIXTEEN_BIT or (image.mode == "I" and image.format in ("PNG", "PPM"))
    depth = _Depth(maximum=65535 if sixteen_bit else None)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _depth_of_tiff(image, depth)
    if image.format == "PNG":
        return replace(depth, transparent=_transparent_of_png(image, bits=data[24]))
    if image.format == "JPEG2000" and image.mode not in _SIXTEEN_BIT and _bits_of_jpeg2000(data) > 8:
        # Pillow rounds 16 bits to 8 without a limit: 65535 becomes 256, which wraps to 0. White turns black.
        raise BadImage("it has more than 8 bits per channel, which Pillow decodes wrongly: convert it to PNG or TIFF")
    return depth


def _depth_of_tiff(image: TiffImagePlugin.TiffImageFile, depth: _Depth) -> _Depth:
    bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    kind = image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]  # 1 unsigned, 2 signed, 3 floats
    white_is_zero = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    if bits[0] == 8 and kind == 2:
        if image.mode != "L":
            raise BadImage("its channels are signed bytes, which Pillow reads as unsigned: convert it to PNG")
        return replace(depth, signed_bytes=True, white_is_zero=white_is_zero)
    image.tile = [_right_tile(tile, bits[0], image) for tile in image.tile]
    if depth.maximum is not None:
        depth = replace(depth, maximum=2 ** bits[0] - 1)
    elif image.mode not in ("I", "F"):
        return depth
    return replace(depth, white_is_zero=white_is_zero, unsigned=bits[0] == 32 and kind == 1)


def _right_tile(tile: Any, bits: int, image: TiffImagePlugin.TiffImageFile) -> Any:
    """Correct the decoder of one part of a TIFF.

    Otherwise, uncompressed planes of 16 bits would be read as 8 bits, and values that libtiff has converted to native
    byte order would be swapped again.
    """
    raw = tile.args if isinstance(tile.args, str) else tile.args[0]
    right = raw
    if tile.codec_name == "raw" and bits == 16 and len(raw) == 1 and len(image.getbands()) > 1:
        right = f"{raw};16{'B' if image.tag_v2.prefix == b'MM' else 'L'}"
    elif tile.codec_name == "libtiff":
        right = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}.get(raw, raw)
    return tile if right == raw else tile._replace(args=(right, *tile.args[1:]))


def _transparent_of_png(image: Image.Image, *, bits: int) -> int | tuple[int, ...] | None:
    """The transparent value or colour on the scale of the pixels; Pillow leaves it on that of the file."""
    given: object = image.info.get("transparency")
    if bits in (2, 4) and image.mode == "L" and isinstance(given, int) and given < 2**bits:
        return given * 255 // ((1 << bits) - 1)
    if bits == 16 and isinstance(given, tuple):
        # Pillow only keeps the high bytes: colours that differ by less than 1 of 255 become transparent too.
        return tuple(int(value) >> 8 for value in given)
    return given if bits == 16 and isinstance(given, int) else None


def _bits_of_jpeg2000(data: bytes) -> int:
    """Maximum bits of a component, from the marker SIZ at the start of the code stream; 8 without it."""
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0:
        return 8
    (count,) = struct.unpack_from(">H", data, start + 40)
    return max((1 + (depth & 0x7F) for depth in data[start + 42 : start + 42 + 3 * count : 3]), default=8)


def _readable_png(data: bytes) -> tuple[bytes, bytes | None]:
    """A PNG without chunks that Pillow rejects and viewers ignore, and its colour profile if it was removed.

    These are texts and profiles of more than a megabyte, as from image generators and printers, and non-critical chunks
    with a wrong checksum. Other or truncated data is returned unchanged.
    """
    if not data.startswith(_PNG):
        return data, None
    kept, profile, place, texts = [_PNG], None, len(_PNG), 0
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        part = data[place : place + 12 + length]
        place += len(part)
        content = part[8:-4]
        ancillary = bool(name[0] & 0x20)
        if ancillary and len(part) == 12 + length and zlib.crc32(part[4:-4]) != int.from_bytes(part[-4:], "big"):
            continue
        if name in (b"zTXt", b"iTXt", b"tEXt"):
            texts += length
            if texts > _LONGEST_PART or _expanded(content) is None:
                continue
        elif name == b"iCCP" and _expanded(content) is None:
            profile = _expanded(content, limit=64 * _LONGEST_PART)
            continue
        kept.append(part)
    whole = b"".join([*kept, data[place:]])
    return (data, None) if len(whole) == len(data) else (whole, profile)


def _expanded(content: bytes, limit: int = 0) -> bytes | None:
    """The decompressed content of a PNG chunk, which may be empty; ``None`` if it exceeds the limit."""
    start = content.find(b"\x78", content.find(b"\0") + 1)  # the start of a zlib stream
    if start < 0:
        return b""
    stream = zlib.decompressobj()
    try:
        expanded = stream.decompress(content[start:], limit or _LONGEST_PART)
    except zlib.error:
        return b""
    return None if stream.unconsumed_tail else expanded


def _to_srgb(image: Image.Image) -> Image.Image:
    """Apply an embedded colour profile; ignores a broken one, or one for other channels."""
    embedded = image.info.get("icc_profile")
    if not embedded:
        return image
    try:
        profile = ImageCms.getOpenProfile(io.BytesIO(embedded))
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return image  # most photographs: conversion would take time without effect
        space = profile.profile.xcolor_space.strip()
        grey, cmyk = image.mode in ("1", "L", "LA", "La"), image.mode == "CMYK"
        if (space == "GRAY" and not grey) or (space == "CMYK") != cmyk or space not in ("GRAY", "RGB", "CMYK"):
            return image
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        base = image.convert({"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}[space])
        converted = ImageCms.profileToProfile(base, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except Exception:  # LittleCMS raises several types; the picture itself is fine
        return image
    if converted is not None and alpha is not None:
        converted.putalpha(alpha)
    return converted or image


def _looks_like(data: bytes) -> str:
    """The likely type of a file that is not an image, often a saved web page or a Git LFS pointer."""
    start = data[:512].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return " (it is a web page)"
    if start.startswith((b"<svg", b"<?xml")):
        return " (it is XML, perhaps an SVG drawing)"
    if start.startswith(b"version https://git-lfs"):
        return " (it is a Git LFS pointer: `git lfs pull` downloads the image)"
    if start.startswith(b"%pdf"):
        return " (it is a PDF)"
    if _is_heic(data):
        read = "damaged, or of a kind that libheif does not support" if _HEIF else "which requires pillow-heif"
        return f" (it is HEIC, {read}: {'' if _HEIF else _INSTALL_HEIC + ', or '}convert it to JPEG)"
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return " (it is JPEG XL, which Pillow does not support: convert it to JPEG)"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return _described_tiff(data)
    if not any(data[:512]):
        return " (it starts with zero bytes)"
    return ""


def _described_tiff(data: bytes) -> str:
    """The type of values in a TIFF that Pillow does not support."""
    try:
        file = io.BytesIO(data)
        directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(16 if data[2] == 43 else 8))
        file.seek(directory.next)
        directory.load(file)
        bits = directory.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        kind = directory.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]
    except Exception:  # Pillow's parser raises whatever it meets
        return " (it is a damaged TIFF)"
    if TiffImagePlugin.IMAGEWIDTH not in directory:
        return " (it is a damaged TIFF)"
    samples = directory.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    what = {2: "signed integers", 3: "floats"}.get(kind, "integers")
    channels = f"{samples} channel{'' if samples == 1 else 's'} of {bits[0]}-bit {what}"
    return f" (it is a TIFF with {channels}, which Pillow does not support: convert it to PNG)"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return f"the image is truncated ({text})" if text else "the image is truncated"
    if "raw mode" in text:
        return f"Pillow does not support its type of pixels: convert it to PNG ({text})"
    return f"the image is damaged ({text or type(error).__name__})"
