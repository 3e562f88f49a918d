"""Image folders in their usual forms, and everything that can be wrong with one."""

import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rendered import rendered

from thawline.cli.tables.data import data_report
from thawline.config import DataConfig
from thawline.data import Manifest, files_of, folder, labelled_files, scan
from thawline.data.contract import content_digest
from thawline.exceptions import DataError

pytestmark = pytest.mark.usefixtures("in_process")

Files = dict[str, int | bytes]
Fill = Callable[[Files], Path]


def classes(per_class: int = 20, names: str = "ab", prefix: str = "", first: int = 0) -> Files:
    """Distinct pictures: enough that every split gets some of every class."""
    return {
        f"{prefix}{name}/{number:03}.png": first + 1000 * place + number
        for place, name in enumerate(names)
        for number in range(per_class)
    }


def read(root: Path, **options: Any) -> Manifest:
    return scan(DataConfig(path=root, **options))


def reasons(manifest: Manifest, kind: str) -> dict[str, str]:
    return {problem.path: problem.reason for problem in manifest.problems if problem.kind == kind}


def sides(manifest: Manifest) -> dict[str, str]:
    return {row.path: row.split for row in manifest.rows}


# ------------------------------------------------------------------------------------------------------- layouts


def test_one_folder_per_class_is_split_by_content(fill: Fill) -> None:
    manifest = read(fill(classes(40)))

    assert manifest.classes == ("a", "b")
    assert len(manifest.rows) == 80
    assert {row.split for row in manifest.rows} == {"train", "validation", "test"}
    assert all(manifest.classes[row.label] == row.path[0] for row in manifest.rows)
    assert manifest.problems == ()
    assert manifest.counts()["a"]["train"] == sum(row.label == 0 for row in manifest.of("train"))
    assert "split off by content" in manifest.layout


def test_a_class_whose_name_is_no_text_has_its_bytes_written_out(fill: Fill, tmp_path: Path) -> None:
    """It could not be recorded otherwise, as packaging found out after all trials."""
    root = fill(classes(40))
    os.rename(root / "b", os.fsencode(root) + b"/h\xfct")  # noqa: PTH104  bytes
    manifest = read(root)

    assert manifest.classes == ("a", "h\\xfct")
    assert manifest.counts()["h\\xfct"]["train"] > 20
    assert files_of(manifest, manifest.rows)  # the files themselves are found
    manifest.to_json(tmp_path / "manifest.json")
    assert Manifest.from_json(tmp_path / "manifest.json") == manifest
    assert "h\\xfct" in rendered(data_report(manifest))
    assert labelled_files(root, DataConfig(path=root))[1].count("h\\xfct") == 40


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("Training", "VALIDATION", "Testing"),
        ("TRAIN", "valid", "test"),
        ("train", "dev", "test"),
        ("train", "eval", "test"),
    ],
)
def test_given_split_folders_are_used_under_all_their_names(fill: Fill, names: tuple[str, str, str]) -> None:
    files: Files = {}
    for place, name in enumerate(names):
        files |= classes(3, prefix=f"{name}/", first=100 * place)

    manifest = read(fill(files))

    expected = dict(zip(names, ("train", "validation", "test"), strict=True))
    assert {row.path.split("/")[0]: row.split for row in manifest.rows} == expected
    assert len(manifest.rows) == 18


@pytest.mark.parametrize(("given", "made"), [("val", "test"), ("test", "validation"), (None, "validation and test")])
def test_a_split_that_is_missing_is_taken_from_the_training_folder(fill: Fill, given: str | None, made: str) -> None:
    files = classes(40, prefix="train/") | (classes(3, prefix=f"{given}/", first=500) if given else {})

    manifest = read(fill(files))

    from_train = {row.split for row in manifest.rows if row.path.startswith("train/")}
    assert from_train == {"train", *made.split(" and ")}
    if given:
        assert {row.split for row in manifest.rows if row.path.startswith(f"{given}/")} == {
            {"val": "validation", "test": "test"}[given]
        }


