"""Safe decoding: bytes of any common image format in, an RGB picture as a viewer would show it out.

This module needs Pillow and NumPy alone and imports nothing of Thawline, because this very file is copied into the
packaged model: what serves a model decodes exactly as what trained it.
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

# Pillow knows some forty formats. These are the ones that people keep photographs in; the others stay out because
# they are not pictures (HDF5, MPEG), run other programs (EPS starts Ghostscript) or are read by code that few test.
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
# `Image.init()` would load forty formats, at a third of a second in every process that decodes.
Image.preinit()
for _plugin in ("AvifImagePlugin", "Jpeg2KImagePlugin", "TiffImagePlugin", "WebPImagePlugin"):
    with contextlib.suppress(ImportError):  # AVIF came with Pillow 11.3
        importlib.import_module(f"PIL.{_plugin}")
_HEIF = importlib.util.find_spec("pillow_heif") is not None
"""Whether the package is there with which Pillow reads HEIC. Its import, a tenth of a second, waits for such a file."""
_AVAILABLE = tuple(name for name in _FORMATS if name in Image.OPEN and name != "HEIF")

EXTENSIONS = frozenset(
    extension for name in (*_AVAILABLE, *(["HEIF"] if _HEIF else [])) for extension in _FORMATS[name]
)
"""Lower-case file extensions, with their dot, of everything that :func:`decode` can read on this machine."""

_PIXEL_BYTES = {"I": 4, "F": 4}
"""Of modes with more than three bytes a pixel that are not 8-bit colours."""
_STRIP = 1_000_000
"""Pixels that are converted at once: what conversion needs besides source and result then stays at some 50 MB."""
_PNG = b"\x89PNG\r\n\x1a\n"
_LONGEST_PART = 1 << 20
"""Bytes of a compressed text or profile that Pillow expands at most."""
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
"""EXIF's tag."""

# What is odd about a file but does not keep it from being shown. Once and for all: `warnings.catch_warnings` swaps a
# list that all threads share, so threads that decode would need a lock around it, and so decode one after the other.
warnings.filterwarnings("ignore", module=r"PIL\.")


class BadImage(ValueError):
    """A file that cannot be decoded; ``str(error)`` is the reason, for people, without the file's name."""


def decode(data: bytes, *, max_pixels: int = 64_000_000, shortest: int | None = None) -> Image.Image:
    """Decode an image wholly and return it in mode RGB, as a viewer would show it.

    EXIF rotation and embedded colour profiles are applied; transparent pixels lie on white; of an animation the first
    frame is taken; 16-bit grey is scaled by 255/65535. Floating-point grey is taken as black 0 to white 1 if all its
    values lie there, and is otherwise stretched from its smallest to its largest value, as 32-bit integers are.

    Args:
        data: the bytes of the file.
        max_pixels: images of more pixels (width times height) are refused before they are decoded; of those with 32
            bits a pixel, which take four bytes and not three, of more than three quarters as many. Pillow's own bound
            of twice ``PIL.Image.MAX_IMAGE_PIXELS`` (179 million) stays in force.
        shortest: a JPEG comes at a half, a quarter or an eighth of its size where that divides both sides, as long as
            they keep at least this many pixels: libjpeg then leaves out the detail that resizing would, in a fraction
            of the time. ``None`` keeps its size.

    Raises:
        BadImage: if the data is empty, of no known format, cut off, damaged, or too large.
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
            # verify() passes JPEGs that are cut off; only a full decode tells.
            image.load()
            if profile is not None:
                image.info["icc_profile"] = profile
            return _to_rgb(_upright(image), depth)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(f"not an image of a known format{_looks_like(data)}") from None
    except Image.DecompressionBombError:
        raise BadImage("it has more pixels than Pillow agrees to decode") from None
    except MemoryError:
        raise BadImage("decoding it needs more memory than there is") from None
    except Exception as error:
        # Pillow's decoders raise whatever their parsers meet: OSError, SyntaxError, ValueError, struct.error,
        # KeyError, ZeroDivisionError … There is no list that holds for the next version.
        raise BadImage(_reason(error)) from None


def _formats(data: bytes) -> tuple[str, ...]:
    """Names of the formats that a file may have; the decoder of HEIC is registered for the first such file."""
    if not _HEIF or not _is_heic(data):
        return _AVAILABLE
    with contextlib.suppress(ImportError):  # libraries that it needs may be lacking
        importlib.import_module("pillow_heif.HeifImagePlugin")
    return (*_AVAILABLE, "HEIF") if "HEIF" in Image.OPEN else _AVAILABLE


def _is_heic(data: bytes) -> bool:
    """By the brands at the beginning of the file."""
    return data[4:8] == b"ftyp" and bool(_HEIC & {data[place : place + 4] for place in range(8, min(64, len(data)), 4)})


def _reduce(image: JpegImagePlugin.JpegImageFile, shortest: int) -> None:
    """Have libjpeg decode less. Not where a part of a pixel would be left at an edge, which would shift the others."""
    for scale in (8, 4, 2):
        width, height = image.width // scale, image.height // scale
        if min(width, height) >= shortest and (width * scale, height * scale) == image.size:
            image.draft(None, (width, height))
            return


def declared_pixels(data: bytes) -> int:
    """Width times height, as the head of the file says; 0 where that cannot be read. Nothing is decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=_formats(data)) as image:
            return image.width * image.height
    except Exception:  # whatever a parser meets; decode() says what
        return 0


