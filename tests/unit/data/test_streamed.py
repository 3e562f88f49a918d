"""Images that are not kept decoded are the same pixels, and still those that the scan saw."""

import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from thawline.config import DataConfig
from thawline.data import DecodedImages, Manifest, StreamedImages, decoded, scan
from thawline.exceptions import DataError

pytestmark = pytest.mark.usefixtures("in_process")

VIEW: dict[str, Any] = {"resize_size": 9, "crop_size": 8, "interpolation": "bilinear"}


@pytest.fixture
def kept(manifest: Manifest, tmp_path: Path) -> np.ndarray:
    """What the same images are where they are kept decoded."""
    return np.array(decoded(manifest, cache_dir=tmp_path / "kept", **VIEW).images)


def stream(manifest: Manifest, folder: Path) -> DecodedImages:
    opened = decoded(manifest, cache_dir=folder, cache="off", **VIEW)
    assert not opened.are_kept
    return opened


def test_they_are_the_pixels_and_labels_that_would_be_kept_whatever_is_asked_for(
    manifest: Manifest, kept: np.ndarray, tmp_path: Path
) -> None:
    opened = stream(manifest, tmp_path / "cache")

    assert opened.images.shape == kept.shape == (61, 8, 8, 3)
    assert opened.images.nbytes == kept.nbytes
    assert opened.labels.tolist() == [row.label for row in manifest.rows]
    for wanted in (0, -1, np.int64(7), np.array([3, 60, 3]), [5], np.arange(61), np.array([], np.intp)):
        pixels = opened.images[wanted]
        assert isinstance(pixels, np.ndarray)
        assert np.array_equal(pixels, kept[wanted])
        assert pixels.flags.writeable
    images, labels = opened.split("validation")
    first = next(number for number, row in enumerate(manifest.rows) if row.split == "validation")
    assert isinstance(images, StreamedImages)
    assert len(images) == len(labels) == len(manifest.of("validation"))
    assert np.array_equal(images[np.array([0, 2])], kept[[first, first + 2]])
    with pytest.raises(IndexError):
        images[len(images)]


@pytest.mark.parametrize("threads", [1, 3, 100])
def test_any_number_of_threads_gives_them_in_the_order_that_was_asked_for(
    manifest: Manifest, kept: np.ndarray, tmp_path: Path, threads: int
) -> None:
    path = stream(manifest, tmp_path / "cache").path
    rows = np.random.default_rng(0).permutation(61)

    assert np.array_equal(DecodedImages.open(path, threads=threads).images[rows], kept[rows])


def test_nothing_is_decoded_before_it_is_asked_for_and_nothing_decoded_is_written(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path), original(path))[1])

    opened = stream(manifest, tmp_path / "cache")
    images, _ = opened.split("train")
    assert not read
    images[0]

    assert read == [manifest.root / manifest.of("train")[0].path]
    (file,) = (tmp_path / "cache").iterdir()
    assert file.stat().st_size < 61 * 8 * 8 * 3, "names, digests and labels take less than these tiny pictures"


def test_activations_are_named_alike_whether_images_are_kept_or_not(manifest: Manifest, tmp_path: Path) -> None:
    assert (
        stream(manifest, tmp_path / "cache").path.stem
        == decoded(manifest, cache_dir=tmp_path / "kept", **VIEW).path.stem
    )


@pytest.mark.parametrize("change", ["other bytes", "gone", "broken"])
def test_a_file_that_changed_is_refused_by_whoever_reads_it_and_others_are_read(
    manifest: Manifest, kept: np.ndarray, tmp_path: Path, picture: Callable[[int], bytes], change: str
) -> None:
    opened = stream(manifest, tmp_path / "cache")
    path = manifest.root / manifest.rows[5].path
    path.unlink()
    if change != "gone":
        path.write_bytes(picture(999) if change == "other bytes" else b"x")

    with pytest.raises(DataError, match=f"1 image changed since the folder was read, the first: {path}"):
        opened.images[np.arange(10)]

    assert np.array_equal(opened.images[np.arange(5)], kept[:5])


def test_renamed_files_are_listed_again(manifest: Manifest, kept: np.ndarray, tmp_path: Path) -> None:
    before = stream(manifest, tmp_path / "cache").path
    for path in list(manifest.root.glob("*/*.png")):
        path.rename(path.with_name(f"renamed-{path.name}"))

    again = stream(scan(DataConfig(path=manifest.root)), tmp_path / "cache")

    assert again.path == before
    assert np.array_equal(again.images[np.arange(61)], kept)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf8_are_read(fill: Any, picture: Callable[[int], bytes], tmp_path: Path) -> None:
    root = fill({f"{name}/{n}.png": 100 * p + n for p, name in enumerate("ab") for n in range(20)})
    with open(os.fsencode(root) + b"/a/h\xfct.png", "wb") as file:  # noqa: PTH123  no Path has such a name
        file.write(picture(500))
    manifest = scan(DataConfig(path=root))
    (row,) = [number for number, row in enumerate(manifest.rows) if row.path.startswith("a/h")]

    assert stream(manifest, tmp_path / "cache").images[row].shape == (8, 8, 3)


def test_it_is_opened_from_its_path_and_sent_to_other_processes_as_its_path(
    manifest: Manifest, kept: np.ndarray, tmp_path: Path
) -> None:
    opened = stream(manifest, tmp_path / "cache")
    sent = pickle.dumps(opened)

    assert np.array_equal(pickle.loads(sent).images[3], kept[3])  # noqa: S301
    assert len(sent) < 1000


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def overwrite(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def replaced(path: Path) -> None:
    path.write_text("something else")


@pytest.mark.parametrize("damage", [cut_off, overwrite, replaced, Path.unlink])
def test_a_damaged_list_is_not_opened_and_is_written_again(
    manifest: Manifest, kept: np.ndarray, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = stream(manifest, tmp_path / "cache").path
    damage(path)

    with pytest.raises(DataError, match="missing or damaged"):
        DecodedImages.open(path)

    assert np.array_equal(stream(manifest, tmp_path / "cache").images[4], kept[4])


def test_without_room_on_the_disk_nothing_is_kept_unless_it_is_there_already(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def free(spare: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=200_000_000 + spare))

    size = 61 * 8 * 8 * 3
    free(2 * size - 1)
    assert not decoded(manifest, cache_dir=tmp_path / "cache", **VIEW).are_kept
    assert not list((tmp_path / "cache").glob("*.npy"))
    free(2 * size)
    assert decoded(manifest, cache_dir=tmp_path / "cache", **VIEW).are_kept
    free(0)
    assert decoded(manifest, cache_dir=tmp_path / "cache", **VIEW).are_kept
    assert not decoded(manifest, cache_dir=tmp_path / "cache", cache="off", **VIEW).are_kept
