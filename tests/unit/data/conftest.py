"""Small image folders, drawn by formula."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from thawline.config import DataConfig
from thawline.data import Manifest, cache, folder, scan


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


@pytest.fixture(name="encode")
def encode_fixture() -> Callable[..., bytes]:
    return encode


@pytest.fixture
def picture() -> Callable[[int], bytes]:
    """The bytes of a PNG of 12 x 10 pixels that is different for every number."""

    def make(number: int) -> bytes:
        pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        return encode(Image.fromarray(pixels), "PNG")

    return make


@pytest.fixture
def fill(tmp_path: Path, picture: Callable[[int], bytes]) -> Callable[[dict[str, int | bytes]], Path]:
    """Write files: ``{"cat/a.png": 3}`` writes picture number 3, bytes are written as they are."""
    root = tmp_path / "photos"

    def write(files: dict[str, int | bytes]) -> Path:
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else picture(content))
        return root

    return write


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode in this process: starting another for a dozen tiny files takes a second. test_pool.py does not use it."""

    def map_here(function: Callable[[Any], Any], items: list[Any], **options: Any) -> list[Any]:
        return [function(item) for item in items]

    monkeypatch.setattr(folder, "map_files", map_here)
    monkeypatch.setattr(cache, "map_files", map_here)


@pytest.fixture
def manifest(fill: Callable[[dict[str, int | bytes]], Path]) -> Manifest:
    """Of two classes of thirty pictures, and a copy."""
    files: dict[str, int | bytes] = {f"{name}/{n}.png": 100 * p + n for p, name in enumerate("ab") for n in range(30)}
    return scan(DataConfig(path=fill(files | {"a/copy.png": 3})))
