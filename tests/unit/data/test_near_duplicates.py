"""The same picture in another file is found, and kept on one side; pictures that are merely alike are not."""

import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from thawline.config import DataConfig
from thawline.data import Manifest, scan
from thawline.data._near_duplicates import Thumbnails, near_duplicates, thumbnail, write_thumbnail
from thawline.exceptions import DataError

pytestmark = pytest.mark.usefixtures("in_process")


def drawn(number: int, size: tuple[int, int] = (120, 160)) -> Image.Image:
    """A picture of soft blots in colours, another for each number."""
    noise = np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def saved(image: Image.Image, name: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def pasted(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.paste((255, 255, 255), (30, 50, 80, 110))
    return image


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "the same": lambda image: image,
    "smaller": lambda image: image.resize((66, 88), Image.Resampling.BICUBIC),
    "larger": lambda image: image.resize((300, 400), Image.Resampling.BICUBIC),
    "of another shape": lambda image: image.resize((100, 100), Image.Resampling.BICUBIC),
    "cut at all sides": lambda image: image.crop((3, 3, 117, 156)),
    "cut at the left": lambda image: image.crop((8, 0, 120, 160)),
    "cut at the bottom": lambda image: image.crop((0, 0, 120, 153)),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "compressed hard": lambda image: Image.open(io.BytesIO(saved(image, "JPEG", quality=20))),
}
OTHERS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "in other colours": lambda image: Image.merge("RGB", image.split()[::-1]),
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "its half": lambda image: image.crop((0, 0, 120, 80)),
    "much darker": lambda image: image.point(lambda value: value // 2),
    "with something before it": pasted,
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_the_same_picture_is_found(change: Callable[[Image.Image], Image.Image]) -> None:
    others = [thumbnail(drawn(n)) for n in range(1, 40)]
    for number in (50, 51, 52):
        one, other = thumbnail(drawn(number)), thumbnail(change(drawn(number)))
        assert near_duplicates([*others, one, other]) == [(39, 40)]
        assert near_duplicates([other, *others, one]) == [(0, 40)]


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_another_picture_is_none(change: Callable[[Image.Image], Image.Image]) -> None:
    for number in range(60, 70):
        assert near_duplicates([thumbnail(drawn(number)), thumbnail(change(drawn(number)))]) == []


def test_pale_images_and_very_small_ones_are_not_alike() -> None:
    pale = [drawn(n).point(lambda value: 240 + value // 32) for n in range(30)]
    assert near_duplicates([thumbnail(image) for image in pale]) == []
    assert thumbnail(drawn(1, (31, 64))) == b""
    assert near_duplicates([b"", b"", thumbnail(drawn(1))]) == []


def test_images_that_are_all_alike_are_not_all_compared() -> None:
    """The hash of frames of a still video does not tell them apart: what is compared stays bounded."""
    one = thumbnail(drawn(1))
    assert near_duplicates([one] * 300) == []


def test_what_is_found_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from thawline.data import _near_duplicates

    images = [thumbnail(drawn(n // 2).resize((120 - n % 2, 160))) for n in range(40)]
    pairs = [(n, n + 1) for n in range(0, 40, 2)]
    assert near_duplicates(images) == pairs
    monkeypatch.setattr(_near_duplicates, "_BLOCK", 7)
    monkeypatch.setattr(_near_duplicates, "_PAIRS", 3)
    assert near_duplicates(images) == pairs


def test_thumbnails_in_a_file_are_compared_as_those_in_memory(tmp_path: Path) -> None:
    images = [thumbnail(drawn(n // 2).resize((120 - n % 2, 160))) for n in range(40)]
    rows = np.random.default_rng(0).permutation(60)[:40].tolist()  # others are of images that are too small
    (tmp_path / "thumbnails").touch()
    for row, image in zip(rows, images, strict=True):
        write_thumbnail(image, tmp_path / "thumbnails", row)
    assert near_duplicates(Thumbnails.in_file(tmp_path / "thumbnails", rows)) == near_duplicates(images)
    assert near_duplicates(images) == [(n, n + 1) for n in range(0, 40, 2)]


# ------------------------------------------------------------------------------------------------------- in a data set


Files = dict[str, int | bytes]
Fill = Callable[[Files], Path]


def pets(count: int = 30) -> Files:
    return {
        f"{name}/{n:03}.png": saved(drawn(1000 * p + n)) for p, name in enumerate(("cat", "dog")) for n in range(count)
    }


def read(root: Path, **options: Any) -> Manifest:
    return scan(DataConfig(path=root, **options))


def near(manifest: Manifest) -> dict[str, str]:
    return {problem.path: problem.reason for problem in manifest.problems if problem.kind == "near"}


def sides(manifest: Manifest) -> dict[str, str]:
    return {row.path: row.split for row in manifest.rows}


def test_no_thumbnail_is_left_and_a_disk_without_room_for_them_is_an_error_with_a_way_out(
    fill: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(pets())
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    read(root)
    assert not list((tmp_path / "temporary").iterdir())

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=180_000))
    with pytest.raises(DataError, match=rf"take 0.0 GB in {tmp_path / 'temporary'}, which has less. .*TMPDIR"):
        read(root)
    assert len(read(root, near_duplicates="off").rows) == 60


def test_near_duplicates_are_listed_and_on_one_side(fill: Fill) -> None:
    copies: Files = {f"cat/copy{n:03}.jpg": saved(drawn(n).resize((90, 120)), "JPEG") for n in range(30)}
    root = fill(pets() | copies)
    manifest = read(root)
    split = sides(manifest)

    assert len(manifest.rows) == 90
    assert all(split[f"cat/{n:03}.png"] == split[f"cat/copy{n:03}.jpg"] for n in range(30))
    assert len(set(split.values())) == 3
    assert len(near(manifest)) == 30
    assert all(reason.startswith("nearly the same image as cat/") for reason in near(manifest).values())
    apart = sides(read(root, near_duplicates="off"))
    assert any(apart[f"cat/{n:03}.png"] != apart[f"cat/copy{n:03}.jpg"] for n in range(30))
    assert near(read(root, near_duplicates="off")) == {}


def test_where_a_near_duplicate_is_excluded_the_other_stays_where_it_was(fill: Fill, tmp_path: Path) -> None:
    root = fill(pets() | {f"cat/copy{n:03}.jpg": saved(drawn(n).resize((90, 120)), "JPEG") for n in range(30)})
    before = sides(read(root))
    (tmp_path / "out.csv").write_text("path\n" + "\n".join(paths(20)))
    after = read(root, exclude=tmp_path / "out.csv")
    assert sides(after) == {path: side for path, side in before.items() if path not in paths(20)}
    assert {int(path[-7:-4]) for path in near(after)} == set(range(20, 30))


def paths(count: int) -> list[str]:
    return [f"cat/{n:03}.png" for n in range(count)]


def test_without_near_duplicates_the_data_are_what_they_were(fill: Fill) -> None:
    root = fill(pets())
    assert read(root) == read(root, near_duplicates="off")


def test_a_near_duplicate_under_another_class_is_kept_and_said(fill: Fill) -> None:
    manifest = read(fill(pets() | {"dog/copy.jpg": saved(drawn(3), "JPEG")}))

    ((path, reason),) = near(manifest).items()
    assert {path, reason.split()[5].rstrip(",")} == {"cat/003.png", "dog/copy.jpg"}
    assert "under another class (" in reason
    assert len(manifest.rows) == 61


def test_of_given_splits_the_one_that_is_trained_on_is_left_out(fill: Fill) -> None:
    train = {f"train/{name}": data for name, data in pets().items()}
    test = {f"test/{name}": saved(drawn(500 + n)) for n, name in enumerate(pets(5))}
    manifest = read(fill(train | test | {"test/cat/copy.jpg": saved(drawn(3).resize((90, 120)), "JPEG")}))

    (leak,) = (problem for problem in manifest.problems if problem.kind == "leak")
    assert leak.path == "train/cat/003.png"
    assert leak.reason == "nearly the same image as test/cat/copy.jpg in the test split"


def test_where_there_are_groups_near_duplicates_join_none(fill: Fill) -> None:
    files = pets() | {"cat/009_copy.jpg": saved(drawn(3), "JPEG")}
    root = fill(files)
    options = {"group_pattern": r"/\d\d(\d)"}
    together, apart = (read(root, **options, near_duplicates=value) for value in ("together", "off"))

    assert sides(together) == sides(apart)
    assert len(near(together)) == 1


def test_images_that_are_nearly_all_alike_are_split_all_the_same(fill: Fill) -> None:
    """Frames of a still video cannot lie on one side: there would be nothing else."""
    frames: Files = {f"cat/f{n:03}.png": saved(drawn(7).resize((120, 130 + n))) for n in range(40)}
    manifest = read(fill({**pets(), **frames}))

    assert len({row.split for row in manifest.rows if "/f" in row.path}) == 3
    (reason,) = near(manifest).values()
    assert "one of 41 images that are nearly the same, too many to keep in one split" in reason
    assert "data.group_pattern" in reason
