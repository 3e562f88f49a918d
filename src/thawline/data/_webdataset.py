"""Shards of WebDataset: tars in which the files of a sample follow one another, ``000017.jpg`` and ``000017.cls``."""

import json
import re
import shutil
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any

from thawline.data._arrays import SPARE_BYTES
from thawline.data._listing import children, folders, is_image
from thawline.data._naming import split_names
from thawline.data._table_files import tables_among
from thawline.data._tars import DAMAGED, files_in
from thawline.data.images import EXTENSIONS
from thawline.data.splits import Split
from thawline.exceptions import DataError

__all__ = ["CLASS_NAMES", "class_names_beside", "is_webdataset", "shards_in", "write_samples"]

CLASS_NAMES = ("classnames.txt", "classes.txt", "class_names.txt")
"""Files beside shards with the name of a class in each line, of which ``.cls`` holds the number from 0."""

_TARS = (".tar", ".tar.gz", ".tgz")
_CLASS = ("cls", "cls.txt", "label", "label.txt")
"""How the file of a sample ends that holds its class."""
_PEEK = 200  # members by which a tar is known
_LONGEST = 1 << 20  # bytes of a class or of a sample's JSON
_MOST_SAMPLES = 5_000_000


def shards_in(root: Path) -> Mapping[Split, list[Path]]:
    """The shards of a folder that holds nothing else to train on, with their splits; empty for any other folder.

    They lie in the folder, ``pets-train-000000.tar``, or in a folder for each split, ``train/0.tar``.

    Raises:
        DataError: if the split of some cannot be told, there are none to train on, or their samples have no class.
    """
    if not root.is_dir() or tables_among(children(root)) or any(map(is_image, children(root))):
        return {}
    found: dict[str, list[Path]] = defaultdict(list)
    for tar in _tars(root):
        found[_without_number(tar)].append(tar)
    inner = folders(root)
    if found and inner:
        return {}
    for folder in inner:
        own = _tars(folder)
        if not own or folders(folder):
            return {}  # of many class folders the first one is listed, no other
        found[folder.name] = own
    if not found or not is_webdataset(next(iter(found.values()))[0]):
        return {}
    named = split_names(found)
    if not named and len(found) == 1:
        return {"train": next(iter(found.values()))}
    unknown = [name for name in found if name not in {each for names in named.values() for each in names}]
    if unknown or "train" not in named:
        what = "the splits cannot be told" if unknown else "none is called train"
        raise DataError(
            f"{root} holds the shards {', '.join(sorted(found)[:4])}, of which {what}: "
            "name them train, validation and test, as in pets-train-000000.tar or train/000000.tar."
        )
    return {split: [tar for name in names for tar in found[name]] for split, names in named.items()}


def is_webdataset(tar: Path) -> bool:
    """Whether a tar holds samples of an image and its class, by its first members.

    ``.json`` beside an image in a folder is no sign: class folders may hold such descriptions.
    """
    if not tar.name.lower().endswith(_TARS):
        return False
    ends: dict[str, set[str]] = {}
    try:
        with tarfile.open(tar) as archive:
            for info in islice((info for info in archive if info.isfile()), _PEEK):
                key, end = _parts(info.name)
                ends.setdefault(key, set()).add(end)
    except DAMAGED:
        pass  # whoever unpacks it says why
    samples = [(key, end) for key, end in ends.items() if any(f".{each}" in EXTENSIONS for each in end)]
    labelled = [key for key, end in samples if end & set(_CLASS) or ("json" in end and "/" not in key)]
    return len(labelled) > len(samples) / 2


def class_names_beside(tars: list[Path]) -> Path | None:
    """The file with the names of the classes, beside the shards or their split folders."""
    places = [folder / name for folder in (tars[0].parent, tars[0].parent.parent) for name in CLASS_NAMES]
    return next((place for place in places if place.is_file()), None)


