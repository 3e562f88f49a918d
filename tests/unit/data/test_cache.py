"""Images are decoded once, and a cache that is not what it should be is never read."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from thawline.config import DataConfig
from thawline.data import DecodedImages, Manifest, cache, decode, decoded, images, resize_and_crop, scan
from thawline.exceptions import DataError

pytestmark = pytest.mark.usefixtures("in_process")

VIEW: dict[str, Any] = {"resize_size": 9, "crop_size": 8, "interpolation": "bilinear"}


@pytest.fixture
def build(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DecodedImages]:
    """``decoded`` with defaults; ``build.times`` counts how often the images were really decoded."""

    def call(changed: Manifest = manifest, **options: Any) -> DecodedImages:
        return decoded(changed, **{**VIEW, "cache_dir": tmp_path / "cache", **options})

    builder: Any = call
    builder.times = 0
    original = cache.build

    def counted(*arguments: Any) -> None:
        builder.times += 1
        original(*arguments)

    monkeypatch.setattr(cache, "build", counted)
    return call


def test_every_row_is_the_picture_of_its_file(manifest: Manifest, build: Callable[..., DecodedImages]) -> None:
    result = build()

    assert result.images.shape == (61, 8, 8, 3)
    assert result.images.dtype == np.uint8
    assert result.labels.dtype == np.int64
    assert isinstance(result.images, np.memmap)
    assert not result.images.flags.writeable
    for index, row in enumerate(manifest.rows):
        expected = resize_and_crop(decode((manifest.root / row.path).read_bytes()), **VIEW)
        assert np.array_equal(result.images[index], expected)
        assert result.labels[index] == row.label
    assert not np.array_equal(result.images[0], result.images[1])


def test_the_splits_are_views_that_cover_everything_once(
    manifest: Manifest, build: Callable[..., DecodedImages]
) -> None:
    result = build()
    rows = 0
    for split in ("train", "validation", "test"):
        images, labels = result.split(split)  # type: ignore[arg-type]
        assert np.shares_memory(images, result.images)
        assert labels.tolist() == [row.label for row in manifest.of(split)]  # type: ignore[arg-type]
        assert len(images) == len(labels) > 0
        rows += len(images)
    assert rows == len(manifest.rows)


def test_a_second_call_opens_the_same_file_and_other_views_have_their_own(build: Any) -> None:
    first = build()
    assert build().path == first.path
    assert build.times == 1

    changes: list[dict[str, Any]] = [{"resize_size": 10}, {"crop_size": 7}, {"interpolation": "bicubic"}]
    paths = {build(**change).path for change in ({}, *changes, {"crop_mode": "squash"})}

    assert len(paths) == 5
    assert build.times == 5


def test_a_squashed_view_holds_the_whole_of_each_image(
    fill: Callable[[dict[str, int | bytes]], Path], build: Any
) -> None:
    def wide(colour: int) -> bytes:
        pixels = np.full((10, 40, 3), colour, np.uint8)
        pixels[:, :10] = 255 - colour
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    files: dict[str, int | bytes] = {
        f"{name}/{n}.png": wide(100 * p + n) for p, name in enumerate("ab") for n in range(30)
    }
    manifest = scan(DataConfig(path=fill(files | {"a/copy.png": wide(3)})))
    ends = {}
    for crop_mode in ("squash", "center"):
        pictures = build(manifest, crop_mode=crop_mode).images.astype(int)
        ends[crop_mode] = np.abs(pictures[:, :, 0] - pictures[:, :, -1]).max()
    assert ends["squash"] > 200
    assert ends["center"] < 30


def test_renamed_files_use_the_same_cache(manifest: Manifest, build: Any) -> None:
    first = build()
    for path in list(manifest.root.glob("*/*.png")):
        path.rename(path.with_name(f"renamed-{path.name}"))

    again = build(scan(DataConfig(path=manifest.root)))

    assert again.path == first.path
    assert build.times == 1


def test_it_is_opened_from_its_path_and_sent_to_other_processes_as_its_path(build: Any) -> None:
    result = build()

    opened = DecodedImages.open(result.path)
    sent = pickle.dumps(result)

    assert np.array_equal(opened.images, result.images)
    assert np.array_equal(pickle.loads(sent).labels, result.labels)  # noqa: S301
    assert len(sent) < 1000 < result.images.nbytes


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def overwrite(path: Path) -> None:
    with path.open("rb+") as file:
        file.seek(-10, io.SEEK_END)
        file.write(b"0123456789")


def other_array(path: Path) -> None:
    np.save(path, np.zeros((61, 8, 8, 3), np.uint8))


def copied_over(path: Path) -> None:
    shutil.copyfile(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").replace(path)
    os.utime(path, (1, 1))


def no_description(path: Path) -> None:
    path.with_suffix(".json").unlink()


def foreign_description(path: Path) -> None:
    path.with_suffix(".json").write_text('["something else"]')


def other_rows(path: Path) -> None:
    description = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(description | {"rows": "0" * 32}))


@pytest.mark.parametrize(
    "damage",
    [cut_off, overwrite, other_array, copied_over, no_description, foreign_description, other_rows, Path.unlink],
)
def test_a_damaged_file_is_rebuilt(build: Any, damage: Callable[[Path], None]) -> None:
    first = build()
    path, before = first.path, np.array(first.images)
    del first
    damage(path)

    again = build()

    assert build.times == 2
    assert np.array_equal(again.images, before)
    build()
    assert build.times == 2  # the control: what was rebuilt is whole


@pytest.mark.parametrize("damage", [cut_off, overwrite, other_array, no_description, Path.unlink])
def test_a_damaged_file_is_not_opened_by_its_path(build: Any, damage: Callable[[Path], None]) -> None:
    path = build().path
    damage(path)

    with pytest.raises(DataError, match="missing or damaged"):
        DecodedImages.open(path)


@pytest.mark.parametrize("change", ["other bytes", "gone", "broken"])
def test_a_file_that_changed_since_the_scan_is_an_error_and_leaves_nothing(
    manifest: Manifest, build: Any, tmp_path: Path, picture: Callable[[int], bytes], change: str
) -> None:
    path = manifest.root / manifest.rows[5].path
    path.unlink()
    if change != "gone":
        path.write_bytes(picture(999) if change == "other bytes" else b"x")

    with pytest.raises(DataError, match=f"1 image changed since the folder was read, the first: {path}"):
        build()

    assert not list((tmp_path / "cache").glob("*.npy"))
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_a_disk_that_fills_up_meanwhile_is_said_before_anything_is_decoded(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([SimpleNamespace(free=300_000_000), SimpleNamespace(free=200_000_000)])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: next(answers))
    with pytest.raises(DataError, match=r"need 0.0 GB .* but 0.2 GB are free.*data.cache=off.*THAWLINE_HOME"):
        build()

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=201_000_000))
    assert len(build().images) == 61


def test_copies_are_decoded_once(manifest: Manifest, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(data: bytes, **options: Any) -> Image.Image:
        calls.append(len(data))
        return decode(data, **options)

    monkeypatch.setattr(images, "decode", counted)
    build()

    assert len(calls) == 60
    assert len(manifest.rows) == 61


def test_two_processes_at_once_build_one_cache(manifest: Manifest, tmp_path: Path) -> None:
    """Each says how many images it decoded itself; both wait behind a lock that the test holds until both are there."""
    manifest.to_json(tmp_path / "manifest.json")
    (tmp_path / "build.py").write_text(
        "import json, sys\n"
        "from pathlib import Path\n"
        "from thawline.data import Manifest, decoded\n"
        "if __name__ == '__main__':\n"
        "    folder = Path(sys.argv[1])\n"
        "    manifest = Manifest.from_json(folder / 'manifest.json')\n"
        "    print('ready', flush=True)\n"
        "    seen = []\n"
        "    result = decoded(manifest, cache_dir=folder / 'cache', on_progress=lambda *now: seen.append(now),\n"
        f"                     **{VIEW!r})\n"
        "    print(json.dumps([seen[-1][0] if seen else 0, int(result.images.sum()), str(result.path)]))\n"
    )
    described = decoded(manifest, cache_dir=tmp_path / "elsewhere", **VIEW)
    (tmp_path / "cache").mkdir()
    with FileLock(tmp_path / "cache" / described.path.with_suffix(".lock").name):
        processes = [
            subprocess.Popen(
                [sys.executable, str(tmp_path / "build.py"), str(tmp_path)], stdout=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in processes]

    assert sorted(answer[0] for answer in answers) == [0, 60]
    assert answers[0][1:] == answers[1][1:]
    assert answers[0][1] == int(described.images.sum())
