"""Unpack data sets once into the home: archives, shards, and Parquet with embedded images.

The result is a folder, which is read like any other.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from thawline import environment
from thawline.data._arrays import SPARE_BYTES, locked
from thawline.data._files import write_atomically
from thawline.data._listing import children, folders, is_image
from thawline.data._naming import ARCHIVE_SUFFIXES, split_name
from thawline.data._sources import tables_in
from thawline.data._table_files import tables_among
from thawline.data._tables import BadCell, arrow_cells, class_names
from thawline.data._tars import DAMAGED, files_in
from thawline.data._webdataset import class_names_beside, is_webdataset, shards_in, write_samples
from thawline.data.contract import counted
from thawline.data.splits import Split
from thawline.exceptions import DataError

if TYPE_CHECKING:  # decoding processes import this package and do not need pydantic
    from thawline.config import DataConfig

__all__ = ["is_archive", "names_beside", "unpacked"]

_VERSION = 1  # increment when the result for the same files changes
_MOST_FILES = 5_000_000
_BLOCK = 1 << 20
_DRIVE = re.compile(r"[A-Za-z]:")  # on Windows
_ROWS = 256  # Parquet rows per batch: some 50 MB of photographs
_MAGIC = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG\r\n\x1a\n": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"RIFF": ".webp",
}


def is_archive(path: Path) -> bool:
    """Whether a file is an archive, by its extension."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES) and path.is_file()


def unpacked(config: "DataConfig") -> tuple["DataConfig", str]:
    """The same data as a folder, and a note on what was unpacked; unchanged and empty if not needed.

    Raises:
        DataError: if an archive is damaged, would write outside its folder, or is too large for the disk.
    """
    root = config.path.expanduser().absolute()
    if shards := _shards(root):
        return _of_shards(config, root, shards)
    if is_archive(root):
        folder = _once([root], _name(root), lambda target: _unpack(root, target))
        return config.model_copy(update={"path": _inner(folder)}), f"archive {root.name}"
    tables = _parquet_of(root)
    if not tables or (column := _image_column(next(iter(tables.values()))[0])) is None:
        return config, ""
    parts = [part for split in tables.values() for part in split]
    folder = _once(parts, root.stem if root.is_file() else root.name, lambda target: _write_images(tables, target))
    note = f"Parquet with embedded images in column {column} of {parts[0].name}"
    return config.model_copy(update={"path": folder, "image_column": "file_name"}), note


def names_beside(root: Path) -> Path | None:
    """The file with class names for a data path's shards; ``None`` if there are no shards or no such file."""
    tars = [tar for split in _shards(root).values() for tar in split]
    return class_names_beside(tars) if tars else None


def _shards(root: Path) -> Mapping[Split, list[Path]]:
    """The tars with their splits, if the data are a WebDataset."""
    if is_archive(root) and is_webdataset(root):
        return {"train": [root]}
    return shards_in(root)


def _of_shards(config: "DataConfig", root: Path, shards: Mapping[Split, list[Path]]) -> tuple["DataConfig", str]:
    tars = [tar for split in shards.values() for tar in split]
    names = class_names_beside(tars)
    files = [*tars, *([names] if names else [])]
    folder = _once(files, _name(root), lambda target: write_samples(shards, names, target), kind="webdataset")
    note = f"WebDataset of {counted(len(tars), 'shard')}"
    if names is not None:
        note += f", class names from {names.name}"
    return config.model_copy(update={"path": folder, "image_column": "file_name"}), note


def _name(root: Path) -> str:
    """Name of a folder, or of an archive without its extension."""
    ending = next((end for end in ARCHIVE_SUFFIXES if root.is_file() and root.name.lower().endswith(end)), "")
    return root.name.removesuffix(root.name[len(root.name) - len(ending) :])


def _once(files: list[Path], name: str, write: Callable[[Path], None], *, kind: str = "") -> Path:
    """The unpacked folder of these files, created if it is missing or one of them has changed."""
    described = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    made_of = [_VERSION, described, *([kind] if kind else [])]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]
    place = environment.home() / "cache" / "unpacked" / digest
    whole = place.with_suffix(".json")  # written last, and removed first: without it the folder may be incomplete
    with locked(place):
        if not whole.is_file():
            shutil.rmtree(place, ignore_errors=True)
            try:
                (place / name).mkdir(parents=True)
                write(place / name)
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                raise
            write_atomically(whole, json.dumps(described).encode())
    with suppress(OSError):  # a read-only home
        os.utime(whole)  # time of last use, for `thawline clean`
    return place / name


def _inner(folder: Path) -> Path:
    """The folder in an archive, if it contains nothing else."""
    inner = folders(folder)
    found = children(folder)
    if (
        len(inner) == 1
        and not any(map(is_image, found))
        and not tables_among(found)
        and split_name(inner[0].name) is None
    ):
        return _inner(inner[0])
    return folder


# ----------------------------------------------------------------------------------------------------------- archives