def write_samples(shards: Mapping[Split, list[Path]], names: Path | None, target: Path) -> None:
    """``<split>/<shard>-<number>.jpg``, and in each split's folder a ``metadata.jsonl`` with what else a sample holds.

    Its class is in the column ``label``. Files are never called as the tar says, so that none can lie elsewhere.

    Args:
        shards: the tars of each split.
        names: a file with the name of each class in a line.
        target: an empty folder.

    Raises:
        DataError: if a tar is damaged, a sample holds several images, the names cannot be read, or the disk is too
            small.
    """
    classes = _names_in(names) if names is not None else []
    whole = len(shards) == 1
    for split, tars in shards.items():
        folder = target if whole else target / split
        folder.mkdir(exist_ok=True)
        with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
            for number, tar in enumerate(tars):
                for record in _records(tar, folder, f"{number:05d}"):
                    if "label" in record:
                        record["label"] = _named(record["label"], classes)
                    metadata.write(json.dumps(record) + "\n")


def _names_in(file: Path) -> list[str]:
    """The name in each line.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").split("\n")]
    except UnicodeDecodeError:
        raise DataError(f"{file} holds the names of the classes, and is not UTF-8: save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{file} holds the names of the classes, and cannot be read: {error.strerror}.") from None


def _named(label: Any, classes: list[str]) -> Any:
    """The name of the class of this number, as text or in JSON; any other label as it is."""
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        return label
    whole = label.isdecimal() if isinstance(label, str) else label == label // 1
    return classes[int(label)] if whole and 0 <= int(label) < len(classes) else label


def _records(tar: Path, folder: Path, shard: str) -> Iterator[dict[str, Any]]:
    """The samples of one shard, the image of each written to the folder."""
    key, samples = None, 0
    record: dict[str, Any] = {}
    left = shutil.disk_usage(folder).free - SPARE_BYTES
    try:
        with tarfile.open(tar) as archive:
            for info in files_in(archive):
                own, end = _parts(info.name)
                if own != key:
                    if record:
                        yield record
                    key, record, samples = own, {}, samples + 1
                left -= info.size
                if left < 0 or samples > _MOST_SAMPLES:
                    raise DataError(
                        f"{tar} unpacks to more than there is room for in {folder} (or than {_MOST_SAMPLES:,} samples)."
                    )
                if f".{end}" in EXTENSIONS and "file_name" in record:
                    raise DataError(f"The sample {own} of {tar} holds several images: one is needed.")
                source = archive.extractfile(info)
                if source is not None:
                    with source:
                        record = record | _read(source, end, folder / f"{shard}-{samples:07d}.{end}", record)
            if record:
                yield record
    except DAMAGED as error:
        raise DataError(f"{tar} cannot be read: {str(error) or type(error).__name__}.") from None


def _read(source: IO[bytes], end: str, image: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """What one file says of its sample; an image is written to its path."""
    if f".{end}" in EXTENSIONS:
        with image.open("xb") as file:
            shutil.copyfileobj(source, file)
        return {"file_name": image.name}
    if end in _CLASS:
        return {"label": source.read(_LONGEST).decode("utf-8", "backslashreplace").strip()}
    return {**_described(source.read(_LONGEST)), **record} if end == "json" else {}


def _described(data: bytes) -> dict[str, Any]:
    """What a sample's JSON says of it; nothing where it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    if isinstance(value, dict):
        return {name: cell for name, cell in value.items() if name != "file_name"}
    return {"label": value}


def _parts(name: str) -> tuple[str, str]:
    """Key and ending of a member: ``a/000017`` and ``cls.txt``, in lower case."""
    folder, _, file = name.removeprefix("./").rpartition("/")
    stem, _, end = file.partition(".")
    return (f"{folder}/{stem}" if folder else stem), end.lower()


def _tars(folder: Path) -> list[Path]:
    return [child for child in children(folder) if child.name.lower().endswith(_TARS) and child.is_file()]


def _without_number(tar: Path) -> str:
    """``pets-train`` of ``pets-train-000000.tar``."""
    return re.sub(r"[-_.]?\d+(-of-\d+)?$", "", tar.name.partition(".tar")[0].removesuffix(".tgz")) or "shard"
