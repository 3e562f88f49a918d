"""Shards of WebDataset: the images and classes of their samples, and nothing outside their folder."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thawline.config import DataConfig
from thawline.data import Manifest, data_kind, files_of, labelled_files, scan
from thawline.exceptions import DataError

pytestmark = pytest.mark.usefixtures("in_process", "home")

Members = list[tuple[str, bytes]]
Picture = Callable[[int], bytes]
LABELS = ("cat", "dog")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THAWLINE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def read(path: Path, **options: Any) -> Manifest:
    return scan(DataConfig(path=path, **options))


def write(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def samples(picture: Picture) -> Callable[..., Members]:
    """Pairs of an image and its class, cats and dogs in turn."""

    def make(
        count: int, *, first: int = 0, end: str = "cls", label: Callable[[int], str] = lambda n: LABELS[n % 2]
    ) -> Members:
        return [
            member
            for n in range(first, first + count)
            for member in ((f"{n:06}.png", picture(n)), (f"{n:06}.{end}", label(n).encode()))
        ]

    return make


Samples = Callable[..., Members]


def sizes(manifest: Manifest) -> dict[str, int]:
    return {split: len(manifest.of(split)) for split in ("train", "validation", "test")}  # type: ignore[arg-type]


def check_images(manifest: Manifest, picture: Picture) -> None:
    """Each file is the picture of its number, of which the class is known."""
    contents = {picture(n): n for n in range(60)}
    for row, file in zip(manifest.rows, files_of(manifest, manifest.rows), strict=True):
        assert contents[file.read_bytes()] % 2 == row.label


@pytest.mark.parametrize("name", ["pets.tar", "pets.tar.gz", "pets.tgz"])
@pytest.mark.parametrize("end", ["cls", "CLS", "cls.txt"])
def test_one_tar_of_samples_is_a_data_set(
    tmp_path: Path, samples: Samples, picture: Picture, name: str, end: str
) -> None:
    tar = write(tmp_path / name, samples(60, end=end))
    manifest = read(tar)

    assert data_kind(DataConfig(path=tar)) == "images"
    assert manifest.layout.startswith("WebDataset of 1 shard; table of images metadata.jsonl")
    assert (manifest.classes, len(manifest.rows), manifest.name) == (LABELS, 60, "pets")
    check_images(manifest, picture)
    assert labelled_files(tar, DataConfig(path=tar))[1] == [LABELS[n % 2] for n in range(60)]


@pytest.mark.parametrize(
    "names",
    [
        ("pets-train-000000.tar", "pets-train-000001.tar", "pets-val-000000.tar", "pets-test-000000.tar"),
        ("train-0.tar", "train-1.tar", "val-0.tar", "test-0.tar"),
        ("train/0.tar", "train/1.tar", "validation/0.tar", "test/0.tar"),
        ("train_00-of-02.tar", "train_01-of-02.tar", "val_00-of-01.tar", "test_00-of-01.tar"),
    ],
)
def test_shards_of_splits_are_the_splits(
    tmp_path: Path, samples: Samples, picture: Picture, names: tuple[str, ...]
) -> None:
    root = tmp_path / "pets"
    for name, first, count in zip(names, (0, 20, 40, 50), (20, 20, 10, 10), strict=True):
        write(root / name, samples(count, first=first))
    manifest = read(root)

    assert manifest.layout.startswith("WebDataset of 4 shards; ")
    assert sizes(manifest) == {"train": 40, "validation": 10, "test": 10}
    check_images(manifest, picture)


def test_numbered_shards_are_one_data_set(tmp_path: Path, samples: Samples) -> None:
    for number in range(3):
        write(tmp_path / "pets" / f"{number:06}.tar", samples(20, first=20 * number))
    assert len(read(tmp_path / "pets").rows) == 60


def test_classes_are_named_by_the_file_beside(tmp_path: Path, samples: Samples) -> None:
    for split, first in (("train", 0), ("test", 40)):
        write(tmp_path / "pets" / split / "0.tar", samples(20, first=first, label=lambda n: str(n % 2)))
    assert read(tmp_path / "pets").classes == ("0", "1")
    (tmp_path / "pets" / "classnames.txt").write_text("cat\ndog\n")
    manifest = read(tmp_path / "pets")

    assert manifest.classes == LABELS
    assert "class names from classnames.txt" in manifest.layout


@pytest.mark.parametrize("text", ['{"label": %d}', '{"label": %d.0}', '{"label": "%d"}', "%d"])
def test_numbers_in_json_are_named_by_the_file_beside(tmp_path: Path, samples: Samples, text: str) -> None:
    write(tmp_path / "pets" / "0.tar", samples(60, end="json", label=lambda n: text % (n % 2)))
    (tmp_path / "pets" / "classnames.txt").write_text("cat\ndog\n")
    assert read(tmp_path / "pets").classes == LABELS


@pytest.mark.parametrize("label", ["true", "-1", "7", "0.5", "1e999", "NaN"])
def test_a_label_that_is_no_number_of_a_class_is_none(tmp_path: Path, samples: Samples, label: str) -> None:
    more = samples(1, first=60, end="json", label=lambda n: f'{{"label": {label}}}')
    write(tmp_path / "pets" / "0.tar", samples(60, label=lambda n: str(n % 2)) + more)
    (tmp_path / "pets" / "classnames.txt").write_text("cat\ndog\n")
    manifest = read(tmp_path / "pets", max_bad_fraction=0.1)
    assert [len([row for row in manifest.rows if manifest.classes[row.label] == name]) for name in LABELS] == [30, 30]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_names_of_classes_are_utf_8(tmp_path: Path, samples: Samples, encoding: str) -> None:
    write(tmp_path / "pets" / "0.tar", samples(60, label=lambda n: str(n % 2)))
    (tmp_path / "pets" / "classnames.txt").write_text("Bär\nWürger\n", encoding=encoding)
    assert read(tmp_path / "pets").classes == ("Bär", "Würger")


def test_names_of_classes_in_another_encoding_are_refused(tmp_path: Path, samples: Samples, home: Path) -> None:
    write(tmp_path / "pets" / "0.tar", samples(60, label=lambda n: str(n % 2)))
    (tmp_path / "pets" / "classnames.txt").write_text("Bär\nWürger\n", encoding="latin-1")
    with pytest.raises(DataError, match=r"classnames\.txt, .*is not UTF-8.*UTF-8"):
        read(tmp_path / "pets")
    assert not [path for path in (home / "cache" / "unpacked").iterdir() if path.is_dir()]


def test_json_of_samples_is_columns(tmp_path: Path, samples: Samples, picture: Picture) -> None:
    tar = write(
        tmp_path / "pets.tar",
        samples(60, end="json", label=lambda n: json.dumps({"label": LABELS[n % 2], "age": n, "file_name": "../x"})),
    )
    manifest = read(tar)
    assert manifest.classes == LABELS
    check_images(manifest, picture)
    assert len(read(tar, group_column="age", label_column="label").rows) == 60


def test_a_sample_without_its_image_or_class_is_a_bad_row(tmp_path: Path, samples: Samples, picture: Picture) -> None:
    more = [("a.png", picture(70)), ("b.cls", b"cat"), ("c.png", picture(71)), ("c.json", b"no json")]
    manifest = read(write(tmp_path / "pets.tar", samples(60) + more), max_bad_fraction=0.1)

    assert {problem.path: problem.reason for problem in manifest.bad} == {
        "metadata.jsonl:61": "the label is missing",
        "metadata.jsonl:62": "the image is missing",
        "metadata.jsonl:63": "the label is missing",
    }


def test_names_in_a_shard_lead_nowhere(tmp_path: Path, samples: Samples) -> None:
    evil = [(f"../../{name}", content) for name, content in samples(20, first=60)]
    manifest = read(write(tmp_path / "pets.tar", samples(40) + evil))

    assert len(manifest.rows) == 60
    assert all("/" not in row.path for row in manifest.rows)
    assert not list(tmp_path.rglob("00006*"))


def test_links_in_a_shard_are_left_out(tmp_path: Path, samples: Samples) -> None:
    tar = write(tmp_path / "pets.tar", samples(60))
    with tarfile.open(tar, "a") as archive:
        info = tarfile.TarInfo("x.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    assert len(read(tar).rows) == 60


def test_a_sample_of_several_images_is_refused(tmp_path: Path, samples: Samples) -> None:
    more = [("x.png", b"1"), ("x.jpg", b"2"), ("x.cls", b"cat")]
    with pytest.raises(DataError, match=r"The sample x of .* has several images"):
        read(write(tmp_path / "pets.tar", samples(60) + more))


def test_a_shard_that_is_cut_off_is_refused_and_leaves_nothing(tmp_path: Path, samples: Samples, home: Path) -> None:
    tar = write(tmp_path / "pets.tar", samples(60))
    whole = tar.read_bytes()
    for cut in (50_000, 50_300, len(whole.rstrip(b"\0")) - 700):
        tar.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"pets\.tar cannot be read"):
            read(tar)
    assert not [path for path in (home / "cache" / "unpacked").iterdir() if path.is_dir()]


def test_a_compressed_shard_that_is_damaged_is_refused(tmp_path: Path, samples: Samples, home: Path) -> None:
    tar = write(tmp_path / "pets.tar", samples(60))
    whole = tar.read_bytes()
    place = whole.index(b"000040.png")
    damaged = whole[:place] + b"x" * 8 + whole[place + 8 :]
    shard = tmp_path / "pets.tar.gz"
    for level in (0, 9):
        packed = gzip.compress(whole, level)
        half = len(packed) // 2
        for content in (gzip.compress(damaged, level), packed[:half] + b"x" * 8 + packed[half + 8 :]):
            shard.write_bytes(content)
            with pytest.raises(DataError, match=r"pets\.tar\.gz cannot be read"):
                read(shard)
    shard.write_bytes(packed)
    assert len(read(shard).rows) == 60


def test_shards_whose_split_cannot_be_told_are_refused(tmp_path: Path, samples: Samples) -> None:
    for name in ("pets-train-0.tar", "pets-test-0.tar", "more-0.tar"):
        write(tmp_path / "pets" / name, samples(20))
    with pytest.raises(DataError, match=r"but the splits cannot be determined.*pets-train-000000\.tar"):
        read(tmp_path / "pets")


def test_class_folders_with_descriptions_beside_the_images_are_class_folders(tmp_path: Path, picture: Picture) -> None:
    members = [
        member
        for n in range(60)
        for member in ((f"{LABELS[n % 2]}/{n}.png", picture(n)), (f"{LABELS[n % 2]}/{n}.json", b'{"label": "x"}'))
    ]
    manifest = read(write(tmp_path / "pets.tar", members))
    assert manifest.layout.startswith("archive pets.tar; one folder per class")
    assert manifest.classes == LABELS
