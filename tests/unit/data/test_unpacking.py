"""Archives, and Parquet with the images inside, give the data that their folders give; and nothing else is written."""

import gzip
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from thawline.config import DataConfig
from thawline.data import Manifest, data_kind, files_of, labelled_files, scan, texts_of
from thawline.exceptions import DataError

pytestmark = pytest.mark.usefixtures("in_process", "home")

Files = dict[str, int | bytes]
Fill = Callable[[Files], Path]
CLASSES: Files = {
    f"{name}/{n:03}.png": 1000 * place + n for place, name in enumerate(("cat", "dog")) for n in range(30)
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THAWLINE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def read(path: Path, **options: Any) -> Manifest:
    return scan(DataConfig(path=path, **options))


def pack(root: Path, archive: Path, below: str = "") -> Path:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
            for file in files:
                opened.write(file, f"{below}{file.relative_to(root).as_posix()}")
    else:
        mode: Any = f"w:{archive.suffix[1:].replace('tgz', 'gz').replace('tar', '')}"
        with tarfile.open(archive, mode) as opened_tar:
            for file in files:
                opened_tar.add(file, f"{below}{file.relative_to(root).as_posix()}")
    return archive


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2"])
@pytest.mark.parametrize("below", ["", "photos/", "archive/photos/"])
def test_an_archive_gives_the_data_of_its_folder(fill: Fill, tmp_path: Path, ending: str, below: str) -> None:
    root = fill(CLASSES)
    archive = pack(root, tmp_path / f"pets{ending}", below)

    manifest = read(archive)

    assert manifest.digest == read(root).digest
    assert manifest.layout.startswith(f"archive pets{ending}; one folder per class")
    assert manifest.name == (below.split("/")[-2] if below else "pets")
    assert files_of(manifest, manifest.rows)
    assert data_kind(DataConfig(path=archive)) == "images"


def test_an_archive_may_hold_tables(fill: Fill, tmp_path: Path) -> None:
    texts = "\n".join(["text,label", *(f"message number {n} of many,{'ab'[n % 2]}" for n in range(40))]).encode()
    manifest = read(pack(fill({"mails.csv": texts}), tmp_path / "mails.zip"))
    assert manifest.kind == "texts"
    assert len(texts_of(manifest, manifest.rows)) == 40

    images = {f"images/{n:03}.png": n for n in range(40)}
    table = "\n".join(["image,label", *(f"{name},{'ab'[n % 2]}" for n, name in enumerate(images))]).encode()
    (tmp_path / "photos" / "mails.csv").unlink()
    manifest = read(pack(fill(images | {"labels.csv": table}), tmp_path / "images.zip"))
    assert "archive images.zip; table of images labels.csv" in manifest.layout


def test_an_archive_is_unpacked_once_and_again_when_it_changes(fill: Fill, tmp_path: Path, home: Path) -> None:
    root = fill(CLASSES)
    archive = pack(root, tmp_path / "pets.zip")
    first = read(archive)
    (made,) = (path for path in (home / "cache" / "unpacked").iterdir() if path.is_dir())
    marker = made / "pets" / "cat" / "000.png"
    before = marker.stat().st_ino
    assert read(archive).digest == first.digest
    assert marker.stat().st_ino == before

    (root / "cat" / "000.png").unlink()
    os.utime(pack(root, archive), (1, 1))
    assert len(read(archive).rows) == 59


def test_a_folder_that_was_unpacked_in_part_is_unpacked_again(fill: Fill, tmp_path: Path, home: Path) -> None:
    archive = pack(fill(CLASSES), tmp_path / "pets.zip")
    read(archive)
    (made,) = (path for path in (home / "cache" / "unpacked").iterdir() if path.is_dir())
    (made / "pets" / "cat" / "000.png").unlink()
    made.with_suffix(".json").unlink()

    assert len(read(archive).rows) == 60


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("change", ["cut", "checksum"])
def test_a_tar_that_is_damaged_in_a_header_is_refused(
    tmp_path: Path, picture: Callable[[int], bytes], change: str
) -> None:
    """Python's module takes either for the end, and half of the images would be lost without a word."""
    names = [f"{name}/{n:03}.png" for name in ("cat", "dog") for n in range(30)]
    data = tar_of(*((tarfile.TarInfo(name), picture(n)) for n, name in enumerate(names)))
    place = data.index(b"dog/015.png")
    damaged = data[: place + 300] if change == "cut" else data[: place + 148] + b"x" * 8 + data[place + 156 :]
    (tmp_path / "pets.tar").write_bytes(damaged)
    with pytest.raises(DataError, match=r"cannot be unpacked: it is truncated or damaged after"):
        read(tmp_path / "pets.tar")


def damaged(data: bytes, place: int) -> bytes:
    return data[:place] + b"x" * 8 + data[place + 8 :]


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
@pytest.mark.parametrize("place", [b"dog/015.png", b"\0ustar", b"IDAT"], ids=["name", "header", "image"])
def test_what_lies_behind_damage_is_not_lost_without_a_word(
    tmp_path: Path, picture: Callable[[int], bytes], ending: str, place: bytes
) -> None:
    """A compressed tar has a checksum, which is compared by whoever reads to its end."""
    names = [f"{name}/{n:03}.png" for name in ("cat", "dog") for n in range(18)]
    data = tar_of(*((tarfile.TarInfo(name), picture(n)) for n, name in enumerate(names)))
    archive = tmp_path / f"pets.{ending}"
    # Stored as it is, so that damage changes these bytes alone and not all that follow.
    archive.write_bytes(gzip.compress(data, 0) if ending == "tar.gz" else data)
    assert len(read(archive).rows) == 36

    whole = archive.read_bytes()
    archive.write_bytes(damaged(whole, whole.index(place, whole.index(b"dog/015.png"))))
    if (ending, place) == ("tar", b"IDAT"):  # it has no checksum: the image alone is bad
        assert len(read(archive).bad) == 1
    else:
        with pytest.raises(DataError, match=r"cannot be unpacked: (it is truncated or damaged after|CRC check failed)"):
            read(archive)


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_tar_that_is_cut_off_between_two_files_is_refused(
    tmp_path: Path, picture: Callable[[int], bytes], ending: str, kept: int
) -> None:
    """Downloads end at round numbers, where the header of a file may begin."""
    names = [f"{name}/{n:03}.png" for n in range(18) for name in ("cat", "dog")]
    data = tar_of(*((tarfile.TarInfo(name), picture(n)) for n, name in enumerate(names)))
    data = data[: data.index(b"cat/016.png")] + bytes(512 * kept)
    (tmp_path / f"pets.{ending}").write_bytes(gzip.compress(data) if ending == "tar.gz" else data)
    if kept:  # one block of zeros is an end, though POSIX asks for two
        assert len(read(tmp_path / f"pets.{ending}").rows) == 32
    else:
        with pytest.raises(DataError, match=r"cannot be unpacked: it is truncated or damaged after"):
            read(tmp_path / f"pets.{ending}")


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_two_tars_in_one_file_are_refused(tmp_path: Path, picture: Callable[[int], bytes], ending: str) -> None:
    """The second would not be read."""
    names = [f"{name}/{n:03}.png" for n in range(18) for name in ("cat", "dog")]
    data = tar_of(*((tarfile.TarInfo(name), picture(n)) for n, name in enumerate(names)))
    (tmp_path / f"pets.{ending}").write_bytes(gzip.compress(data) * 2 if ending == "tar.gz" else data * 2)
    with pytest.raises(DataError, match=r"after [\d,]+ bytes, or another archive follows there"):
        read(tmp_path / f"pets.{ending}")


@pytest.mark.parametrize("ending", ["zip", "tar.gz", "tar.xz", "tar.bz2"])
def test_a_compressed_archive_that_is_damaged_anywhere_is_one_clear_error(
    tmp_path: Path, fill: Fill, ending: str
) -> None:
    texts: Files = {f"{name}/{n:03}.txt": name.encode() * 500 for name in ("cat", "dog") for n in range(30)}
    archive = pack(fill(texts), tmp_path / f"pets.{ending}")
    whole = archive.read_bytes()
    places: Sequence[int] = range(60, len(whole) - 100, len(whole) // 9)
    if ending == "zip":  # of its headers not every byte is needed
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()[::7]
        places = [member.header_offset + 30 + len(member.filename) + 2 for member in members]
    for place in places:
        archive.write_bytes(damaged(whole, place))
        with pytest.raises(DataError, match=rf"pets\.{ending} (cannot be unpacked|has)"):
            read(archive)


def zip_of(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/evil.png", "..\\evil.png", "C:\\evil.png", "a/../b.png"]
)
@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_an_archive_that_would_write_elsewhere_is_refused(tmp_path: Path, home: Path, name: str, ending: str) -> None:
    archive = tmp_path / f"evil{ending}"
    archive.write_bytes(zip_of(name) if ending == ".zip" else tar_of((tarfile.TarInfo(name), b"x")))

    with pytest.raises(DataError, match=r"would be written outside its folder\. Nothing was kept\."):
        read(archive)
    assert not [path for path in tmp_path.rglob("*evil*") if path != archive]
    assert [path.suffix for path in (home / "cache" / "unpacked").iterdir()] == [".lock"]


@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_a_folder_may_have_a_colon_in_its_name(fill: Fill, tmp_path: Path, ending: str) -> None:
    root = fill({f"photos:2024/{name}": number for name, number in CLASSES.items()})
    assert len(read(pack(root, tmp_path / f"pets{ending}")).rows) == 60


def test_links_devices_and_pipes_of_an_archive_are_left_out(tmp_path: Path, fill: Fill, home: Path) -> None:
    archive = pack(fill(CLASSES), tmp_path / "pets.tar")
    with tarfile.open(archive, "a") as opened:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"cat/{kind!r}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            opened.addfile(info)
    manifest = read(archive)
    assert len(manifest.rows) == 60
    assert all(path.is_file() and not path.is_symlink() for path in home.rglob("*.png"))

    with zipfile.ZipFile(pack(fill(CLASSES), tmp_path / "pets.zip"), "a") as opened_zip:
        link = zipfile.ZipInfo("cat/link.png")
        link.external_attr = 0o120777 << 16
        opened_zip.writestr(link, "/etc/passwd")
    assert len(read(tmp_path / "pets.zip").rows) == 60


def test_an_archive_that_is_too_large_is_refused_before_it_fills_the_disk(
    tmp_path: Path, fill: Fill, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thawline.data import _unpacking

    archive = pack(fill(CLASSES), tmp_path / "pets.zip")
    with monkeypatch.context() as patch:
        patch.setattr(_unpacking, "_MOST_FILES", 59)
        with pytest.raises(DataError, match="more than fits into"):
            read(archive)
    with monkeypatch.context() as patch:
        patch.setattr(_unpacking, "SPARE_BYTES", 10**18)
        with pytest.raises(DataError, match="more than fits into"):
            read(archive)
    assert not list(home.rglob("*.png"))
    assert len(read(archive).rows) == 60


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.zip", b"no zip"), ("a.tar.gz", b"no tar"), ("a.tar", b"x" * 2000), ("b.zip", zip_of("a")[:-30])],
    ids=["no zip", "no tar.gz", "no tar", "cut off"],  # a zip holds the time at which it was made
)
def test_a_damaged_archive_is_one_clear_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} cannot be unpacked"):
        read(tmp_path / name)


# ------------------------------------------------------------------------------------- Parquet with the images inside


def parquet(
    path: Path, pictures: list[bytes | None], labels: list[Any], *, plain: bool = False, named: bool = True
) -> Path:
    images: Any = pictures if plain else [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(pictures)]
    table = pa.table({"image": images, "label": labels, "taken": [f"camera {n // 4}" for n in range(len(labels))]})
    if named:
        features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": features}}).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize("folder", ["", "data/", "default/"])
@pytest.mark.parametrize("plain", [False, True])
def test_parquet_with_images_inside_gives_the_data_of_the_folder(
    fill: Fill, tmp_path: Path, picture: Callable[[int], bytes], folder: str, plain: bool
) -> None:
    files = {f"{name}/{n}.png": 100 * place + n for place, name in enumerate(("cat", "dog")) for n in range(30)}
    expected = read(fill(files))
    numbers = list(files.values())
    repository = tmp_path / "repository"
    for shard in range(2):
        own = numbers[shard::2]
        name = f"{folder}train-{shard:05}-of-00002.parquet"
        parquet(repository / name, [picture(n) for n in own], [n // 100 for n in own], plain=plain)
    (repository / "README.md").write_text("a data set")
    manifest = read(repository)

    assert manifest.digest == expected.digest
    assert manifest.classes == ("cat", "dog")
    assert manifest.name == "repository"
    assert manifest.layout.startswith("Parquet with embedded images in column image of train-00000-of-00002.parquet; ")
    assert files_of(manifest, manifest.rows)
    assert data_kind(DataConfig(path=repository)) == "images"


def test_the_files_of_a_repository_are_its_splits(tmp_path: Path, picture: Callable[[int], bytes]) -> None:
    for place, (split, count) in enumerate({"train": 40, "validation": 6, "test": 4}.items()):
        pictures = [picture(1000 * place + n) for n in range(count)]
        path = tmp_path / "pets" / "data" / f"{split}-00000-of-00001.parquet"
        parquet(path, list(pictures), [n % 2 for n in range(count)])
    manifest = read(tmp_path / "pets")

    assert {split: len(manifest.of(split)) for split in ("train", "validation", "test")} == {
        "train": 40, "validation": 6, "test": 4,
    }  # type: ignore[arg-type]  # fmt: skip


def test_one_parquet_file_and_what_is_wrong_with_its_rows(tmp_path: Path, picture: Callable[[int], bytes]) -> None:
    pictures: list[bytes | None] = [picture(n) for n in range(60)]
    labels = [n % 2 for n in range(60)]
    pictures[3], pictures[4], labels[5] = None, b"\x89PNG\r\n\x1a\n broken", -1
    path = parquet(tmp_path / "pets.parquet", pictures, labels)
    manifest = read(path, max_bad_fraction=0.1)

    reasons = {problem.path: problem.reason for problem in manifest.bad}
    assert reasons["metadata.jsonl:4"] == "the image is missing"
    assert reasons["metadata.jsonl:6"] == "the label is missing"
    assert "damaged" in reasons["pets-0000005.png"] or "known format" in reasons["pets-0000005.png"]
    assert len(manifest.rows) == 57
    grouped = read(path, group_column="taken", max_bad_fraction=0.1, test_fraction=0.2)
    assert {row.group for row in grouped.rows} == {f"camera {n}" for n in range(15)}
    assert set(labelled_files(path, DataConfig(path=path, max_bad_fraction=0.1))[1]) == {"cat", "dog"}


def test_parquet_of_texts_in_parts_is_one_table(tmp_path: Path) -> None:
    for shard in range(3):
        texts = [f"message number {n} of many" for n in range(shard, 60, 3)]
        table = pa.table({"text": texts, "label": [("ham", "spam")[len(text) % 2] for text in texts]})
        path = tmp_path / "mails" / "data" / f"train-{shard:05}-of-00003.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    manifest = read(tmp_path / "mails")

    assert manifest.kind == "texts"
    assert len(texts_of(manifest, manifest.rows)) == 60
    assert manifest.rows[0].path.startswith("data/train-0000")
