"""Every common layout: what it is recognised as, its classes, counts and splits; and what is said of the others."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rendered import rendered
from typer.testing import CliRunner

import thawline
from thawline.cli import app
from thawline.cli.tables.data import data_report
from thawline.config import DataConfig
from thawline.data import Manifest, _listing, data_kind, labelled_files, scan
from thawline.exceptions import DataError

pytestmark = pytest.mark.usefixtures("in_process")

Files = dict[str, int | bytes]
Fill = Callable[[Files], Path]
LABELS = ("cat", "dog")


def below(*folders: str, count: int = 6, first: int = 0) -> Files:
    """``count`` distinct images in each folder."""
    return {
        f"{folder}/{number:03}.png": first + 1000 * place + number
        for place, folder in enumerate(folders)
        for number in range(count)
    }


def classes_in(*folders: str, count: int = 6) -> Files:
    """``cat`` and ``dog`` in each of these folders."""
    files: Files = {}
    for place, folder in enumerate(folders):
        files |= below(f"{folder}/cat", f"{folder}/dog", count=count, first=10_000 * place)
    return files


def rows(files: Files, header: str = "image_path,label", *, name: Callable[[str], str] = str, start: int = 0) -> bytes:
    """A table that names these files, cats and dogs in turn."""
    lines = [f"{name(path)},{LABELS[n % 2]}" for n, path in enumerate(files, start)]
    return "\n".join([header, *lines]).encode()


def stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]


def base(path: str) -> str:
    return path.rpartition("/")[2]


MANY = below("images", count=60)
TRAIN, TEST = below("train", count=60), below("test", count=5, first=500)


@dataclass(frozen=True)
class Case:
    name: str
    files: Files
    recognised: str
    """Words of the layout."""
    splits: dict[str, int] | None = None
    """Number of images of each split; ``None`` where the hash makes all three of ``total``."""
    total: int = 0
    classes: tuple[str, ...] = LABELS
    data: str = ""
    """Path below the folder that is given as the data."""
    options: dict[str, Any] = field(default_factory=dict)


def given(train: int, validation: int, test: int) -> dict[str, int]:
    return {"train": train, "validation": validation, "test": test}


def split_pair(train: str, test: str, *, validation: str = "val") -> Case:
    name = f"{train}/ and {test}/"
    return Case(name, classes_in(train, validation, test), f"split folders {train}/", given(12, 12, 12))


CASES = [
    Case("class folders", classes_in(".", count=30), "one folder per class", total=60),
    Case(
        "class folders in class folders",
        {name.replace("/0", "/2024/may/0"): n for name, n in classes_in(".", count=30).items()},
        "one folder per class",
        total=60,
    ),
    split_pair("train", "test"),
    split_pair("training_set", "test_set", validation="validation_set"),
    split_pair("Training Set", "Test Set"),
    split_pair("train_data", "test_data", validation="val_data"),
    split_pair("trainval", "test"),
    split_pair("train_val", "test", validation="validation"),
    split_pair("trainset", "testset", validation="valset"),
    split_pair("train2017", "test2017", validation="val2017"),
    split_pair("TrainImages", "TestImages", validation="ValImages"),
    split_pair("train-images", "test-images", validation="dev"),
    split_pair("asl_alphabet_train", "asl_alphabet_test", validation="asl_alphabet_val"),
    Case(
        "split folders doubled, as unpacked archives have them",
        classes_in("seg_train/seg_train", "seg_val/seg_val", "seg_test/seg_test"),
        "split folders seg_train/seg_train/",
        given(12, 12, 12),
    ),
    Case(
        "split folders with images/ in them",
        classes_in("train/images", "val/images", "test/images"),
        "split folders train/images/",
        given(12, 12, 12),
    ),
    Case(
        "split folders below one folder",
        classes_in("archive/train", "archive/val", "archive/test") | {"readme.md": b"x"},
        "split folders archive/train/",
        given(12, 12, 12),
    ),
    Case(
        "split folders in each class folder",
        below("cat/train", "cat/val", "cat/test") | below("dog/train", "dog/val", "dog/test", first=50_000),
        "one folder per class, with split folders in each: <class>/train/",
        given(12, 12, 12),
    ),
    Case(
        "split folders in each class folder, some missing",
        below("cat/train", "cat/test", count=30) | below("dog/Train", "dog/Test", count=30, first=50_000),
        "validation (15%) split off <class>/",
    ),
    Case(
        "classes at the second level, as the option says",
        classes_in("camera1", "camera2", count=20),
        "one folder per class at level 2",
        total=80,
        options={"class_level": 2},
    ),
    Case(
        "the same at the first level",
        classes_in("camera1", "camera2", count=20),
        "one folder per class",
        total=80,
        classes=("camera1", "camera2"),
        options={"class_level": 1},
    ),
    Case(
        "classes that are called as splits, as the option says",
        below("train", "test", count=30),
        "one folder per class",
        total=60,
        classes=("test", "train"),
        options={"class_level": 1},
    ),
    Case(
        "one class that is called as a split",
        below("train", "bus", count=30),
        "one folder per class",
        total=60,
        classes=("bus", "train"),
    ),
    Case(
        "classes whose names hold the word of a split",
        below("train_station", "test_tube", count=30),
        "one folder per class",
        total=60,
        classes=("test_tube", "train_station"),
    ),
    Case(
        "toy trains are no training set",
        below("train_set/red", "train_set/blue", "cars/red", count=15),
        "one folder per class",
        total=45,
        classes=("cars", "train_set"),
        options={"class_level": 1},
    ),
    Case("digits", below(*"0123456789", count=12), "one folder per class", total=120, classes=tuple("0123456789")),
    Case(
        "Kaggle: train.csv, train/, test/",
        TRAIN | TEST | {"train.csv": rows(TRAIN, "id,breed", name=stem), "sample_submission.csv": b"id,breed\n1,cat"},
        "table of images train.csv; image in column id",
        total=60,
    ),
    Case(
        "Kaggle: file names with extension",
        TRAIN | TEST | {"train.csv": rows(TRAIN, "image_id,label", name=base), "test.csv": b"image_id\n000.png"},
        "table of images train.csv; image in column image_id",
        total=60,
    ),
    Case(
        "Kaggle: the same ids in train/ and test/",
        TRAIN | below("test", count=60, first=500) | {"train.csv": rows(TRAIN, "id,label", name=stem)},
        "table of images train.csv",
        total=60,
    ),
    Case(
        "labels.csv beside images/",
        MANY | {"labels.csv": rows(MANY, "filename,class", name=base)},
        "table of images labels.csv; image in column filename, label in column class (by its name)",
        total=60,
    ),
    Case(
        "a table beside its images",
        {base(k): v for k, v in MANY.items()} | {"labels.csv": rows(MANY, "file,label", name=base)},
        "table of images labels.csv",
        total=60,
    ),
    Case(
        "a table as the data",
        MANY | {"labels.csv": rows(MANY, "image_path,label")},
        "table of images labels.csv",
        total=60,
        data="labels.csv",
    ),
    Case(
        "paths of Windows",
        MANY | {"labels.csv": rows(MANY, name=lambda p: ".\\" + p.replace("/", "\\"))},
        "table of images",
        total=60,
        data="labels.csv",
    ),
    Case(
        "paths of another machine",
        MANY | {"labels.csv": rows(MANY, name=lambda p: f"/kaggle/input/pets/{p}")},
        "table of images",
        total=60,
        data="labels.csv",
    ),
    Case(
        "TSV",
        MANY | {"labels.tsv": rows(MANY).replace(b",", b"\t")},
        "table of images labels.tsv",
        total=60,
        data="labels.tsv",
    ),
    Case(
        "semicolons",
        MANY | {"labels.csv": rows(MANY).replace(b",", b";")},
        "fields are separated by semicolons",
        total=60,
        data="labels.csv",
    ),
    Case(
        "JSON lines",
        MANY
        | {
            "labels.jsonl": "\n".join(
                json.dumps({"filepath": p, "label": LABELS[n % 2]}) for n, p in enumerate(MANY)
            ).encode()
        },
        "table of images labels.jsonl",
        total=60,
        data="labels.jsonl",
    ),
    Case(
        "no header",
        MANY | {"labels.csv": rows(MANY).partition(b"\n")[2]},
        "image in column 1",
        total=60,
        data="labels.csv",
    ),
    Case(
        "images elsewhere",
        {f"elsewhere/{k}": v for k, v in MANY.items()} | {"tables/labels.csv": rows(MANY, name=base)},
        "table of images",
        total=60,
        data="tables/labels.csv",
        options={"image_folder": "elsewhere"},
    ),
    Case(
        "images of two folders",
        below("part_1", count=30)
        | {k.replace("0", "1", 1): v for k, v in below("part_2", count=30, first=99).items()}
        | {
            "metadata.csv": b"",
            "HAM.csv": rows(
                below("part_1", count=30) | {k.replace("0", "1", 1): v for k, v in below("part_2", count=30).items()},
                "image_id,dx",
                name=stem,
            ),
        },
        "image in column image_id",
        total=60,
        data="HAM.csv",
    ),
    Case(
        "a split column",
        MANY
        | {
            "labels.csv": "\n".join(
                [
                    "image,label,split",
                    *(f"{p},{LABELS[n % 2]},{('train', 'val', 'test')[n // 2 % 3]}" for n, p in enumerate(MANY)),
                ]
            ).encode()
        },
        "split in column split",
        given(20, 20, 20),
        data="labels.csv",
    ),
    Case(
        "a table for each split",
        below("a", "b", "c", count=10)
        | {f"{s}.csv": rows(below(f, count=10)) for s, f in (("train", "a"), ("val", "b"), ("test", "c"))},
        "splits train.csv, val.csv, test.csv",
        given(10, 10, 10),
        options={"image_column": "image_path"},
    ),
    Case(
        "HuggingFace: metadata.csv beside images",
        {base(k): v for k, v in MANY.items()} | {"metadata.csv": rows(MANY, "file_name,label", name=base)},
        "table of images metadata.csv",
        total=60,
    ),
    Case(
        "HuggingFace: metadata.jsonl in each split",
        TRAIN
        | TEST
        | {
            f"{s}/metadata.jsonl": "\n".join(
                json.dumps({"file_name": base(p), "label": n % 2}) for n, p in enumerate(files)
            ).encode()
            for s, files in (("train", TRAIN), ("test", TEST))
        },
        "splits metadata.jsonl, metadata.jsonl",
        classes=("0", "1"),
    ),
    Case(
        "HuggingFace: metadata.csv in data/train",
        {f"data/{k}": v for k, v in TRAIN.items()}
        | {"data/train/metadata.csv": rows(TRAIN, "file_name,label", name=base)},
        "table of images metadata.csv",
        total=60,
    ),
]


PATTERN = r"(\w+)\.\d+\.png"


def numbered(folder: str, *, count: int = 60, first: int = 0) -> Files:
    """``cat.0.png``, ``dog.1.png`` …"""
    return {f"{folder}/{LABELS[n % 2]}.{n}.png": first + n for n in range(count)}


CASES += [
    Case(
        "the class in the file name",
        numbered("."),
        r"class in the file name, by data.class_pattern=(\w+)\.\d+\.png; validation (15%) and test (15%) split off",
        total=60,
        options={"class_pattern": PATTERN},
    ),
    Case(
        "the class in the file name, in folders that are no classes",
        numbered("monday", count=30) | numbered("tuesday", count=30, first=30),
        "class in the file name",
        total=60,
        options={"class_pattern": PATTERN},
    ),
    Case(
        "the class in the file name, in split folders",
        numbered("pets/train", count=20)
        | numbered("pets/val", count=10, first=20)
        | numbered("pets/test", count=10, first=40),
        "split folders pets/train/, pets/val/, pets/test/",
        given(20, 10, 10),
        options={"class_pattern": PATTERN},
    ),
    Case(
        "Kaggle: the class in the file name, of the test images unknown",
        numbered("train") | {f"test1/{n}.png": 500 + n for n in range(5)},
        "only train/; validation",
        total=60,
        options={"class_pattern": PATTERN},
    ),
    Case(
        "the class in front of the number",
        {f"images/{('Maine_Coon', 'boxer')[n % 2]}_{n}.png": n for n in range(60)},
        "class in the file name",
        total=60,
        classes=("Maine_Coon", "boxer"),
        options={"class_pattern": r"^(.+)_\d+"},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_layout_is_recognised(fill: Fill, case: Case) -> None:
    root = fill(case.files)
    options = dict(case.options)
    if "image_folder" in options:
        options["image_folder"] = root / options["image_folder"]
    config = DataConfig(path=root / case.data, **options)
    manifest = scan(config)

    assert data_kind(config) == manifest.kind == "images"
    assert manifest.classes == case.classes
    assert case.recognised in manifest.layout
    assert manifest.layout in " ".join(rendered(data_report(manifest), width=10_000).split())
    assert manifest.bad == ()
    sizes = {split: len(manifest.of(split)) for split in ("train", "validation", "test")}  # type: ignore[arg-type]
    if case.splits is not None:
        assert sizes == case.splits
    else:
        assert all(sizes.values())
        assert case.total in (0, sum(sizes.values()))
        assert "split off" in manifest.layout
    assert all((manifest.root / row.path).is_file() for row in manifest.rows)
    _check_labels(case, manifest)


def _check_labels(case: Case, manifest: Manifest) -> None:
    """Each image has the class of its folder, or in a table that of its number: cats and dogs take turns."""
    for row in manifest.rows:
        name = manifest.classes[row.label]
        if "table of images" in manifest.layout:
            assert name == case.classes[int(stem(row.path)) % 2]
        elif "class in the file name" in manifest.layout:
            assert base(row.path).startswith(name)
        else:
            assert name in row.path.split("/")


def test_a_table_that_contradicts_the_class_folders_is_named(fill: Fill) -> None:
    """The folders may be the parts in which the images came."""
    files = below("batch1", "batch2", count=30)
    unlike = {name.replace("/", "/x") if name.startswith("batch2") else name: n for name, n in files.items()}
    root = fill(unlike | {"labels.csv": rows(unlike)})
    manifest = scan(DataConfig(path=root))

    (reason,) = [
        problem.reason for problem in manifest.problems if problem.path == "labels.csv" and problem.kind == "class"
    ]
    assert "its column label has several labels for images of one class folder" in reason
    assert scan(DataConfig(path=root / "labels.csv")).classes == LABELS
    (root / "labels.csv").write_text("image,label\n" + "\n".join(f"{name},{name[5]}" for name in unlike))
    assert not [problem for problem in scan(DataConfig(path=root)).problems if problem.kind == "class"]


def test_a_folder_beside_a_table_of_texts_is_not_its_affair(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill({"a.csv": b"name,label\n" + b"\n".join(b"n%d,%d" % (n, n % 2) for n in range(20)), "private/x": b""})
    with monkeypatch.context() as patch:
        patch.setattr(_listing, "is_junk", lambda path: (_ for _ in ()).throw(DataError("may not be read")))
        assert data_kind(DataConfig(path=root / "a.csv")) == "texts"


REFUSED: list[tuple[str, Files, str, dict[str, Any], str]] = [
    (
        "images in train/ and test/",
        TRAIN | TEST,
        "",
        {},
        r"contains test/, train/, which are names of splits .* --set data\.class_level=1",
    ),
    (
        "images in train/ and test/ whose names are numbered within a class",
        numbered("train") | numbered("test", first=99),
        "",
        {},
        r"are names of splits.*in the file names, cat \(60\), dog \(60\): --set data\.class_pattern='\^",
    ),
    (
        "images in one folder whose names are numbered within a class",
        numbered("images"),
        "",
        {},
        r"only one class folder .*--set data\.class_pattern=",
    ),
    (
        "a class in too few names",
        numbered("images") | below("images", count=5, first=99),
        "",
        {"class_pattern": PATTERN},
        r"(?s)finds no class in 5 of 65 names of images.*images/000\.png.*data\.max_bad_fraction=1",
    ),
    (
        "one class in all names",
        {name.replace("dog", "cat"): n for name, n in numbered("images").items()},
        "",
        {"class_pattern": PATTERN},
        r"finds only one class \(cat\)",
    ),
    (
        "a class of each name",
        numbered("images"),
        "",
        {"class_pattern": r"(.+)\.png"},
        r"finds 60 classes in the names of 60 images",
    ),
    (
        "a pattern for a table",
        MANY | {"labels.csv": rows(MANY)},
        "labels.csv",
        {"class_pattern": PATTERN},
        r"is for a folder of images, but .*labels\.csv is a table",
    ),
    ("images in training_set/ and test_set/", below("training_set", "test_set"), "", {}, "which are names of splits"),
    ("train_data and val_data of images", below("train_data", "val_data"), "", {}, "which are names of splits"),
    ("images/ and masks/", below("images", "masks"), "", {}, "names of splits or image folders"),
    (
        "images/ and annotations/ in train/",
        below("train/images", "train/annotations", "test/images", "test/annotations"),
        "",
        {},
        "image folders",
    ),
    (
        "classes below two cameras",
        classes_in("left", "right"),
        "",
        {},
        r"left/, right/ in .* contain the same subfolders cat, dog: .* data\.class_level=2",
    ),
    (
        "classes below two cameras, in split folders",
        classes_in("train/left", "train/right", "test/left", "test/right"),
        "",
        {},
        "contain the same subfolders cat, dog",
    ),
    (
        "digits below two sources",
        below(*(f"{s}/{d}" for s in "ab" for d in range(5))),
        "",
        {},
        "contain the same subfolders 0, 1",
    ),
    (
        "a table whose images are not there",
        {"labels.csv": rows(MANY)},
        "labels.csv",
        {},
        r"(?s)60 of 60 rows name no image file in .*labels\.csv:2: images/000\.png does not exist.*data\.image_folder=",
    ),
    ("a folder of such a table", {"labels.csv": rows(MANY)}, "", {}, "name no image file"),
    (
        "one column per class",
        MANY
        | {
            "labels.csv": b"image,cat,dog\n"
            + b"\n".join(b"%s,%d,%d" % (p.encode(), n % 2, 1 - n % 2) for n, p in enumerate(MANY))
        },
        "labels.csv",
        {},
        "one column per class: a single column with the name",
    ),
    (
        "texts and images",
        MANY
        | {
            "labels.csv": b"image,text,label\n"
            + b"\n".join(b"%s,a picture of %d,%s" % (p.encode(), n, LABELS[n % 2].encode()) for n, p in enumerate(MANY))
        },
        "labels.csv",
        {},
        r"data\.text_column=text or --set data\.image_column=image",
    ),
    (
        "two tables of images",
        MANY | {"a.csv": rows(MANY), "b.csv": rows(MANY)},
        "",
        {},
        r"contains the tables a\.csv, b\.csv, which all name images",
    ),
    (
        "an option for tables where there is none",
        classes_in(".", count=30),
        "",
        {"label_column": "x"},
        r"data\.label_column=x: only for tables, but .* is read as one folder per class",
    ),
    (
        "an image column where there is no table",
        classes_in(".", count=30),
        "",
        {"image_column": "x"},
        "no table of images",
    ),
    (
        "an image column that is none",
        MANY | {"labels.csv": rows(MANY)},
        "labels.csv",
        {"image_column": "x"},
        r"data\.image_column='x' is not a column of labels\.csv",
    ),
]


@pytest.mark.parametrize(
    ("files", "data", "options", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_cannot_be_told_is_refused_with_what_was_found(
    fill: Fill, files: Files, data: str, options: dict[str, Any], words: str
) -> None:
    root = fill(files)
    with pytest.raises(DataError, match=words):
        scan(DataConfig(path=root / data, **options))


def test_what_no_pattern_finds_is_named(fill: Fill) -> None:
    root = fill(
        numbered("train")
        | {"train/background.png": 99, "stray.png": 98, "more/dog.7.png": 97}
        | {f"test/{n}.png": 500 + n for n in range(5)}
        | {f"val/{LABELS[n % 2]}.{n}.png": 600 + n for n in range(10)}
        | {"val/emu.1.png": 700}
    )
    manifest = scan(DataConfig(path=root, class_pattern=PATTERN))

    reasons = {problem.path: problem.reason for problem in manifest.problems}
    assert reasons["train/background.png"] == "data.class_pattern finds no class in its name"
    assert "5 images in whose names" in reasons["test"]
    assert reasons["stray.png"] == reasons["more"] == "1 image outside the split folders"
    assert "no image of this class to train on" in reasons["val/: emu"]


def test_a_pattern_labels_further_images(fill: Fill) -> None:
    root = fill(numbered("new", count=4) | {"other/x.png": 9})
    config = DataConfig(path=root, class_pattern=PATTERN)

    files, classes = labelled_files(root / "new", config)
    assert [file.name.split(".")[0] for file in files] == classes
    with pytest.raises(DataError, match=r"finds no class in the name of 1 image:\n  x\.png"):
        labelled_files(root / "other", config)


@pytest.mark.parametrize(
    "homes",
    [
        ("",),
        ("train/", "test/"),
        ("test/",),
        ("new/train/", "new/test/"),
        ("seg_test/seg_test/", "seg_train/seg_train/"),
    ],
)
def test_split_folders_are_no_classes_of_further_images(fill: Fill, homes: tuple[str, ...]) -> None:
    root = fill({f"{home}{name}/{n}.png": n for home in homes for name in LABELS for n in range(4)})
    files, classes = labelled_files(root, DataConfig(path=root))

    assert sorted(file.relative_to(root).as_posix() for file in files) == sorted(
        path.relative_to(root).as_posix() for path in root.rglob("*.png")
    )
    assert [file.parent.name for file in files] == classes
    assert set(classes) == set(LABELS)


def test_further_images_have_their_classes_where_those_to_train_on_have_them(fill: Fill) -> None:
    root = fill({f"camera{n % 2}/{name}/{n}.png": n for name in LABELS for n in range(4)})
    files, classes = labelled_files(root, DataConfig(path=root, class_level=2))
    assert [file.parent.name for file in files] == classes
    assert len(classes) == 4 * len(LABELS)


def test_a_class_that_is_called_as_a_split_stays_one(fill: Fill) -> None:
    root = fill({f"{name}/{n}.png": n for name in ("test", "cat", "dog") for n in range(4)})
    assert set(labelled_files(root, DataConfig(path=root))[1]) == {"test", "cat", "dog"}


def test_the_next_step_after_a_check_has_its_options(
    fill: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them the search would be refused."""
    monkeypatch.setenv("THAWLINE_HOME", str(tmp_path / "home"))
    answer = CliRunner().invoke(app, ["check", str(fill(numbered("."))), "--set", f"data.class_pattern={PATTERN}"])
    assert f"--set 'data.class_pattern={PATTERN}'" in " ".join(answer.output.split())


def test_a_check_reads_the_data_as_a_recipe_says(fill: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THAWLINE_HOME", str(tmp_path / "home"))
    root, recipe = fill(numbered(".")), tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"data": {"class_pattern": PATTERN, "test_fraction": 0.3}}))
    answer = CliRunner().invoke(app, ["check", str(root), "--recipe", str(recipe), "--set", "data.test_fraction=0.2"])
    shown = " ".join(answer.output.split())
    assert "test (20%)" in shown
    assert f"search {root} --recipe {recipe} --set data.test_fraction=0.2" in shown
    manifest = thawline.check_data(root, recipe=recipe)
    assert manifest.digest == read_with(root, 0.3).digest


def read_with(root: Path, test_fraction: float) -> Manifest:
    return scan(DataConfig(path=root, class_pattern=PATTERN, test_fraction=test_fraction))


def test_a_pattern_stands_alone() -> None:
    with pytest.raises(ValueError, match="class_pattern and class_level cannot both be set"):
        DataConfig(path=Path(), class_pattern=PATTERN, class_level=1)
