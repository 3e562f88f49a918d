"""Every kind of picture comes out as a viewer would show it, and every broken one with a reason."""

import base64
import io
import struct
import subprocess
import sys
import threading
import tracemalloc
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from thawline.data import BadImage, decode, encoded_image, images, resize_and_crop
from thawline.data.images import seen

Encode = Callable[..., bytes]


def plain(data: bytes) -> tuple[int, int, int]:
    """The first pixel as ``Image.open(…).convert("RGB")`` has it, which is what most loaders do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixel = Image.open(io.BytesIO(data)).convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


def palette(index: int) -> Image.Image:
    image = Image.new("P", (8, 8), index)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return image


def grey(value: float, dtype: Any) -> Image.Image:
    return Image.fromarray(np.full((8, 8), value, dtype))


# name, image, format, options, expected colour of the first pixel, is a plain convert("RGB") wrong?
PICTURES: list[tuple[str, Image.Image, str, dict[str, Any], tuple[int, int, int], bool]] = [
    ("one bit", Image.new("1", (8, 8), 1), "PNG", {}, (255, 255, 255), False),
    ("grey", Image.new("L", (8, 8), 100), "PNG", {}, (100, 100, 100), False),
    ("grey with alpha", Image.new("LA", (8, 8), (0, 0)), "PNG", {}, (255, 255, 255), True),
    ("grey with a transparent value", Image.new("L", (8, 8), 3), "PNG", {"transparency": 3}, (255, 255, 255), True),
    ("palette", palette(1), "PNG", {}, (255, 0, 0), False),
    ("palette, one index transparent", palette(0), "PNG", {"transparency": 0}, (255, 255, 255), True),
    ("palette with alphas", palette(1), "PNG", {"transparency": b"\xff\x80"}, (255, 127, 127), True),
    ("alpha", Image.new("RGBA", (8, 8), (255, 0, 0, 128)), "PNG", {}, (255, 127, 127), True),
    ("opaque alpha", Image.new("RGBA", (8, 8), (9, 8, 7, 255)), "PNG", {}, (9, 8, 7), False),
    ("a transparent colour", Image.new("RGB", (8, 8), (1, 2, 3)), "PNG", {"transparency": (1, 2, 3)}, (255,) * 3, True),
    ("transparent GIF", palette(0), "GIF", {"transparency": 0}, (255, 255, 255), True),
    ("transparent WebP", Image.new("RGBA", (8, 8), (0, 9, 0, 0)), "WEBP", {"lossless": True}, (255, 255, 255), True),
    ("16-bit grey PNG", grey(32896, np.uint16), "PNG", {}, (128, 128, 128), True),
    ("16-bit grey TIFF", grey(32896, np.uint16), "TIFF", {}, (128, 128, 128), True),
    ("float TIFF", grey(0.5, np.float32), "TIFF", {}, (128, 128, 128), True),
    (
        "CMYK JPEG, inverted by Adobe",
        Image.new("CMYK", (16, 16), (0, 255, 255, 0)),
        "JPEG",
        {"quality": 100},
        (255, 0, 0),
        False,
    ),
    ("CMYK TIFF", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF", {}, (255, 0, 0), False),
    ("LAB TIFF", Image.new("LAB", (8, 8), (128, 128, 128)), "TIFF", {}, (119, 119, 119), False),
    ("BMP", Image.new("RGB", (8, 8), (1, 2, 3)), "BMP", {}, (1, 2, 3), False),
    ("PPM", Image.new("RGB", (8, 8), (1, 2, 3)), "PPM", {}, (1, 2, 3), False),
    ("JPEG 2000", Image.new("RGB", (64, 64), (10, 20, 30)), "JPEG2000", {}, (10, 20, 30), False),
]


@pytest.mark.parametrize(
    ("image", "image_format", "options", "expected", "plain_is_wrong"),
    [picture[1:] for picture in PICTURES],
    ids=[picture[0] for picture in PICTURES],
)
def test_a_picture_comes_out_as_a_viewer_shows_it(
    encode: Encode,
    image: Image.Image,
    image_format: str,
    options: dict[str, Any],
    expected: tuple[int, int, int],
    plain_is_wrong: bool,
) -> None:
    data = encode(image, image_format, **options)

    result = decode(data)

    assert result.mode == "RGB"
    assert result.size == image.size
    assert result.getpixel((0, 0)) == expected
    assert (plain(data) != expected) == plain_is_wrong  # where True, the trap is real


def test_a_sixteen_bit_pgm_is_scaled() -> None:
    data = b"P5 8 8 65535\n" + np.full(64, 32896, ">u2").tobytes()

    assert decode(data).getpixel((0, 0)) == (128, 128, 128)
    assert plain(data) == (255, 255, 255)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_grey_values_of_no_fixed_range_are_stretched(encode: Encode, dtype: Any) -> None:
    values = np.linspace(-1000, 100_000, 64).reshape(8, 8).astype(dtype)

    result = np.asarray(decode(encode(Image.fromarray(values), "TIFF")))

    assert result[0, 0].tolist() == [0, 0, 0]
    assert result[-1, -1].tolist() == [255, 255, 255]
    assert (np.diff(result[..., 0].ravel().astype(int)) >= 0).all()


def test_floats_that_are_not_finite_do_not_spoil_the_others(encode: Encode) -> None:
    values = np.full((8, 8), 0.5, np.float32)
    values[0] = [np.nan, np.inf, -np.inf, 0, 1, 0.5, 0.5, 0.5]

    result = np.asarray(decode(encode(Image.fromarray(values), "TIFF")))

    assert result[0, :5, 0].tolist() == [0, 255, 0, 0, 255]
    assert result[1, 0].tolist() == [128, 128, 128]


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(encode: Encode, image_format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if image_format == "WEBP" else {}

    data = encode(frames[0], image_format, save_all=True, append_images=frames[1:], **options)

    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 2
    assert decode(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(encode: Encode, orientation: int) -> None:
    upright = Image.new("RGB", (32, 16), "black")
    upright.paste((255, 255, 255), (0, 0, 8, 8))  # a white corner at the top left, of a landscape picture
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the Transpose that the camera's turn amounts to
    stored = upright.transpose(Image.Transpose(back[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation

    result = decode(encode(stored, "PNG", exif=exif))

    assert np.array_equal(np.asarray(result), np.asarray(upright))
    if orientation > 1:
        assert stored.size != upright.size or not np.array_equal(np.asarray(stored), np.asarray(upright))


def test_a_broken_exif_block_does_not_cost_the_picture(encode: Encode) -> None:
    data = encode(Image.new("RGB", (16, 8), (200, 100, 50)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")

    assert decode(data).size == (16, 8)


def swapped_profile() -> bytes:
    """An ICC profile whose red is sRGB's blue and whose blue is sRGB's red, under a name of its own."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", profile, 128)
    for entry in range(132, 132 + 12 * count, 12):
        swap = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}
        name = bytes(profile[entry : entry + 4])
        profile[entry : entry + 4] = swap.get(name, name)
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "sBGR".encode("utf-16-be"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_embedded_colour_profile_is_applied(encode: Encode, mode: str) -> None:
    image = Image.new(mode, (8, 8), "red")
    data = encode(image, "PNG", icc_profile=swapped_profile())

    red, green, blue = np.asarray(decode(data))[0, 0].tolist()

    assert red < 10
    assert green < 10
    assert blue > 245
    assert plain(data) == (255, 0, 0)


@pytest.mark.parametrize("profile", [b"not a profile at all", b""], ids=["garbage", "none"])
def test_a_broken_colour_profile_is_ignored(encode: Encode, profile: bytes) -> None:
    data = encode(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG", icc_profile=profile)

    assert decode(data).getpixel((0, 0)) == (1, 2, 3)


def test_a_profile_for_other_channels_is_ignored(encode: Encode) -> None:
    data = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF", icc_profile=swapped_profile())

    assert decode(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (b"hello", "not an image of a known format"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"\0" * 1000, "zero bytes"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(data: bytes, words: str) -> None:
    with pytest.raises(BadImage, match=words):
        decode(data)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000"])
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_a_truncated_file_is_refused(encode: Encode, image_format: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = encode(noise, image_format)
    assert decode(whole).size == (64, 64)

    with pytest.raises(BadImage, match=r"truncated|damaged|not an image"):
        decode(whole[: int(len(whole) * share)])


def test_verify_would_have_passed_the_truncated_photograph(encode: Encode) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, "JPEG")[:-500]

    Image.open(io.BytesIO(data)).verify()  # says nothing

    with pytest.raises(BadImage, match="the image is truncated"):
        decode(data)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000"])
def test_a_damaged_file_is_decoded_or_refused_and_nothing_else(encode: Encode, image_format: str) -> None:
    generator = np.random.default_rng(7)
    whole = np.frombuffer(
        encode(Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)), image_format), np.uint8
    )
    refusals = []
    for _ in range(150):
        damaged = whole.copy()
        places = generator.integers(0, min(len(whole), 400), 4)
        damaged[places] = generator.integers(0, 256, 4)
        try:
            assert decode(damaged.tobytes(), max_pixels=1_000_000).mode == "RGB"
        except BadImage as error:
            refusals.append(str(error))
    assert refusals
    assert all(refusals)


def test_too_many_pixels_are_refused_before_they_are_decoded(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("RGB", (20, 10)), "PNG")
    assert decode(data, max_pixels=200).size == (20, 10)

    def must_not_run(*arguments: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", must_not_run)
    with pytest.raises(BadImage, match=r"200 pixels \(20 x 10\); at most 199"):
        decode(data, max_pixels=199)


def test_pillows_bomb_warning_and_error_stay_inside(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("RGB", (20, 10)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(data))

    assert decode(data).size == (20, 10)  # a leaking warning is an error in this suite

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(BadImage, match="more pixels"):
        decode(data)


def test_the_module_runs_without_thawline() -> None:
    """It is copied into the packaged model, where Thawline is not installed."""
    script = (
        "import sys, importlib.util as u\n"
        "class Block:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] in ('thawline', 'torch'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        f"spec = u.spec_from_file_location('standalone', {images.__file__!r})\n"
        "module = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.decode(b'P5 2 1 255\\n\\x00\\xff').size)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "(2, 1)"


SIZES = [(37, 23), (23, 37), (64, 64), (50, 200), (33, 400), (7, 5), (32, 33), (31, 32), (1, 1)]


@pytest.mark.parametrize(
    "interpolation", ["nearest", "nearest-exact", "bilinear", "bicubic", "lanczos", "box", "hamming"]
)
@pytest.mark.parametrize(("resize_size", "crop_size"), [(32, 32), (36, 32), (33, 20), (20, 32), (21, 32), (35, 96)])
def test_resizing_equals_torchvisions_own(resize_size: int, crop_size: int, interpolation: str) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    differs_from_nearest = False
    for number, size in enumerate(SIZES):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        resized = functional.resize(image, [resize_size], interpolation=InterpolationMode(interpolation))
        expected = np.asarray(functional.center_crop(resized, [crop_size]))

        result = resize_and_crop(image, resize_size=resize_size, crop_size=crop_size, interpolation=interpolation)

        assert result.shape == (crop_size, crop_size, 3)
        assert result.dtype == np.uint8
        assert np.array_equal(result, expected), size
        nearest = resize_and_crop(image, resize_size=resize_size, crop_size=crop_size, interpolation="nearest")
        differs_from_nearest |= not np.array_equal(result, nearest)
    assert differs_from_nearest == (not interpolation.startswith("nearest"))


@pytest.mark.parametrize(("resize_size", "crop_size"), [(32, 32), (36, 32), (33, 20), (20, 32)])
def test_squashing_equals_torchvisions_resize_of_both_sides(resize_size: int, crop_size: int) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    differs_from_cutting = False
    for number, size in enumerate([*SIZES, (1, 300), (300, 1)]):
        image = Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8))
        resized = functional.resize(image, [resize_size, resize_size], interpolation=InterpolationMode.BICUBIC)
        expected = np.asarray(functional.center_crop(resized, [crop_size]))
        view: dict[str, Any] = {"resize_size": resize_size, "crop_size": crop_size, "interpolation": "bicubic"}

        assert np.array_equal(resize_and_crop(image, crop_mode="squash", **view), expected), size
        differs_from_cutting |= not np.array_equal(resize_and_crop(image, **view), expected)
    assert differs_from_cutting


def test_a_squashed_strip_shows_its_ends_and_a_cut_one_does_not() -> None:
    strip = np.zeros((1, 100_000, 3), np.uint8)
    strip[0, :50_000], strip[0, 99_000:] = (200, 0, 0), (0, 0, 200)

    squashed, cut = (
        resize_and_crop(
            Image.fromarray(strip), resize_size=224, crop_size=224, interpolation="bilinear", crop_mode=crop_mode
        )
        for crop_mode in ("squash", "center")
    )

    assert (squashed[:, 0] == (200, 0, 0)).all()
    assert (squashed[:, -1] == (0, 0, 200)).all()
    assert cut[..., 2].max() == 0


def test_a_long_strip_keeps_its_middle_and_takes_little_memory() -> None:
    strip = np.zeros((1, 100_000, 3), np.uint8)
    strip[0, 49_990:50_010] = (10, 20, 30)  # would be 22 million pixels wide at this height

    result = resize_and_crop(Image.fromarray(strip), resize_size=224, crop_size=224, interpolation="bilinear")

    assert result.shape == (224, 224, 3)
    assert np.array_equal(result, np.broadcast_to(np.array([10, 20, 30], np.uint8), (224, 224, 3)))


@pytest.mark.parametrize(
    ("mode", "options", "words"),
    [
        ("L", {}, "must be in mode RGB"),
        ("RGB", {"crop_size": 0}, "at least 1"),
        ("RGB", {"interpolation": "cubic"}, "must be one of nearest"),
        ("RGB", {"crop_mode": "border"}, "crop_mode must be center or squash, but got 'border'"),
    ],
)
def test_wrong_arguments_are_named(mode: str, options: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"resize_size": 8, "crop_size": 8, "interpolation": "bilinear"} | options
    with pytest.raises(ValueError, match=words):
        resize_and_crop(Image.new(mode, (9, 9)), **arguments)


def photograph(width: int, height: int) -> Image.Image:
    """Colours that change slowly and, as in photographs, shapes of light down to the single pixel."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    light = 0.15 * np.sin(150 * across * down) + np.random.default_rng(0).normal(0, 0.01, (height, width))
    channels = [0.5 + 0.2 * np.sin(9 * across + 7 * down), 0.3 + 0.4 * across * down, 0.5 + 0.2 * np.cos(5 * across)]
    return Image.fromarray(((np.stack(channels, 2) + light[..., None]).clip(0, 1) * 255).astype(np.uint8))


VIEW = {"resize_size": 64, "crop_size": 56, "interpolation": "bilinear"}


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(1200, 800), (1024, 2048), (262, 518)])
def test_a_large_jpeg_is_decoded_in_part_and_looks_the_same(
    encode: Encode, size: tuple[int, int], orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photograph(*size), "JPEG", quality=92, exif=exif)
    whole = resize_and_crop(decode(data), **VIEW).astype(int)
    loaded: list[tuple[int, int]] = []
    upright = images._upright

    def watched(image: Image.Image) -> Image.Image:
        loaded.append(image.size)
        return upright(image)

    monkeypatch.setattr(images, "_upright", watched)

    part = seen(data, max_pixels=64_000_000, **VIEW)

    assert min(loaded[0]) < min(size)
    assert min(loaded[0]) >= 2 * VIEW["resize_size"]
    assert np.abs(part - whole).mean() < 1.5  # of 255; of photographs it is 0.3
    assert np.abs(part - whole).max() <= 12


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((1201, 801), {}),  # an edge of half a pixel would shift the others
        ((1200, 800), {"interpolation": "nearest"}),
        ((254, 254), {}),
    ],
    ids=["odd", "nearest", "small"],
)
def test_where_the_difference_could_be_seen_the_whole_is_decoded(
    encode: Encode, size: tuple[int, int], options: dict[str, str]
) -> None:
    data, view = encode(photograph(*size), "JPEG", quality=92), VIEW | options

    assert np.array_equal(seen(data, max_pixels=64_000_000, **view), resize_and_crop(decode(data), **view))


def test_threads_decode_beside_each_other(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, convert = threading.Barrier(2, timeout=60), images._to_rgb

    def meet(image: Image.Image, depth: images._Depth) -> Image.Image:
        inside.wait()  # with a lock around decode() the second would never come
        return convert(image, depth)

    monkeypatch.setattr(images, "_to_rgb", meet)
    with ThreadPoolExecutor(2) as pool:
        assert [image.size for image in pool.map(decode, [encode(photograph(30, 20), "JPEG")] * 20)] == [(30, 20)] * 20


def test_nothing_is_said_of_what_is_odd_about_a_file(encode: Encode, tmp_path: Path) -> None:
    file = tmp_path / "odd.png"
    file.write_bytes(encode(photograph(40, 30).convert("P"), "PNG", transparency=bytes(range(256))))
    script = (
        "import pathlib, sys\n{}\nfrom PIL import Image\nImage.open(sys.argv[1]).convert('RGB')\nprint('converted')\n"
    )

    def run(imports: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error::UserWarning", "-c", script.format(imports), str(file)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    assert "Palette images with Transparency" in run("").stderr
    assert run("import thawline.data.images").stdout == "converted\n"


def test_a_picture_of_32_bits_a_pixel_counts_its_bytes_and_is_converted_in_strips(
    encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.linspace(0, 1, 2000 * 1500, dtype=np.float32).reshape(1500, 2000)
    data = encode(Image.fromarray(values), "TIFF")
    with pytest.raises(BadImage, match=r"3,000,000 pixels of 32 bits .* at most 2,999,999 are allowed"):
        decode(data, max_pixels=3_999_999)
    monkeypatch.setattr(images, "_STRIP", 100_000)
    tracemalloc.start()
    result = decode(data, max_pixels=4_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(np.asarray(result)[..., 0], np.rint(values.astype(np.float64) * 255).astype(np.uint8))
    assert peak < 20_000_000, "NumPy's arrays; of the whole image they took 120 MB"


def test_base64_of_either_alphabet_is_understood_padded_or_not() -> None:
    data = bytes(range(256)) + b"\xfb\xff\xfe" * 5  # + and / and what stands for them in URLs
    for length in (256, 257, 258):
        for encoded in (base64.b64encode(data[:length]), base64.urlsafe_b64encode(data[:length])):
            for text in (encoded, encoded.rstrip(b"=")):
                assert encoded_image(text.decode()) == data[:length]
                assert encoded_image(text) == data[:length]
    assert {b"-", b"_"} <= {base64.urlsafe_b64encode(data)[i : i + 1] for i in range(300)}
    for text in ("§§", "a", "ab=c", "a b c d e"):
        with pytest.raises(ValueError, match="the text is not base64"):
            encoded_image(text)
