"""A matrix of modes, depths, planes, byte orders and compressions: the right pixels, or a refusal that says why.

The files are written byte by byte, so that the right value of each pixel is known without any reader.
"""

import itertools
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms
from raw_images import jpeg2000, pfm, png, png_part, pnm, tiff

from thawline.data import BadImage, decode, images

H, W = 6, 8
Pixels = npt.NDArray[Any]
Kind = tuple[str, bytes, Pixels | str]
"""Name, file, and its right pixels in [0, 255], or words of the refusal."""


def drawn(shape: tuple[int, ...], high: int, dtype: Any, low: int = 0) -> Pixels:
    """Random values that reach from the lowest to the highest one."""
    values = np.random.default_rng(len(shape)).integers(low, high, shape, dtype=np.int64, endpoint=True)
    values.reshape(-1)[:2] = low, high
    return values.astype(dtype)


def on_white(colour: Pixels, alpha: Pixels) -> Pixels:
    """Both in [0, 1]; the result in [0, 255]."""
    return (colour * alpha + 1 - alpha) * 255


def tiffs() -> list[Kind]:
    kinds: list[Kind] = []
    for order, deflated in itertools.product("<>", (False, True)):
        of = f"{order}{' deflated' if deflated else ''}"
        options: dict[str, Any] = {"order": order, "deflated": deflated}
        for bits, inverted in itertools.product((1, 2, 4, 8, 16), (False, True)):
            values = drawn((H, W), 2**bits - 1, np.uint16 if bits == 16 else np.uint8)
            right = values / (2**bits - 1) * 255
            data = tiff(values, 0 if inverted else 1, bits=bits, **options)
            name = f"grey {bits} {'MinIsWhite ' if inverted else ''}{of}"
            refused = bits == 16 and inverted and order == ">"
            kinds.append(
                (name, data, "1 channel of 16-bit integers" if refused else 255 - right if inverted else right)
            )
        for bits, planar, step in itertools.product((8, 16), (1, 2), (None, 2)):
            dtype = np.uint16 if bits == 16 else np.uint8
            top = 2**bits - 1
            layout = f"{bits} {'planar ' if planar == 2 else ''}{'strips ' if step else ''}{of}"
            colours = drawn((H, W, 3), top, dtype)
            data = tiff(colours, 2, planar=planar, rows_per_strip=step, **options)
            kinds.append((f"RGB {layout}", data, colours / top * 255))
            four = drawn((H, W, 4), top, dtype)
            data = tiff(four, 2, planar=planar, rows_per_strip=step, extra=2, **options)
            kinds.append((f"RGBA {layout}", data, on_white(four[..., :3] / top, four[..., 3:] / top)))
            inks = drawn((H, W, 4), top, dtype)
            data = tiff(inks, 5, planar=planar, rows_per_strip=step, **options)
            right = (1 - inks[..., :3] / top) * (1 - inks[..., 3:] / top) * 255
            undecodable = bits == 16 and planar == 2 and not deflated
            kinds.append((f"CMYK {layout}", data, "Pillow does not support" if undecodable else right))
        stretched: list[tuple[str, Pixels]] = [
            ("signed 8", drawn((H, W), 127, np.int8, -128)),
            ("signed 16", drawn((H, W), 32767, np.int16, -32768)),
            ("signed 32", drawn((H, W), 2**31 - 1, np.int32, -(2**31))),
            ("unsigned 32", drawn((H, W), 2**32 - 1, np.uint32)),
            ("floats 32", np.linspace(0, 1, H * W, dtype=np.float32).reshape(H, W)),
        ]
        for name, values in stretched:
            wide = values.astype(np.float64)
            right = (wide - wide.min()) / (wide.max() - wide.min()) * 255
            refused = name == "unsigned 32" and order == ">"
            kinds.append((f"{name} {of}", tiff(values, 1, **options), "32-bit integers" if refused else right))
        floats = stretched[-1][1]
        kinds.append((f"floats 32 MinIsWhite {of}", tiff(floats, 0, **options), 255 - floats * 255.0))
        two = drawn((H, W, 2), 255, np.uint8)
        twelve = drawn((H, W), 4095, np.uint16)
        right12 = "12-bit integers" if order == ">" else twelve / 4095 * 255
        kinds += [
            (f"grey 12 {of}", tiff(twelve, 1, bits=12, **options), right12),
            (f"floats 64 {of}", tiff(floats.astype(np.float64), 1, **options), "1 channel of 64-bit floats"),
            (f"floats 16 {of}", tiff(floats.astype(np.float16), 1, **options), "1 channel of 16-bit floats"),
            (f"RGB floats {of}", tiff(np.stack([floats] * 3, -1), 2, **options), "3 channels of 32-bit floats"),
            (
                f"grey and alpha 8 {of}",
                tiff(two, 1, extra=2, **options),
                on_white(two[..., :1] / 255, two[..., 1:] / 255),
            ),
            (f"grey and alpha 16 {of}", tiff(two.astype(np.uint16), 1, extra=2, **options), "2 channels of 16-bit"),
        ]
    colours, indices = drawn((3, 256), 65535, np.uint16), drawn((H, W), 255, np.uint8)
    kinds.append(("palette", tiff(indices, 3, colours=colours), (colours[:, indices] / 257).transpose(1, 2, 0)))
    return [(f"TIFF {name}", data, right) for name, data, right in kinds]


