"""Safe decoding: bytes of any common image format in, an RGB picture as a viewer would show it out.

This module needs Pillow and NumPy alone and imports nothing of Thawline, because this very file is copied into the
packaged model: what serves a model decodes exactly as what trained it.
"""

import base64
import contextlib
import importlib
import io
import math
import re
import threading
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

__all__ = ["EXTENSIONS", "BadImage", "decode", "encoded_image", "resize_and_crop"]

# Pillow knows some forty formats. These are the ones that people keep photographs in; the others stay out because
# they are not pictures (HDF5, MPEG), run other programs (EPS starts Ghostscript) or are read by code that few test.
_FORMATS = {
    "AVIF": (".avif", ".avifs"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
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
_AVAILABLE = tuple(name for name in _FORMATS if name in Image.OPEN)

EXTENSIONS = frozenset(extension for name in _AVAILABLE for extension in _FORMATS[name])
"""Lower-case file extensions, with their dot, of everything that :func:`decode` can read on this machine."""

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

# `warnings.catch_warnings` swaps a list that all threads share; two threads at once can leave it swapped for good.
# The lock costs threads their overlap in decoding (some milliseconds a photograph); processes are not touched.
_quiet = threading.Lock()


class BadImage(ValueError):
    """A file that cannot be decoded; ``str(error)`` is the reason, for people, without the file's name."""


def decode(data: bytes, *, max_pixels: int = 64_000_000) -> Image.Image:
    """Decode an image wholly and return it in mode RGB, as a viewer would show it.

    EXIF rotation and embedded colour profiles are applied; transparent pixels lie on white; of an animation the first
    frame is taken; 16-bit grey is scaled by 255/65535. Floating-point grey is taken as black 0 to white 1 if all its
    values lie there, and is otherwise stretched from its smallest to its largest value, as 32-bit integers are.

    Args:
        data: the bytes of the file.
        max_pixels: images of more pixels (width times height) are refused before they are decoded. Pillow's own bound
            of twice ``PIL.Image.MAX_IMAGE_PIXELS`` (179 million) stays in force.

    Raises:
        BadImage: if the data is empty, of no known format, cut off, damaged, or too large.
    """
    if not data:
        raise BadImage("the file is empty")
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=_AVAILABLE) as image:
                pixels = image.width * image.height
                if pixels > max_pixels:
                    raise BadImage(
                        f"it has {pixels:,} pixels ({image.width} x {image.height}); at most {max_pixels:,} are allowed"
                    )
                # verify() passes JPEGs that are cut off; only a full decode tells.
                image.load()
                # 16 bits in a 32-bit image: so Pillow gives PGM (and PNG until version 11). In TIFF they are 32 indeed.
                sixteen_bit = image.mode in _SIXTEEN_BIT or (image.mode == "I" and image.format in ("PNG", "PPM"))
                return _to_rgb(_upright(image), sixteen_bit=sixteen_bit)
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
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block says nothing about the pixels; viewers show them as they lie
        return image


def _to_rgb(image: Image.Image, *, sixteen_bit: bool) -> Image.Image:
    if sixteen_bit or image.mode in ("I", "F"):
        return _eight_bit(image, sixteen_bit=sixteen_bit).convert("RGB")
    image = _to_srgb(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        # Palettes and "transparent" colours hide arbitrary colours under the transparency: a plain convert("RGB")
        # would bring them out, usually as black.
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _eight_bit(image: Image.Image, *, sixteen_bit: bool) -> Image.Image:
    """Scale grey values of more than 8 bits; ``convert`` would cut them off at 255 and show nearly all as white."""
    values = np.asarray(image)
    if sixteen_bit:
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).clip(0, 255).astype(np.uint8))
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    span = high - low or 1.0
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / span
    return Image.fromarray(np.rint(scaled * 255).astype(np.uint8))


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
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1"):
        return " (it is HEIC, which Pillow does not read: convert it to JPEG)"
    if not any(data[:512]):
        return " (it starts with zero bytes)"
    return ""


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return f"the image is cut off ({text})" if text else "the image is cut off"
    return f"the image is damaged ({text or type(error).__name__})"
