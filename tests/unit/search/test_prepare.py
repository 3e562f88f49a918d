"""What every backbone of a search is shown."""

import logging
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from thawline.config import SearchConfig
from thawline.data import DecodedImages, decode, resize_and_crop, scan
from thawline.search import complete, prepare_inputs
from thawline.search.prepare import plain_name


def test_a_backbone_that_was_trained_on_squashed_images_is_shown_squashed_ones(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng(ord(name) + 1000 * number).integers(0, 256, (20, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    squashing, cutting = "timm/maxvit_tiny_tf_384", "timm/resnet18"
    config = SearchConfig.build(
        {
            "data": {"path": str(tmp_path / "data"), "workers": 1},
            "backbone": {"image_size": 32, "weights": {squashing: "none", cutting: "none"}},
            "space": {"backbone": {squashing: None, cutting: None}},
        }
    )
    manifest = scan(config.data)
    inputs = prepare_inputs(config, manifest, tmp_path / "home")

    image = decode((manifest.root / manifest.rows[0].path).read_bytes())
    view: dict[str, Any] = {"resize_size": 32, "crop_size": 32, "interpolation": "bicubic"}
    squashed = resize_and_crop(image, **view, crop_mode="squash")
    assert np.array_equal(DecodedImages.open(inputs[squashing]).images[0], squashed)
    cut = resize_and_crop(image, **view | {"resize_size": int(32 / 0.95)})
    assert np.array_equal(DecodedImages.open(inputs[cutting]).images[0], cut)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("photos", r"photos"),
        ("my photos (2024)", r"my-photos-2024"),
        ("Käfer", r"Kafer"),
        ("кошки", r"images-[0-9a-f]{6}"),
        ("собаки", r"images-[0-9a-f]{6}"),
        ("кошки 2", r"2-[0-9a-f]{6}"),
        ("猫" * 80, r"images-[0-9a-f]{6}"),
        ("h\udcfct", r"h-t-[0-9a-f]{6}|h-t"),
    ],
)
def test_models_are_named_after_their_data_in_every_script(folder: str, name: str, tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / folder / label).mkdir(parents=True)
        for number in range(4):
            pixels = np.full((8, 8, 3), 40 * number + 7 * (label == "dog"), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / label / f"{number}.png")
    config = SearchConfig.build(
        {"data": {"path": str(tmp_path / folder), "test_fraction": 0.4, "validation_fraction": 0.3}}
    )
    resolved, _ = complete(config, scan(config.data))
    assert re.fullmatch(name, resolved.promotion.model)


def test_data_in_another_script_do_not_share_a_model() -> None:
    names = [plain_name(text) for text in ("кошки", "собаки", "тексты", "Käfer", "Küfer")]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_it_is_said_in_one_line_that_and_why_nothing_is_kept_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, cache: str
) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng(ord(name) + 1000 * number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    name = "mobilenet_v3_small"
    config = SearchConfig.build(
        {
            "data": {"path": str(tmp_path / "data"), "workers": 1, "cache": cache},
            "backbone": {"name": name, "weights": "none", "image_size": 32},
        }
    )
    manifest = scan(config.data)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=200_000_000))

    with caplog.at_level(logging.INFO, "thawline.search"):
        inputs = prepare_inputs(config, manifest, tmp_path / "home")

    images = DecodedImages.open(inputs[name])
    assert not images.are_kept
    assert images.images.shape == (40, 32, 32, 3)
    why = {
        "auto": f"decoded, they would take 0.0 GB, more than half of the free space in {tmp_path / 'home'}",
        "off": "data.cache=off",
    }
    (line,) = [record.getMessage() for record in caplog.records if "every read" in record.getMessage()]
    assert line == f"images are decoded on every read instead of once: {why[cache]}"