def test_only_test_without_train_says_what_to_do(fill: Fill) -> None:
    with pytest.raises(DataError, match="no train/ with class folders"):
        read(fill(classes(3, prefix="test/")))


def test_a_test_folder_beside_the_classes_is_not_taken_for_a_class(fill: Fill) -> None:
    with pytest.raises(DataError, match="no train/"):
        read(fill(classes(20) | classes(3, prefix="test/", first=500)))


def test_a_class_may_be_called_train(fill: Fill) -> None:
    manifest = read(
        fill({f"{name}/{n}.png": 100 * p + n for p, name in enumerate(("car", "train")) for n in range(30)})
    )

    assert manifest.classes == ("car", "train")


def test_a_test_folder_without_class_folders_is_named_and_a_split_is_made(fill: Fill) -> None:
    manifest = read(fill(classes(40, prefix="train/") | {"test/1.png": 900, "test/2.png": 901}))

    assert "without class folders" in reasons(manifest, "stray")["test"]
    assert manifest.of("test")


def test_two_folders_for_one_split_are_refused(fill: Fill) -> None:
    files = classes(3, prefix="train/") | classes(3, prefix="val/", first=10) | classes(3, prefix="valid/", first=20)
    with pytest.raises(DataError, match="val/ and valid/"):
        read(fill(files))


def test_classes_are_mapped_by_name_over_all_splits(fill: Fill) -> None:
    """The trap: numbering each folder's classes by itself makes `b` the class 0 of a test/ that lacks `a`."""
    files = classes(3, "abc", "train/") | classes(3, "bc", "test/", first=50) | classes(3, "abc", "val/", first=80)

    manifest = read(fill(files))

    assert {(row.path.split("/")[1], row.label) for row in manifest.rows} == {("a", 0), ("b", 1), ("c", 2)}
    assert "no image of this class in the test split" in reasons(manifest, "class")["a"]


def test_a_class_that_training_lacks_is_named_and_left_out(fill: Fill) -> None:
    files = classes(3, "ab", "train/") | classes(3, "abz", "test/", first=50) | classes(3, "ab", "val/", first=80)

    manifest = read(fill(files))

    assert manifest.classes == ("a", "b")
    assert "3 images skipped" in reasons(manifest, "class")["test/z"]
    assert not any("/z/" in row.path for row in manifest.rows)


def test_classes_may_be_nested_deeper(fill: Fill) -> None:
    manifest = read(fill({name.replace("/", "/2024/may/"): number for name, number in classes(20).items()}))

    assert len(manifest.rows) == 40
    assert manifest.classes == ("a", "b")


def test_one_class_spelt_in_two_unicode_forms_is_one_class(fill: Fill) -> None:
    files = {f"train/{name}/{n}.png": 100 * p + n for p, name in enumerate(("caf\u00e9", "tea")) for n in range(30)}
    files |= {
        f"test/{name}/{n}.png": 500 + 100 * p + n for p, name in enumerate(("cafe\u0301", "tea")) for n in range(3)
    }

    manifest = read(fill(files))

    assert manifest.counts()["caf\u00e9"]["test"] == 3


# -------------------------------------------------------------------------------------------- what is not read


def test_extensions_are_taken_in_any_case(fill: Fill) -> None:
    files = classes(20) | {"a/x.PNG": 700, "a/y.Jpg": 701, "b/z.JPEG": 702}  # Pillow goes by content, as viewers do

    assert len(read(fill(files)).rows) == 43