def encoded_image(value: object) -> bytes:
    """The bytes of an image file from what a client sent: those bytes, or their base64 as text or as bytes.

    MLflow's server decodes base64 for ``dataframe_records`` and ``dataframe_split`` but not for ``instances`` and
    ``inputs``. A ``data:image/jpeg;base64,`` in front of the text is allowed; so are the alphabet that is safe in URLs
    (``-`` and ``_``), and padding that is left out.

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
    # Of the image formats only the plain-text ones of the PPM family could be taken for base64.
    if re.fullmatch(rb"[\w+/\s-]+={0,2}\s*", data) and not re.match(rb"P[1-6]\s", data):
        try:
            return _from_base64(b"".join(data.split()))
        except ValueError:
            return data
    return data


def _from_base64(text: bytes) -> bytes:
    """Of either alphabet, padded or not; ``ValueError`` (which ``binascii.Error`` is) for anything else."""
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
    """What a network is shown of an encoded image, in training and in serving alike.

    That is :func:`decode` and :func:`resize_and_crop`, but a large JPEG is decoded at a size that is still at least
    twice that to which it is resized; with ``nearest``, which would see the difference, always in full.

    Args:
        data: the file.
        max_pixels: see :func:`decode`.
        resize_size: see :func:`resize_and_crop`, as for the three that follow.
        crop_size: of the square.
        interpolation: of the resizing.
        crop_mode: ``center`` or ``squash``.
        reduced: False decodes large JPEGs in full, too, as the first versions of Thawline did.

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
    """Resize the shorter side (``squash``: both sides) to ``resize_size`` pixels and cut the centre out.

    Pixel-equal to what torchvision's ``Resize`` and ``CenterCrop``, and so timm, do to a PIL image (antialiased, black
    where the image is smaller than the crop): with ``squash`` always, else up to a length of 16 times the width. Longer
    strips are first cut to their middle: a strip of 1 x 60,000 pixels would otherwise grow to gigabytes of which the
    crop keeps nothing.

    Args:
        image: in mode RGB.
        resize_size: length of the shorter side, or of both, after resizing, in pixels.
        crop_size: side of the square, in pixels.
        interpolation: ``nearest``, ``bilinear``, ``bicubic``, ``lanczos``, ``box`` or ``hamming``.
        crop_mode: ``center`` keeps the aspect ratio, ``squash`` makes the whole image a square.

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
    """The image, of a long strip its middle, and the size at which its shorter side is ``resize_size`` pixels."""
    short, long = sorted(image.size)
    longest = short * max(_MAX_ASPECT, math.ceil(2 * crop_size / resize_size))
    if long > longest:
        image = _crop_centre(image, min(image.width, longest), min(image.height, longest))
        long = longest
    other = int(resize_size * long / short)
    return image, (resize_size, other) if image.width <= image.height else (other, resize_size)


def _crop_centre(image: Image.Image, width: int, height: int) -> Image.Image:
    """Cut out the centre, black where the image is smaller: torchvision's ``center_crop``, its rounding included."""

    def start(have: int, want: int) -> int:
        return round((have - want) / 2) if have >= want else -((want - have) // 2)

    left, top = start(image.width, width), start(image.height, height)
    return image.crop((left, top, left + width, top + height))


def _upright(image: Image.Image) -> Image.Image:
    try:
        # Without this question every image would be copied.
        return image if image.getexif().get(_ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about the pixels; viewers show them as they lie
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
    # Palettes and "transparent" colours hide arbitrary colours under the transparency: a plain convert("RGB") would
    # bring them out, usually as black.
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _in_strips(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """What ``convert`` makes of the image, some rows at a time: arrays of it all would take many times its memory."""
    made = Image.new(mode, image.size)
    for strip, top in _strips(image):
        made.paste(convert(strip), (0, top))
    return made


def _strips(image: Image.Image) -> Iterator[tuple[Image.Image, int]]:
    """Strips of the image from top to bottom, and the row at which each begins."""
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height))), top