def pngs() -> list[Kind]:
    kinds: list[Kind] = []
    for bits in (1, 2, 4, 8, 16):
        top = 2**bits - 1
        values = drawn((H, W), top, np.uint16)
        right = values / top * 255
        kinds.append((f"grey {bits}", png(values, 0, bits), right))
        for transparent in sorted({0, 1, top // 3, top}):
            part = png_part(b"tRNS", struct.pack(">H", transparent))
            seen = np.where(values == transparent, 255.0, right)
            kinds.append((f"grey {bits}, {transparent} transparent", png(values, 0, bits, part), seen))
    for bits in (8, 16):
        top = 2**bits - 1
        colours = drawn((H, W, 3), top, np.uint16)
        kinds.append((f"RGB {bits}", png(colours, 2, bits), colours / top * 255))
        part = png_part(b"tRNS", struct.pack(">HHH", *map(int, colours[2, 2])))
        hidden = (colours == colours[2, 2]).all(-1, keepdims=True)
        kinds.append(
            (
                f"RGB {bits}, a colour transparent",
                png(colours, 2, bits, part),
                np.where(hidden, 255, colours / top * 255),
            )
        )
        four, two = drawn((H, W, 4), top, np.uint16) / top, drawn((H, W, 2), top, np.uint16) / top
        kinds.append((f"RGBA {bits}", png(np.rint(four * top), 6, bits), on_white(four[..., :3], four[..., 3:])))
        kinds.append((f"grey and alpha {bits}", png(np.rint(two * top), 4, bits), on_white(two[..., :1], two[..., 1:])))
    return [(f"PNG {name}", data, right) for name, data, right in kinds]


def netpbms() -> list[Kind]:
    kinds: list[Kind] = []
    for top, plain in itertools.product((1, 3, 100, 255, 256, 1000, 1023, 4095, 65535), (False, True)):
        for shape in ((H, W), (H, W, 3)):
            values = drawn(shape, top, np.uint16)
            name = f"{'PGM' if len(shape) == 2 else 'PPM'} {top}{' plain' if plain else ''}"
            kinds.append((name, pnm(values, top, plain=plain), values / top * 255))
    floats = np.linspace(0, 1, H * W).reshape(H, W)
    kinds += [(f"PFM {order}", pfm(floats, order), floats * 255) for order in "<>"]
    return kinds


def jpeg2000s() -> list[Kind]:
    kinds: list[Kind] = []
    for value in (0, 1000, 32768, 65407, 65408, 65535):
        kinds.append((f"JPEG 2000 grey 16, {value}", jpeg2000(value, 1), np.full((16, 16), value / 257)))
        kinds += [
            (f"JPEG 2000, {n} channels, {value}", jpeg2000(value, n), "more than 8 bits per channel") for n in (2, 3, 4)
        ]
    return kinds


KINDS = [*tiffs(), *pngs(), *netpbms(), *jpeg2000s()]


@pytest.mark.parametrize(("data", "right"), [kind[1:] for kind in KINDS], ids=[kind[0] for kind in KINDS])
def test_an_image_has_its_right_pixels_or_is_refused(data: bytes, right: Pixels | str) -> None:
    if isinstance(right, str):
        with pytest.raises(BadImage, match=right):
            decode(data)
        return
    seen = np.asarray(decode(data)).astype(np.float64)

    expected = np.broadcast_to(right if right.ndim == 3 else right[..., None], seen.shape)
    assert np.abs(seen - expected).max() <= 2  # of 255: Pillow keeps the high byte of 16


def test_white_of_sixteen_bits_a_channel_would_have_turned_black() -> None:
    """Why JPEG 2000 of more than 8 bits per channel is refused; when Pillow decodes it rightly, this fails."""
    import io

    with Image.open(io.BytesIO(jpeg2000(65535, 3))) as image:
        assert image.convert("RGB").getpixel((0, 0)) == (0, 0, 0)


PLAIN = drawn((H, W, 3), 255, np.uint8)
LONG = b"prompt\0\0" + zlib.compress(b"a castle in the clouds, " * 100_000)
LONG_INTERNATIONAL = b"workflow\0\1\0\0\0" + zlib.compress(b'{"nodes": []}' * 200_000)


@pytest.mark.parametrize(
    "parts",
    [
        [png_part(b"zTXt", LONG)],
        [png_part(b"iTXt", LONG_INTERNATIONAL)],
        [png_part(b"tEXt", b"parameters\0" + b"steps: 30, " * 400_000)],
        [png_part(b"tEXt", b"note\0" + b"x" * 60_000)] * 40,
        [png_part(b"tEXt", b"Software\0a camera", checksum=1)],
        [png_part(b"pHYs", b"\0\0\0\1\0\0\0\1\0", checksum=1), png_part(b"zTXt", LONG)],
        [png_part(b"iCCP", b"broken\0\0not compressed", checksum=1)],
        [png_part(b"iCCP", b"broken\0\0" + b"not compressed")],
    ],
    ids=["zTXt", "iTXt", "long tEXt", "many tEXt", "checksum", "checksum and text", "checksum of profile", "profile"],
)
def test_what_a_png_holds_beside_its_pixels_does_not_cost_them(parts: list[bytes]) -> None:
    assert np.array_equal(np.asarray(decode(png(PLAIN, 2, 8, *parts))), PLAIN)


def test_a_wrong_checksum_of_what_the_pixels_need_is_damage() -> None:
    whole = bytearray(png(PLAIN, 2, 8))
    whole[whole.index(b"IHDR") + 4 + 13] ^= 1
    with pytest.raises(BadImage, match="not an image of a known format"):
        decode(bytes(whole))


def test_a_profile_of_more_than_a_megabyte_is_applied() -> None:
    """Printers' profiles are so long; left out, the colours would be wrong without a word."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", profile, 128)
    for entry in range(132, 132 + 12 * count, 12):
        name = bytes(profile[entry : entry + 4])
        profile[entry : entry + 4] = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}.get(name, name)
    named = bytes(profile).replace("sRGB".encode("utf-16-be"), "sBGR".encode("utf-16-be"))
    long = struct.pack(">I", len(named) + 2_000_000) + named[4:] + b"\0" * 2_000_000
    red = np.full((H, W, 3), (255, 0, 0))

    for embedded in (named, long):
        data = png(red, 2, 8, png_part(b"iCCP", b"swapped\0\0" + zlib.compress(embedded)))
        assert np.asarray(decode(data))[0, 0].tolist()[::2] == pytest.approx([0, 255], abs=8)
    assert np.array_equal(np.asarray(decode(png(red, 2, 8))), red)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        *(
            (b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand, "it is HEIC, which requires pillow-heif: pip install")
            for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"XXXX")
        ),
        (b"\xff\x0a" + b"\x01" * 40, "JPEG XL"),
        (b"II*\0\x08\0\0\0\x01\0", "a damaged TIFF"),
        (b"II+\0" + b"\0" * 40, "a damaged TIFF"),
    ],
)
def test_formats_that_are_not_read_are_told_by_their_content(
    data: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_HEIF", False)
    with pytest.raises(BadImage, match=words):
        decode(data)