def test_strays_are_named_and_ignored(fill: Fill) -> None:
    root = fill(
        classes(20)
        | {
            ".DS_Store": b"x",
            "a/Thumbs.db": b"x",
            "a/._000.png": b"x",
            "a/notes.txt": b"x",
            "b/photo.jxl": b"x",
            "loose.png": 900,
            "README.md": b"x",
            "__MACOSX/a/000.png": 901,
            ".ipynb_checkpoints/a/000.png": 902,
            "b/.ipynb_checkpoints/000.png": 903,
        }
    )
    manifest = read(root)

    strays = reasons(manifest, "stray")
    assert set(strays) == {
        ".DS_Store", "a/Thumbs.db", "a/._000.png", "a/notes.txt", "b/photo.jxl", "loose.png", "README.md",
        "__MACOSX", ".ipynb_checkpoints", "b/.ipynb_checkpoints",
    }  # fmt: skip
    assert "convert it to JPEG" in strays["b/photo.jxl"]
    assert "outside every class folder" in strays["loose.png"]
    assert len(manifest.rows) == 40
    assert manifest.classes == ("a", "b")


@pytest.mark.parametrize(
    "junk",
    [
        *("@eaDir/cat.png/SYNOPHOTO_THUMB_M.jpg", "#recycle/x.png", "$RECYCLE.BIN/x.png", "lost+found/x.png"),
        *("System Volume Information/x.png", "@Recycle/x.png", ".Trash-1000/files/x.png", "#snapshot/x.png"),
        *("__pycache__/x.png", "@Recently-Snapshot/x.png", ".@__thumb/x.png"),
    ],
)
@pytest.mark.parametrize("place", ["", "a/", "a/deep/"])
def test_what_servers_and_systems_keep_for_themselves_is_no_image_and_no_class(
    fill: Fill, junk: str, place: str
) -> None:
    manifest = read(fill(classes(20) | {f"{place}{junk}": 900}))

    assert manifest.classes == ("a", "b")
    assert len(manifest.rows) == 40
    assert reasons(manifest, "stray") == {place + junk.split("/")[0]: "hidden, or created by a system or program"}


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs another user")
@pytest.mark.parametrize(
    ("mode", "words"), [(0o644, "execute permission: chmod -R u\\+X"), (0o311, "Permission denied")]
)
def test_a_folder_that_may_not_be_entered_or_listed_is_one_clear_error(mode: int, words: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # where another user gets to, unlike pytest's own folder
        root = Path(name) / "photos"
        for label in "ab":
            (root / label).mkdir(parents=True)
            (root / label / "deep").mkdir()
        Path(name).chmod(0o755)
        (root / "a").chmod(mode)
        root_user = os.geteuid() == 0
        if root_user:
            os.seteuid(65534)  # root may enter anything
        try:
            with pytest.raises(DataError, match=words):
                read(root)
        finally:
            if root_user:
                os.seteuid(0)
            (root / "a").chmod(0o755)


def test_other_folders_beside_the_splits_are_named(fill: Fill) -> None:
    manifest = read(fill(classes(40, prefix="train/") | {"extra/1.png": 900}))

    assert "not a split folder" in reasons(manifest, "stray")["extra"]


def test_an_empty_class_folder_is_named_and_is_no_class(fill: Fill) -> None:
    root = fill(classes(20) | {"c/readme.txt": b"x"})

    manifest = read(root)

    assert manifest.classes == ("a", "b")
    assert "without images" in reasons(manifest, "class")["c"]


def test_linked_files_and_folders_are_followed_and_loops_end(fill: Fill, tmp_path: Path) -> None:
    root = fill(classes(20))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "a" / "000.png").rename(elsewhere / "real.png")
    (root / "a" / "000.png").symlink_to(elsewhere / "real.png")
    (root / "b").rename(elsewhere / "b")
    (root / "b").symlink_to(elsewhere / "b")
    (root / "a" / "again").symlink_to(root / "a")
    (root / "a" / "up").symlink_to(root)

    manifest = read(root)

    assert len(manifest.rows) == 40
    assert set(reasons(manifest, "stray")) == {"a/again", "a/up"}


