"""What every backbone of a search is shown."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from thawline.config import SearchConfig
from thawline.data import DecodedImages, decode, resize_and_crop, scan
from thawline.search import prepare_inputs


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
