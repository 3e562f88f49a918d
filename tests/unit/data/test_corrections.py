"""Rows that a person looked at are left out, or of another class; a file of them that fits no longer is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thawline.config import DataConfig
from thawline.data import Manifest, check_data, report_json, scan
from thawline.exceptions import DataError

pytestmark = pytest.mark.usefixtures("in_process")

Files = dict[str, int | bytes]


@pytest.fixture
def photos(fill: Callable[[Files], Path]) -> Path:
    return fill({f"{name}/{i:02}.png": 100 * place + i for place, name in enumerate("ab") for i in range(20)})


def read(root: Path, **options: Any) -> Manifest:
    return scan(DataConfig(path=root, **options))


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def sides(manifest: Manifest) -> dict[str, str]:
    return {row.path: row.split for row in manifest.rows}


def named(manifest: Manifest, kind: str) -> dict[str, str]:
    return {problem.path: problem.reason for problem in manifest.problems if problem.kind == kind}


def test_excluded_images_are_left_out_named_and_part_of_the_digest_and_nothing_else_moves(
    photos: Path, tmp_path: Path
) -> None:
    before = read(photos)
    after = read(photos, exclude=write(tmp_path / "out.csv", "path", "a/03.png", "b/07.png"))
    assert sides(after) == {path: side for path, side in sides(before).items() if path not in {"a/03.png", "b/07.png"}}
    assert named(after, "excluded") == {"a/03.png": "was a", "b/07.png": "was b"}
    assert after.digest != before.digest
    assert [problem["path"] for problem in report_json(after)["problems"]["excluded"]] == ["a/03.png", "b/07.png"]


def test_relabelled_images_are_of_the_suggested_class_in_the_split_that_they_were_in(
    photos: Path, tmp_path: Path
) -> None:
    before = read(photos)
    after = read(photos, relabel=write(tmp_path / "new.csv", "path,label,suggested", "a/03.png,a,b"))
    assert sides(after) == sides(before)
    assert next(after.classes[row.label] for row in after.rows if row.path == "a/03.png") == "b"
    assert named(after, "relabelled") == {"a/03.png": "b instead of a"}
    assert after.digest != before.digest


def test_an_excluded_copy_under_another_class_is_no_conflict_any_more(
    fill: Callable[[Files], Path], photos: Path, tmp_path: Path
) -> None:
    fill({"b/copy.png": 3})  # the picture of a/03.png
    assert set(named(read(photos), "conflict")) == {"a/03.png", "b/copy.png"}
    after = read(photos, exclude=write(tmp_path / "out.csv", "path", "b/copy.png"))
    assert not named(after, "conflict")
    assert "a/03.png" in sides(after)


def test_texts_are_named_by_their_lines_and_recognised_by_their_content(tmp_path: Path) -> None:
    table = write(tmp_path / "notes.csv", "text,label", *(f"text number {i},{'xy'[i % 2]}" for i in range(60)))
    row = next(row for row in read(table).rows if row.path == "notes.csv:12")
    out = write(tmp_path / "out.csv", "path;suggested;digest", f"notes.csv:12;y;{row.digest}")  # as Excel may save it
    assert "notes.csv:12" not in sides(read(table, exclude=out))
    write(table, "text,label", *(f"text number {i + 1},{'xy'[i % 2]}" for i in range(60)))
    with pytest.raises(DataError, match="its content has changed"):
        read(table, exclude=out)


def test_what_cannot_be_read_may_be_named_since_it_is_left_out_anyway(
    fill: Callable[[Files], Path], photos: Path, tmp_path: Path
) -> None:
    fill({"a/broken.png": b"no picture"})
    assert not named(read(photos, exclude=write(tmp_path / "out.csv", "path", "a/broken.png")), "excluded")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["path,suggested", "a/99.png,b"], "that are not in .*photos:\n  line 2: a/99.png\n.* Remove these lines"),
        (
            ["path,suggested", "a/03.png,dog"],
            "suggests labels that are not classes .*\n  line 2: dog\nIts classes are a, b",
        ),
        (["path,suggested", "a/03.png,b", "a/03.png,a"], "names a/03.png twice, in lines 2 and 3: b or a"),
        (["path,suggested", "a/03.png,"], "in line 2: fill it in, or remove the line"),
        (["path,label,suggested", "a/03.png,c,b"], "a/03.png: it was c, and is now a"),
        (["file,suggested", "a/03.png,b"], "has no column path; it has: file, suggested"),
        (["path", "a/03.png"], "has no column suggested"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(photos: Path, tmp_path: Path, lines: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(photos, relabel=write(tmp_path / "new.csv", *lines))


def test_an_image_cannot_be_left_out_and_be_of_another_class(photos: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "both.csv", "path,suggested", "a/03.png,b")
    with pytest.raises(DataError, match=r"both name 1 image:\n  a/03.png\nRemove each from one of them"):
        read(photos, exclude=file, relabel=file)


def test_a_missing_file_is_known_before_any_image_is_read(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no such file\. `thawline check DATA --labels"):
        check_data(DataConfig(path=photos, exclude=tmp_path / "none.csv"))