def _unpack(archive: Path, target: Path) -> None:
    try:
        if archive.suffix.lower() == ".zip":
            with zipfile.ZipFile(archive) as opened:
                _write_members(archive, target, _zip_members(opened))
        else:
            with tarfile.open(archive) as opened_tar:
                _write_members(archive, target, _tar_members(opened_tar))
    except (*DAMAGED, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{archive} cannot be unpacked: {str(error) or type(error).__name__}.") from None


Member = tuple[str, int, Callable[[], IO[bytes] | None]]
"""Name, size in bytes, and a function that opens it. Links, devices and pipes are excluded."""


def _zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if not info.is_dir() and kind in (0, stat.S_IFREG):
            yield info.filename, info.file_size, lambda info=info: archive.open(info)  # type: ignore[misc]


def _tar_members(archive: tarfile.TarFile) -> Iterator[Member]:
    for info in files_in(archive):
        yield info.name, info.size, lambda info=info: archive.extractfile(info)  # type: ignore[misc]


def _write_members(archive: Path, target: Path, members: Iterator[Member]) -> None:
    """Write each file below ``target``; names, sizes and their number are checked before opening."""
    left = shutil.disk_usage(target).free - SPARE_BYTES
    for number, (name, size, opened) in enumerate(members):
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if not parts or ".." in parts or parts[0].startswith("/") or _DRIVE.match(parts[0]) or "\0" in name:
            raise DataError(f"{archive} has {name!r}, which would be written outside its folder. Nothing was kept.")
        left -= size
        if left < 0 or number >= _MOST_FILES:
            raise DataError(
                f"{archive} unpacks to more than fits into {target.parents[2]} (or more than {_MOST_FILES:,} "
                "files). Unpack it elsewhere, and give the folder."
            )
        path = target.joinpath(*parts)
        if path.exists():
            raise DataError(f"{archive} has {name!r} twice, or as a file and a folder. Nothing was kept.")
        path.parent.mkdir(parents=True, exist_ok=True)
        _copy(archive, name, size, opened, path)


def _copy(archive: Path, name: str, size: int, opened: Callable[[], IO[bytes] | None], path: Path) -> None:
    source = opened()
    if source is None:
        return
    with source, path.open("xb") as file:
        written = 0
        while block := source.read(_BLOCK):
            written += len(block)
            if written > size:  # a wrong header
                raise DataError(f"{archive} has {name!r}, which is longer than declared. Nothing was kept.")
            file.write(block)


# --------------------------------------------------------------------------------------- Parquet with the images inside


def _parquet_of(root: Path) -> Mapping[Split, list[Path]]:
    tables: dict[Split, list[Path]] = {"train": [root]} if root.is_file() else {}
    try:
        if root.is_dir():
            tables = tables_in(root)
    except DataError:  # reported when the folder is read
        return {}
    parts = [part for split in tables.values() for part in split]
    return tables if parts and all(part.suffix.lower() == ".parquet" for part in parts) else {}


def _image_column(table: Path) -> str | None:
    """The column of encoded images: Hugging Face's structs of bytes and path, or bytes with an image header."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(table) as file:
            schema = file.schema_arrow
            binary = [field.name for field in schema if _is_binary(field.type)]
            for field in schema:
                if pa.types.is_struct(field.type) and any(inner.name == "bytes" for inner in field.type):
                    return str(field.name)
            head = next(file.iter_batches(8, columns=binary), None) if binary else None
    except (pa.ArrowException, OSError):
        return None  # reported when the table is read
    if head is None:
        return None
    for name in binary:
        values = [value for value in head.column(name).to_pylist() if value]
        if values and all(value.startswith(tuple(_MAGIC)) for value in values):
            return str(name)
    return None


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _write_images(tables: Mapping[Split, list[Path]], target: Path) -> None:
    """Write ``<split>/<part>-<row>.jpg``, and a ``metadata.jsonl`` with all other columns in each split's folder."""
    whole = len(tables) == 1
    for split, parts in tables.items():
        folder = target if whole else target / split
        folder.mkdir(exist_ok=True)
        with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
            for part in parts:
                for record in _records(part, folder):
                    metadata.write(json.dumps(record) + "\n")


def _records(part: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of one file, each with the name of its written image."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = _image_column(part)
    number = 0
    try:
        with pq.ParquetFile(part) as file:
            names = class_names(file.schema_arrow)
            for batch in file.iter_batches(_ROWS):
                others = {
                    name: arrow_cells(pa.chunked_array([batch.column(name)]), names.get(name))
                    for name in batch.schema.names
                    if name != column and name != "file_name"
                }
                images = batch.column(column).to_pylist() if column is not None else [None] * batch.num_rows
                for place, image in enumerate(images):
                    number += 1
                    cells = {name: _plain(values[place]) for name, values in others.items()}
                    yield {"file_name": _write_image(image, folder, f"{part.stem}-{number:07d}"), **cells}
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"{part} cannot be read as Parquet with images: {error}.") from None


def _plain(cell: Any) -> Any:
    return [] if isinstance(cell, BadCell) else cell  # a list in JSON is not a label either


def _write_image(value: Any, folder: Path, name: str) -> str | None:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not data:
        return None
    suffix = next((suffix for magic, suffix in _MAGIC.items() if data.startswith(magic)), ".png")  # by its content
    file = folder / f"{name}{suffix}"
    file.write_bytes(data)
    return file.name