def test_a_broken_link_is_bad_and_a_named_pipe_is_stray(fill: Fill) -> None:
    root = fill(classes(20))
    (root / "a" / "gone.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "a" / "pipe.png")

    manifest = read(root)

    assert "cannot be read" in reasons(manifest, "bad")["a/gone.png"]
    assert "neither a file nor a folder" in reasons(manifest, "stray")["a/pipe.png"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: None, "There is no folder"),
        (lambda root: root.write_text("x"), "is a file"),
        (lambda root: root.mkdir(), "is empty"),
        (lambda root: (root / "a").mkdir(parents=True), "no class folder with images"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_clear_error(
    tmp_path: Path, make: Callable[[Path], Any], words: str
) -> None:
    make(tmp_path / "photos")
    with pytest.raises(DataError, match=words):
        read(tmp_path / "photos")


def test_a_folder_one_level_too_high_is_guessed(fill: Fill) -> None:
    root = fill(classes(3, prefix="images/"))
    with pytest.raises(DataError, match=r"at least two.*Did you mean .*photos/images\?"):
        read(root)
    assert len(read(fill(classes(40, prefix="images/")) / "images").rows) == 80  # the guess was right


def test_a_folder_of_which_only_one_leads_to_classes_is_told_which(fill: Fill) -> None:
    with pytest.raises(DataError, match=r"at least two.*Did you mean .*photos/data/images\?"):
        read(fill(classes(3, prefix="data/images/") | {"notes/a.txt": b"x"}))


def test_one_class_is_too_few(fill: Fill) -> None:
    with pytest.raises(DataError, match=r"only one class folder with images \(a\)"):
        read(fill(classes(40, "a") | {"b/notes.txt": b"x"}))


# -------------------------------------------------------------------------------------------------- bad files


def test_a_truncated_file_is_named_and_left_out(fill: Fill, picture: Callable[[int], bytes]) -> None:
    root = fill(classes(20) | {"a/cut.png": picture(900)[:-100], "b/empty.png": b"", "b/page.jpg": b"<html>"})

    manifest = read(root, max_bad_fraction=0.1)

    bad = reasons(manifest, "bad")
    assert set(bad) == {"a/cut.png", "b/empty.png", "b/page.jpg"}
    assert "truncated" in bad["a/cut.png"]
    assert bad["b/empty.png"] == "the file is empty"
    assert "web page" in bad["b/page.jpg"]
    assert tuple(problem.path for problem in manifest.bad) == tuple(bad)
    assert sides(manifest) == sides(read(fill(classes(20)), max_bad_fraction=0.1))
    assert len(manifest.rows) == 40


def test_too_many_bad_files_are_an_error_that_names_them_and_the_option(fill: Fill) -> None:
    root = fill(classes(20) | {f"a/bad{number:02}.png": b"x" for number in range(12)})

    with pytest.raises(DataError) as caught:
        read(root)

    text = str(caught.value)
    assert "12 of 52 images" in text
    assert "a/bad09.png: not an image" in text
    assert "a/bad10.png" not in text
    assert "and 2 more" in text
    assert text.endswith("--set data.max_bad_fraction=0.24")
    assert len(read(root, max_bad_fraction=0.24).bad) == 12  # the advice works


def test_names_in_an_error_cannot_steer_the_terminal(fill: Fill) -> None:
    with pytest.raises(DataError, match=r"a/\\x1b\[31m\\n\\udcff\.png: not an image"):
        read(fill(classes(3) | {"a/\x1b[31m\n\udcff.png": b"x"}))


def test_the_pixel_limit_reaches_the_files(fill: Fill) -> None:
    with pytest.raises(DataError, match=r"120 pixels \(12 x 10\); at most 119 are allowed"):
        read(fill(classes(3)), max_pixels=119)


def test_a_class_without_a_usable_image_is_refused_by_name(fill: Fill) -> None:
    with pytest.raises(DataError, match=r"(?s)no usable image to train on: c \(0 images.*c/1.png: not an image"):
        read(fill(classes(40) | {"c/1.png": b"broken"}))


# ------------------------------------------------------------------------------- copies, conflicts, leaks, groups


def test_no_file_changes_side_when_the_folder_grows(fill: Fill) -> None:
    before = sides(read(fill(classes(30))))

    after = sides(read(fill(classes(60, "ab") | classes(30, "0c", first=5000) | {"a/000copy.png": 0})))

    assert len(after) > len(before)
    assert all(after[path] == side for path, side in before.items())


def test_copies_lie_on_one_side_and_are_named(fill: Fill) -> None:
    originals = classes(40)
    root = fill(originals | {name.replace("/", "/copy-of-"): number for name, number in originals.items()})

    manifest = read(root)

    side = sides(manifest)
    assert len(side) == 160
    assert all(side[name] == side[name.replace("/", "/copy-of-")] for name in originals)
    assert reasons(manifest, "duplicate")["a/copy-of-000.png"] == "the same image as a/000.png"
    assert len(reasons(manifest, "duplicate")) == 80


def test_one_image_under_two_classes_is_left_out_everywhere(fill: Fill) -> None:
    manifest = read(fill(classes(20) | {"b/also-a.png": 5}))

    conflicts = reasons(manifest, "conflict")
    assert conflicts == {
        "a/005.png": "the same image as b/also-a.png, under another class",
        "b/also-a.png": "the same image as a/005.png, under another class",
    }
    assert not set(conflicts) & set(sides(manifest))


def test_a_copy_in_a_split_that_is_held_out_more_wins(fill: Fill) -> None:
    files = classes(5, prefix="train/") | classes(5, prefix="val/", first=50) | classes(5, prefix="test/", first=80)
    files |= {"train/a/leak1.png": 80, "val/a/leak2.png": 81, "train/a/leak3.png": 50}

    manifest = read(fill(files))

    assert reasons(manifest, "leak") == {
        "train/a/leak1.png": "the same image as test/a/000.png in the test split",
        "train/a/leak3.png": "the same image as val/a/000.png in the validation split",
        "val/a/leak2.png": "the same image as test/a/001.png in the test split",
    }
    by_side: dict[str, set[str]] = {
        split: {row.digest for row in manifest.of(split)} for split in ("train", "validation", "test")
    }  # type: ignore[arg-type]
    assert not by_side["train"] & by_side["test"]
    assert not by_side["train"] & by_side["validation"]
    assert len(manifest.of("test")) == 10


def people(prefix: str = "", first: int = 0, ids: range = range(30)) -> Files:
    return {
        f"{prefix}{name}/p{person:02}-{shot}.png": first + 1000 * place + 10 * person + shot
        for place, name in enumerate("ab")
        for person in ids
        for shot in range(3)
    }


def test_a_group_pattern_keeps_a_person_on_one_side(fill: Fill) -> None:
    root = fill(people())

    def spread(manifest: Manifest) -> int:
        found: dict[str, set[str]] = {}
        for row in manifest.rows:
            found.setdefault(row.path.split("/")[1][:3], set()).add(row.split)
        return sum(len(splits) > 1 for splits in found.values())

    assert spread(read(root)) > 0  # the control: without it people are torn apart
    assert spread(read(root, group_pattern=r"(p\d+)-")) == 0
    assert {row.group for row in read(root, group_pattern=r"p\d+").rows} == {f"p{person:02}" for person in range(30)}


def test_a_file_that_the_pattern_does_not_match_is_a_group_of_its_own(fill: Fill) -> None:
    manifest = read(fill(people() | {"a/other.png": 9000}), group_pattern=r"(p\d+)-")

    assert {row.group for row in manifest.rows if row.path == "a/other.png"} == {None}


def test_a_pattern_that_matches_nothing_is_a_mistake(fill: Fill) -> None:
    with pytest.raises(DataError, match=r"matches none of 6 images, for example 'a/000.png'"):
        read(fill(classes(3)), group_pattern=r"patient(\d+)")


def test_a_pattern_that_matches_nothing_but_the_empty_text_is_a_mistake(fill: Fill) -> None:
    for pattern in (r"(p\d*x)?", "", r"(?=p)", r"[QZ]*"):
        with pytest.raises(DataError, match=r"matches only empty text in 180 images, for example 'a/p00-0\.png'"):
            read(fill(people()), group_pattern=pattern)


ACCENTS = ("Jos\u00e9", "Jose\u0301")


def patients() -> Files:
    """Each with two pictures, whose names spell it in both Unicode forms."""
    return {
        f"{name}/{ACCENTS[shot]}{person}-{shot}.png": 1000 * place + 10 * person + shot
        for place, name in enumerate("ab")
        for person in range(30)
        for shot in range(2)
    }


def test_a_group_in_two_unicode_forms_is_one_group(fill: Fill) -> None:
    for pattern in (r"(\w+\d+)-", "(Jos\u00e9\\d+)", "(Jose\u0301\\d+)"):
        manifest = read(fill(patients()), group_pattern=pattern)

        groups: dict[str | None, set[str]] = {}
        for row in manifest.rows:
            groups.setdefault(row.group, set()).add(row.split)
        assert set(groups) == {f"Jos\u00e9{person}" for person in range(30)}
        assert all(len(splits) == 1 for splits in groups.values())
        assert "Groups: 30, of at most 4 images; each is kept" in " ".join(rendered(data_report(manifest)).split())


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_table_of_groups_finds_files_in_either_unicode_form(fill: Fill, form: Any) -> None:
    names = {unicodedata.normalize(form, name): f"{ACCENTS[n % 2]}{n // 4}" for n, name in enumerate(patients())}
    manifest = read(fill(patients() | {"metadata.csv": table(names)}), group_column="patient")

    assert {row.group for row in manifest.rows} == {f"Jos\u00e9{n}" for n in range(30)}


def test_a_group_over_given_splits_is_a_leak(fill: Fill) -> None:
    files = people("train/") | people("val/", 5000, range(28, 34)) | people("test/", 8000, range(32, 40))

    manifest = read(fill(files), group_pattern=r"(p\d+)-")

    leaks = reasons(manifest, "leak")
    assert {(path.split("/")[0], path.split("/")[2][:3]) for path in leaks} == {
        ("train", "p28"),
        ("train", "p29"),
        ("val", "p32"),
        ("val", "p33"),
    }
    assert leaks["train/a/p28-0.png"] == "its group 'p28' is also in the validation split (val/a/p28-0.png)"
    assert len(manifest.of("test")) == 8 * 6


def table(rows: dict[str, str], header: str = "file_name,patient") -> bytes:
    return "\n".join([header, *(f"{name},{group}" for name, group in rows.items())]).encode()


def test_a_group_column_is_read_from_metadata_csv(fill: Fill) -> None:
    names = {name: name.split("/")[1][:3] for name in people()}
    names["a/p00-0.png"] = ""
    manifest = read(fill(people() | {"metadata.csv": b"\xef\xbb\xbf" + table(names)}), group_column="patient")

    assert {row.path: row.group or "" for row in manifest.rows} == names
    by_group: dict[str, set[str]] = {}
    for row in manifest.rows:
        if row.group is not None:
            by_group.setdefault(row.group, set()).add(row.split)
    assert all(len(splits) == 1 for splits in by_group.values())
    assert not reasons(manifest, "stray")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "needs the file .*metadata.csv"),
        (b"", "no column 'file_name' and no column 'patient'; it has: none"),
        (b"file_name,person\na/000.png,p", "no column 'patient'; it has: file_name, person"),
        (b"file_name,patient\na/000.png,p", r"no row for 5 images[^$]*\n  a/001.png"),
        (b"file_name,patient\na/000.png,p\n./a/000.png,q", "two groups: 'p' and 'q'"),
        (b"file_name,patient\n\xff\xfe,p", "as UTF-8 CSV"),
    ],
)
def test_a_group_column_that_cannot_be_read_says_why(fill: Fill, content: bytes | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(fill(classes(3) | ({} if content is None else {"metadata.csv": content})), group_column="patient")


def test_an_empty_split_says_how_to_fill_it(fill: Fill) -> None:
    files = {f"{name}/x-{number}.png": 10 * place + number for place, name in enumerate("ab") for number in range(9)}
    with pytest.raises(DataError, match=r"No image fell into the .* 18 images, in 1 group that .* no share of so few"):
        read(fill(files), group_pattern="x")


def test_hundreds_of_classes_of_three_images_are_split_and_each_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_inspect", lambda item, **_: folder._Inspected(content_digest(item[1].encode()), ""))
    for name in range(300):
        (tmp_path / f"class {name:03}").mkdir()
        for number in range(3):
            (tmp_path / f"class {name:03}" / f"{number}.png").touch()

    manifest = read(tmp_path)

    counts = manifest.counts()
    assert len(manifest.rows) == 900
    assert all(by_split["train"] for by_split in counts.values())
    warnings = reasons(manifest, "class")
    (kept_back,) = [path for path, reason in warnings.items() if "too few images to split by content" in reason]
    assert "classes (" in kept_back
    assert len(warnings) == 3  # not a line for each class
    assert "no image of these in the test split" in next(iter(warnings.values())) + list(warnings.values())[1]
    for split in ("validation", "test"):
        assert 0.1 < sum(by_split[split] for by_split in counts.values()) / 900 < 0.2  # type: ignore[index]


def test_a_class_that_is_kept_back_moves_no_other_and_stays_so_beside_more_classes(fill: Fill) -> None:
    few = {f"f{name}/{n}.png": 9000 + 10 * name + n for name in range(12) for n in range(2)}
    before = read(fill(classes(40) | few))
    after = read(fill(classes(60, "abc")))

    sides_after = sides(after)
    assert all(sides_after[path] == side for path, side in sides(before).items())
    assert all(by_split["train"] for by_split in before.counts().values())


@pytest.mark.parametrize("count", range(1, 9))
def test_advice_for_a_handful_of_images_helps_or_says_that_nothing_does(fill: Fill, count: int) -> None:
    """The shares that were proposed for four images led from one to the next and back."""
    root = fill(classes(count))
    refusal = refused(root)
    options = {key: float(value) for key, value in re.findall(r"--set data\.(\w+)=([\d.]+)", refusal)}

    if options or not refusal:
        manifest = read(root, **options)
        assert all(manifest.of(split) for split in ("train", "validation", "test"))  # type: ignore[arg-type]
    else:
        assert "yourself: no share of so few is enough" in refusal


def refused(root: Path) -> str:
    try:
        read(root)
    except DataError as error:
        return str(error)
    return ""


def test_a_given_split_without_usable_images_is_refused(fill: Fill) -> None:
    files = classes(30, prefix="train/") | {"val/z/1.png": 900}
    with pytest.raises(DataError, match=r"(?s)val/ contains no usable image.*val/z: train/ has no image of this class"):
        read(fill(files))


# ------------------------------------------------------------------------------------------------------- digest


def test_renaming_files_changes_neither_digest_nor_order(fill: Fill) -> None:
    root = fill(classes(20))
    before = read(root)
    for place, path in enumerate(sorted(root.glob("*/*.png"), reverse=True)):
        path.rename(path.with_name(f"renamed-{place}.PNG"))

    after = read(root)

    assert after.digest == before.digest
    assert [(row.digest, row.label, row.split) for row in after.rows] == [
        (row.digest, row.label, row.split) for row in before.rows
    ]


def change(root: Path, how: str, picture: Callable[[int], bytes]) -> None:
    file = root / "train" / "a" / "000.png"
    match how:
        case "add":
            file.with_name("new.png").write_bytes(picture(777))
        case "copy":
            file.with_name("copy.png").write_bytes(file.read_bytes())
        case "remove":
            file.unlink()
        case "relabel":
            file.rename(root / "train" / "b" / "moved.png")
        case "move to another split":
            file.rename(root / "test" / "a" / "moved.png")
        case "other bytes":
            file.write_bytes(picture(778))
        case "rename a class":
            for split in ("train", "val", "test"):
                (root / split / "a").rename(root / split / "aa")
        case "add a stray":
            file.with_suffix(".txt").write_text("x")
        case "touch":
            os.utime(file, (1, 1))


@pytest.mark.parametrize(
    ("how", "changes"),
    [
        ("add", True),
        ("copy", True),
        ("remove", True),
        ("relabel", True),
        ("move to another split", True),
        ("other bytes", True),
        ("rename a class", True),
        ("add a stray", False),
        ("touch", False),
    ],
)
def test_the_digest_changes_if_and_only_if_what_is_trained_on_does(
    fill: Fill, picture: Callable[[int], bytes], how: str, changes: bool
) -> None:
    root = fill(
        classes(5, prefix="train/") | classes(5, prefix="val/", first=50) | classes(5, prefix="test/", first=80)
    )
    before = read(root).digest
    change(root, how, picture)

    assert (read(root).digest != before) == changes


def test_the_digest_does_not_depend_on_where_the_folder_lies(fill: Fill, tmp_path: Path) -> None:
    root = fill(classes(20))
    before = read(root)
    root.rename(tmp_path / "moved")

    assert read(tmp_path / "moved").digest == before.digest


@pytest.mark.parametrize(
    ("change_it", "words"),
    [
        (lambda file, picture: file.write_bytes(picture(4711)), "its content has changed"),
        (lambda file, picture: file.write_bytes(file.read_bytes() + b"\0"), "its content has changed"),
        (lambda file, picture: file.unlink(), "No such file or directory"),
        (lambda file, picture: (file.unlink(), file.mkdir()), "Is a directory"),
    ],
)
def test_an_image_that_changed_since_the_scan_is_an_error(
    fill: Fill, picture: Callable[[int], bytes], change_it: Callable[..., Any], words: str
) -> None:
    manifest = read(fill(classes(40)))
    rows = manifest.of("test")
    assert files_of(manifest, rows) == [manifest.root / row.path for row in rows]
    change_it(manifest.root / rows[0].path, picture)

    with pytest.raises(DataError, match=rf"1 image of .* is not what .*\n  {rows[0].path}: {words}\nStart again"):
        files_of(manifest, rows)
    assert files_of(manifest, rows[1:])  # none of these changed


def test_all_images_that_changed_are_counted(fill: Fill) -> None:
    manifest = read(fill(classes(40)))
    for row in manifest.rows:
        (manifest.root / row.path).unlink()

    with pytest.raises(DataError, match=r"(?s)80 images of .* are not what .*and 70 more\nStart again"):
        files_of(manifest, manifest.rows)


# --------------------------------------------------------------------------------------------------------- JSON


def test_a_manifest_comes_back_from_json_as_it_was(fill: Fill, tmp_path: Path) -> None:
    manifest = read(fill(people() | {"a/x.txt": b""}), group_pattern=r"p\d+")
    manifest.to_json(tmp_path / "deep" / "manifest.json")

    assert Manifest.from_json(tmp_path / "deep" / "manifest.json") == manifest
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["manifest.json"]  # no temporary file is left


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign", "relabelled"])
def test_a_damaged_manifest_is_refused(fill: Fill, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "manifest.json"
    manifest = read(fill(classes(20)))
    first = manifest.rows[0]
    if damage == "relabelled":
        manifest = replace(manifest, rows=(replace(first, label=1 - first.label), *manifest.rows[1:]))
    manifest.to_json(path)
    match damage:
        case "missing":
            path.unlink()
        case "cut":
            path.write_bytes(path.read_bytes()[:-100])
        case "foreign":
            path.write_text(json.dumps([1, 2]))

    with pytest.raises(DataError, match="manifest"):
        Manifest.from_json(path)
