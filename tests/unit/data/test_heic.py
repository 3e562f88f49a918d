"""HEIC, where pillow-heif is installed: the right pixels, and what is said of damage."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from thawline.config import DataConfig
from thawline.data import BadImage, declared_pixels, decode, images, scan
from thawline.data._listing import by_extension

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def heic() -> Callable[..., bytes]:
    pillow_heif = pytest.importorskip("pillow_heif")

    def make(pixels: npt.NDArray[Any], mode: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        size = pixels.shape[1::-1]
        pillow_heif.from_bytes(mode, size, pixels.tobytes()).save(buffer, quality=-1, **options)
        return buffer.getvalue()

    return make


def smooth(channels: int, top: int = 255) -> npt.NDArray[np.uint16]:
    """64 x 96 pixels that change slowly, another way in each channel."""
    y, x = np.mgrid[0:64, 0:96]
    planes = [(x * (n + 1) + y * (3 - n)) / (95 * (n + 1) + 63 * (3 - n)) * top for n in range(channels)]
    return np.stack(planes, -1).astype(np.uint16)


def test_colours_grey_and_more_than_eight_bits_are_what_they_were(heic: Callable[..., bytes]) -> None:
    colours, grey = smooth(3), np.linspace(0, 255, 96 * 64).reshape(64, 96)

    for data, right in (
        (heic(colours.astype(np.uint8), "RGB"), colours),
        (heic(grey.astype(np.uint8), "L"), grey[..., None]),
        (heic((grey * 257).astype(np.uint16), "I;16"), grey[..., None]),
        (heic(smooth(3, 65535), "RGB;16"), colours),
    ):
        assert np.abs(np.asarray(decode(data)).astype(float) - right).mean() < 2
        assert declared_pixels(data) == 64 * 96


def test_transparent_pixels_lie_on_white(heic: Callable[..., bytes]) -> None:
    pixels = np.zeros((64, 96, 4), np.uint8)
    pixels[:, 48:, 3] = 255

    seen = np.asarray(decode(heic(pixels, "RGBA")))
    assert seen[:, :40].min() > 250
    assert seen[:, 56:].max() < 5


def test_a_rotated_photograph_stands_upright_once(heic: Callable[..., bytes]) -> None:
    """A decoder that turns the pixels, and EXIF that says so once more, would turn them twice."""
    decode(heic(smooth(3).astype(np.uint8), "RGB"))  # registers Pillow's plugin
    image = Image.fromarray(smooth(3).astype(np.uint8))
    image.getexif()[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "HEIF", quality=-1, exif=image.getexif().tobytes())
    right = np.asarray(image.transpose(Image.Transpose.ROTATE_270)).astype(float)

    seen = np.asarray(decode(buffer.getvalue())).astype(float)
    assert seen.shape == right.shape
    assert np.abs(seen - right).mean() < 2


def test_a_damaged_file_and_one_that_is_too_large_are_bad(heic: Callable[..., bytes]) -> None:
    whole = heic(smooth(3).astype(np.uint8), "RGB")

    with pytest.raises(BadImage, match="it has 6,144 pixels"):
        decode(whole, max_pixels=6143)
    with pytest.raises(BadImage, match=r"HEIC|damaged|truncated"):
        decode(whole[: len(whole) // 2])
    with pytest.raises(BadImage, match="it is HEIC, damaged"):
        decode(whole[:40])


def test_a_folder_of_photographs_of_a_telephone_is_read(heic: Callable[..., bytes], fill: Callable[..., Path]) -> None:
    files: dict[str, int | bytes] = {}
    for place, name in enumerate(("cat", "dog")):
        for number in range(12):
            pixels = np.full((32, 32, 3), (number * 20, place * 200, 90), np.uint8)
            files[f"{name}/IMG_{number:04}.{'HEIC' if number % 2 else 'heif'}"] = heic(pixels, "RGB")

    manifest = scan(DataConfig(path=fill(files)))
    assert len(manifest.rows) == 24
    assert manifest.bad == ()


def test_other_images_do_not_need_its_decoder(encode: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is loaded for the first HEIC alone."""
    monkeypatch.setattr(images, "_HEIF", True)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    for name in ("PNG", "JPEG", "TIFF"):
        data = encode(Image.new("RGB", (5, 4), "red"), name)
        assert decode(data).size == (5, 4)
        assert declared_pixels(data) == 20
    assert "HEIF" not in Image.OPEN


def test_where_the_package_is_missing_it_is_named() -> None:
    assert "pip install 'thawline[heic]'" in by_extension(Path("a.HEIC"))
    assert "convert it to JPEG" in by_extension(Path("a.jxl"))