def _eight_bit(image: Image.Image, depth: "_Depth") -> Image.Image:
    """Scale grey values of more than 8 bits; ``convert`` would cut them off at 255 and show nearly all as white."""
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
    """Grey whose white is known, on the scale of 8 bits."""
    assert depth.maximum is not None  # noqa: S101  narrows the type
    grey = ((values.astype(np.uint32) * 255 + depth.maximum // 2) // depth.maximum).clip(0, 255).astype(np.uint8)
    if isinstance(depth.transparent, int):
        grey[values == depth.transparent] = 255
    return grey


def _numbers(image: Image.Image, depth: "_Depth") -> npt.NDArray[Any]:
    """The pixels as what they are meant to be."""
    values = np.asarray(image)
    if depth.signed_bytes:
        return values.view(np.int8)
    return values.view(np.uint32) if depth.unsigned else values


def _grey(values: npt.NDArray[np.uint8], depth: "_Depth") -> Image.Image:
    return Image.fromarray(255 - values if depth.white_is_zero else values)


# ---------------------------------------------------------------- what Pillow does not say, or gets wrong, of an image


@dataclass(frozen=True)
class _Depth:
    """What the numbers in an image mean, beyond what its mode says."""

    maximum: int | None = None
    """The value of white of grey with more than 8 bits; ``None`` of all other images."""
    white_is_zero: bool = False
    """Whether the values are still to be inverted: Pillow does it for 8 bits alone."""
    unsigned: bool = False
    """Whether 32-bit integers, which Pillow takes for signed, are not."""
    signed_bytes: bool = False
    """Whether bytes, which Pillow takes for unsigned, are signed."""
    transparent: int | tuple[int, ...] | None = None
    """The value or colour that is transparent, where Pillow gives it on another scale than the pixels."""


def _depth(image: Image.Image, data: bytes) -> _Depth:
    """What the pixels will mean; call it before they are decoded, because it corrects how.

    Raises:
        BadImage: if Pillow would decode them wrongly.
    """
    # 16 bits in a 32-bit image: so Pillow gives PGM (and PNG until version 11). In TIFF they are 32 indeed.
    sixteen_bit = image.mode in _SIXTEEN_BIT or (image.mode == "I" and image.format in ("PNG", "PPM"))
    depth = _Depth(maximum=65535 if sixteen_bit else None)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _depth_of_tiff(image, depth)
    if image.format == "PNG":
        return replace(depth, transparent=_transparent_of_png(image, bits=data[24]))
    if image.format == "JPEG2000" and image.mode not in _SIXTEEN_BIT and _bits_of_jpeg2000(data) > 8:
        # Pillow rounds 16 bits to 8 without a bound: 65535 becomes 256, of which 0 is kept. White turns black.
        raise BadImage("it has more than 8 bits a channel, which Pillow decodes wrongly: convert it to PNG or TIFF")
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
    """How one part of a TIFF is decoded.

    Planes of 16 bits that are not compressed would be read as planes of 8, and what libtiff has put in the machine's
    own order would be swapped once more.
    """
    raw = tile.args if isinstance(tile.args, str) else tile.args[0]
    right = raw
    if tile.codec_name == "raw" and bits == 16 and len(raw) == 1 and len(image.getbands()) > 1:
        right = f"{raw};16{'B' if image.tag_v2.prefix == b'MM' else 'L'}"
    elif tile.codec_name == "libtiff":
        right = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}.get(raw, raw)
    return tile if right == raw else tile._replace(args=(right, *tile.args[1:]))


def _transparent_of_png(image: Image.Image, *, bits: int) -> int | tuple[int, ...] | None:
    """The transparent value or colour on the scale of the pixels, where Pillow leaves it on that of the file."""
    given: object = image.info.get("transparency")
    if bits in (2, 4) and image.mode == "L" and isinstance(given, int) and given < 2**bits:
        return given * 255 // ((1 << bits) - 1)
    if bits == 16 and isinstance(given, tuple):
        # The high bytes are all that Pillow keeps: colours that differ by less than one of 255 become transparent too.
        return tuple(int(value) >> 8 for value in given)
    return given if bits == 16 and isinstance(given, int) else None


def _bits_of_jpeg2000(data: bytes) -> int:
    """Most bits of a component, as the marker SIZ at the beginning of the code stream says; 8 if there is none."""
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0:
        return 8
    (count,) = struct.unpack_from(">H", data, start + 40)
    return max((1 + (depth & 0x7F) for depth in data[start + 42 : start + 42 + 3 * count : 3]), default=8)


def _readable_png(data: bytes) -> tuple[bytes, bytes | None]:
    """A PNG without the parts that Pillow stumbles over and no viewer needs; its colour profile, if it is one of them.

    These are texts and profiles of more than a megabyte, as image generators and printers' profiles have, and parts
    that are not critical with a wrong checksum. What is no PNG, or cut off, is returned as it is.
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
    """What a part of a PNG holds in compressed form, empty if nothing; ``None`` if it is longer than the limit."""
    start = content.find(b"\x78", content.find(b"\0") + 1)  # as zlib's streams begin
    if start < 0:
        return b""
    stream = zlib.decompressobj()
    try:
        expanded = stream.decompress(content[start:], limit or _LONGEST_PART)
    except zlib.error:
        return b""
    return None if stream.unconsumed_tail else expanded


def _to_srgb(image: Image.Image) -> Image.Image:
    """Apply an embedded colour profile; a broken one, or one for other channels than the image's, is ignored."""
    embedded = image.info.get("icc_profile")
    if not embedded:
        return image
    try:
        profile = ImageCms.getOpenProfile(io.BytesIO(embedded))
        if "srgb" in ImageCms.getProfileDescription(profile).lower():
            return image  # nearly every photograph: converting it would cost time and change nothing
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
    """What a file that is no image seems to be: most often a saved web page or a pointer of Git LFS."""
    start = data[:512].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return " (it is a web page)"
    if start.startswith((b"<svg", b"<?xml")):
        return " (it is XML, perhaps an SVG drawing)"
    if start.startswith(b"version https://git-lfs"):
        return " (it is a pointer of Git LFS: `git lfs pull` gets the image)"
    if start.startswith(b"%pdf"):
        return " (it is a PDF)"
    if _is_heic(data):
        read = "a damaged one, or of a kind that libheif does not read" if _HEIF else "which needs pillow-heif"
        return f" (it is HEIC, {read}: {'' if _HEIF else _INSTALL_HEIC + ', or '}convert it to JPEG)"
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return " (it is JPEG XL, which Pillow does not read: convert it to JPEG)"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return _described_tiff(data)
    if not any(data[:512]):
        return " (it starts with zero bytes)"
    return ""


def _described_tiff(data: bytes) -> str:
    """The kind of numbers in a TIFF that Pillow does not read."""
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
    return f" (it is a TIFF with {channels}, which Pillow does not read: convert it to PNG)"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return f"the image is cut off ({text})" if text else "the image is cut off"
    if "raw mode" in text:
        return f"its kind of pixels is one that Pillow does not read: convert it to PNG ({text})"
    return f"the image is damaged ({text or type(error).__name__})"
