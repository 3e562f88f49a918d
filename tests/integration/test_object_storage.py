"""A search whose images and artifacts lie on a real S3 server: nothing of them is local but what can be recreated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from object_storage import Bucket, bucket, s3_server

__all__ = ["bucket", "s3_server"]  # fixtures

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("s3")]

OPTIONS = [
    *("--backbone", "mobilenet_v3_small", "--weights", "starter", "--image-size", "32", "--batch-size", "16"),
    *("--trials", "1", "--epochs", "1", "--set", "data.workers=1", "--set", "train.device=cpu", "--json"),
    *("--set", "promotion.exports=[]"),
]


def test_images_come_from_a_bucket_and_the_model_is_loaded_from_one(
    bucket: Bucket,
    tmp_path: Path,
    forked: Callable[..., Any],
    draw_pictures: Callable[..., Path],
    prepared: Callable[[Path], Path],
    prefect: dict[str, str],
) -> None:
    pictures = draw_pictures(tmp_path / "local", count=12)
    files = {f"shapes/{file.relative_to(pictures).as_posix()}": file.read_bytes() for file in pictures.glob("*/*.png")}
    bucket.put(files)
    home = prepared(tmp_path / "home")
    environment = bucket.environment | prefect
    artifacts = ("--set", f"tracking.artifacts={bucket.url}/thawline")
    searched = forked("search", f"{bucket.url}/shapes", *OPTIONS, *artifacts, home=home, **environment)
    assert searched.code == 0, searched.err
    assert (searched.json["model"], searched.json["version"], searched.json["unsent"]) == ("shapes", "1", 0)
    kept = bucket.keys()
    assert any(key.startswith("thawline/") and key.endswith(".safetensors") for key in kept)
    assert not list(home.glob("artifacts/**/*.safetensors"))

    image = next(pictures.glob("circle/*.png"))
    predicted = forked("predict", "shapes@challenger", image, "--json", home=home, **environment)
    assert predicted.code == 0, predicted.err
    assert predicted.json[0]["class"] in {"circle", "square", "stripes"}

    checked = forked("check", f"{bucket.url}/shapes", "--json", home=home, **environment)
    assert checked.code == 0, checked.err
    missing = forked("search", f"{bucket.url}/nothing", *OPTIONS, home=home, **environment)
    assert missing.code == 2
    assert f"{bucket.url}/nothing" in missing.err
    assert "Traceback" not in missing.err
