"""The demo data: scikit-learn's digits as an image folder."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from thawline.config import DataConfig
from thawline.data import decode, scan, write_digits

pytestmark = pytest.mark.usefixtures("in_process")


def test_the_digits_are_a_folder_that_can_be_trained_on(tmp_path: Path) -> None:
    folder = write_digits(tmp_path / "digits")

    manifest = scan(DataConfig(path=folder))

    assert manifest.classes == tuple("0123456789")
    assert len(manifest.rows) == 1797
    assert manifest.problems == ()
    assert all(count > 10 for splits in manifest.counts().values() for count in splits.values())

    # Shrunk back, each picture is the digit that scikit-learn has at this place, as dark ink on white.
    digits = load_digits()
    for index in (0, 7, 1796):
        path = folder / str(digits.target[index]) / f"digit-{index:04d}.png"
        picture = decode(path.read_bytes())
        assert picture.size == (32, 32)
        ink = 255 - np.asarray(picture.convert("L"), float).reshape(8, 4, 8, 4).mean(axis=(1, 3))
        assert np.corrcoef(ink.ravel(), digits.images[index].ravel())[0, 1] > 0.9


def test_writing_again_changes_nothing_and_completes_what_is_missing(tmp_path: Path) -> None:
    folder = write_digits(tmp_path)
    files = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.png")}
    first, second, *rest = files
    whole = first.read_bytes(), second.read_bytes()
    first.unlink()
    second.write_bytes(whole[1][:50])

    assert write_digits(tmp_path) == folder

    assert (first.read_bytes(), second.read_bytes()) == whole
    assert all(path.stat().st_mtime_ns == files[path] for path in rest)
    assert len(rest) == 1795
