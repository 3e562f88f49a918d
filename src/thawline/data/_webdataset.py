"""WebDataset shards: tars with consecutive files of a sample, ``000017.jpg`` and ``000017.cls``."""

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
"""Files beside shards with one class name per line, to which ``.cls`` refers by number from 0."""

_TARS = (".tar", ".tar.gz", ".tgz")
_CLASS = ("cls", "cls.txt", "label", "label.txt")
"""Extensions of a sample's file with its class."""
_PEEK = 200  # members for recognising a tar
_LONGEST = 1 << 20  # maximum bytes of a class or of a sample's JSON
_MOST_SAMPLES = 5_000_000


def shards_in(root: Path) -> Mapping[Split, list[Path]]:
    """The shards of a folder with nothing else to train on, with their splits; empty for any other folder.

    They are in the folder, ``pets-train-000000.tar``, or in a folder for each split, ``train/0.tar``.

    Raises:
        DataError: if the split of some cannot be determined, there are none to train on, or their samples have no
            class.
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
            return {}  # with many class folders, only the first one is listed
        found[folder.name] = own
    if not found or not is_webdataset(next(iter(found.values()))[0]):
        return {}
    named = split_names(found)
    if not named and len(found) == 1:
        return {"train": next(iter(found.values()))}
    unknown = [name for name in found if name not in {each for names in named.values() for each in names}]
    if unknown or "train" not in named:
        what = "but the splits cannot be determined" if unknown else "but none is named train"
        raise DataError(
            f"{root} contains the shards {', '.join(sorted(found)[:4])}, {what}: "
            "name them train, validation and test, as in pets-train-000000.tar or train/000000.tar."
        )
    return {split: [tar for name in names for tar in found[name]] for split, names in named.items()}


def is_webdataset(tar: Path) -> bool:
    """Whether a tar contains samples of an image and its class, judged by its first members.

    ``.json`` beside an image in a folder does not count: class folders may contain such descriptions.
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
        pass  # reported when it is unpacked
    samples = [(key, end) for key, end in ends.items() if any(f".{each}" in EXTENSIONS for each in end)]
    labelled = [key for key, end in samples if end & set(_CLASS) or ("json" in end and "/" not in key)]
    return len(labelled) > len(samples) / 2


def class_names_beside(tars: list[Path]) -> Path | None:
    """The file with class names, beside the shards or their split folders."""
    places = [folder / name for folder in (tars[0].parent, tars[0].parent.parent) for name in CLASS_NAMES]
    return next((place for place in places if place.is_file()), None)


def write_samples(shards: Mapping[Split, list[Path]], names: Path | None, target: Path) -> None:
    """Write ``<split>/<shard>-<number>.jpg``, and a ``metadata.jsonl`` per split with the rest of each sample.

    The class is in the column ``label``. Names in the tar are never used, so no file can be written elsewhere.

    Args:
        shards: the tars of each split.
        names: a file with one class name per line.
        target: an empty folder.

    Raises:
        DataError: if a tar is damaged, a sample has several images, the names cannot be read, or the disk is too small.
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
        raise DataError(f"{file}, the file of class names, is not UTF-8: save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{file}, the file of class names, cannot be read: {error.strerror}.") from None


def _named(label: Any, classes: list[str]) -> Any:
    """The class name of a number, as text or in JSON; any other label unchanged."""
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        return label
    whole = label.isdecimal() if isinstance(label, str) else label == label // 1
    return classes[int(label)] if whole and 0 <= int(label) < len(classes) else label


def _records(tar: Path, folder: Path, shard: str) -> Iterator[dict[str, Any]]:
    """Yield the samples of one shard, and write their images to the folder."""
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
                        f"{tar} unpacks to more than fits into {folder} (or more than {_MOST_SAMPLES:,} samples)."
                    )
                if f".{end}" in EXTENSIONS and "file_name" in record:
                    raise DataError(f"The sample {own} of {tar} has several images: it must have one.")
                source = archive.extractfile(info)
                if source is not None:
                    with source:
                        record = record | _read(source, end, folder / f"{shard}-{samples:07d}.{end}", record)
            if record:
                yield record
    except DAMAGED as error:
        raise DataError(f"{tar} cannot be read: {str(error) or type(error).__name__}.") from None


def _read(source: IO[bytes], end: str, image: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Add one file's content to its sample; an image is written to its path."""
    if f".{end}" in EXTENSIONS:
        with image.open("xb") as file:
            shutil.copyfileobj(source, file)
        return {"file_name": image.name}
    if end in _CLASS:
        return {"label": source.read(_LONGEST).decode("utf-8", "backslashreplace").strip()}
    return {**_described(source.read(_LONGEST)), **record} if end == "json" else {}


def _described(data: bytes) -> dict[str, Any]:
    """The content of a sample's JSON; empty if it is invalid."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    if isinstance(value, dict):
        return {name: cell for name, cell in value.items() if name != "file_name"}
    return {"label": value}


def _parts(name: str) -> tuple[str, str]:
    """Key and extension of a member: ``a/000017`` and ``cls.txt``, in lower case."""
    folder, _, file = name.removeprefix("./").rpartition("/")
    stem, _, end = file.partition(".")
    return (f"{folder}/{stem}" if folder else stem), end.lower()


def _tars(folder: Path) -> list[Path]:
    return [child for child in children(folder) if child.name.lower().endswith(_TARS) and child.is_file()]


def _without_number(tar: Path) -> str:
    """``pets-train`` for ``pets-train-000000.tar``."""
    return re.sub(r"[-_.]?\d+(-of-\d+)?$", "", tar.name.partition(".tar")[0].removesuffix(".tgz")) or "shard"
