"""Read an image folder into a manifest: every file looked at, every problem named, nothing mislabelled silently."""

import csv
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from thawline.data import images
from thawline.data._files import printable
from thawline.data._pool import map_files
from thawline.data.contract import (
    HELD_OUT,
    SPLIT_NAMES,
    SPLITS,
    Found,
    Item,
    Manifest,
    Problem,
    Row,
    check_bad,
    content_digest,
    counted,
    group_name,
    listed,
    manifest_of,
    split_off,
)
from thawline.data.remote import MIRROR_STATE
from thawline.data.splits import Split
from thawline.exceptions import DataError

if TYPE_CHECKING:  # the processes that decode import this module and need no pydantic
    from thawline.config import DataConfig

__all__ = ["check_folder", "files_of", "given_files", "image_files", "labelled_files", "scan_folder"]

_JUNK = {"thumbs.db", "desktop.ini", "__macosx"}
_METADATA = "metadata.csv"
_UNREAD = {".heic", ".heif", ".svg", ".psd", ".eps", ".pdf", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".jxl"}
_HIDDEN = "hidden, or left behind by a program"


@dataclass(frozen=True)
class _Layout:
    files: list[Item]
    problems: list[Problem]
    given: dict[Split, Path]
    """Split folders; empty where the class folders are at the top."""
    missing: frozenset[Split]
    """Splits without a folder of their own, which the hash takes from the training files."""
    text: str


def scan_folder(config: "DataConfig", *, on_progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Find the classes, decode every file once, and decide what is trained on; see :func:`thawline.data.scan`.

    Raises:
        DataError: if there is nothing to train on, too much is unreadable, or a split or a class would be empty.
    """
    root = config.path.expanduser().absolute()
    layout = _find_layout(root, config)
    paths = [file.path for file in layout.files]
    answers = map_files(
        partial(_inspect, root=root, max_pixels=config.max_pixels),
        paths,
        workers=config.workers,
        crashed=lambda path: ("", "the decoder crashed on it"),
        on_progress=on_progress,
    )
    bad = [Problem(path, reason, "bad") for path, (_, reason) in zip(paths, answers, strict=True) if reason]
    check_bad(bad, len(paths), config.max_bad_fraction, "images")
    files = [replace(f, digest=digest) for f, (digest, reason) in zip(layout.files, answers, strict=True) if not reason]
    return manifest_of(
        Found(
            root=root,
            kind="images",
            items=_with_groups(files, config, root),
            classes=tuple(sorted({file.class_name for file in layout.files})),
            problems=[*layout.problems, *bad],
            given={split: f"{folder.name}/" for split, folder in layout.given.items()},
            missing=layout.missing,
            layout=layout.text,
        ),
        config,
    )


def check_folder(config: "DataConfig") -> None:
    """Refuse a folder that holds no classes, by listing it; reads no file.

    Raises:
        DataError: as :func:`scan` does for what lies where.
    """
    _find_layout(config.path.expanduser().absolute(), config)


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, by their extension, in order; hidden ones are passed over.

    Raises:
        DataError: if a folder cannot be read.
    """
    return [folder / path for path in _images_below(folder, folder, set(), [])]


def files_of(manifest: Manifest, rows: Sequence[Row]) -> list[Path]:
    """The files of these rows, in order, each read once to see that it still is what the scan saw.

    Raises:
        DataError: if the manifest is one of texts, or a file is gone or holds something else.
    """
    if manifest.kind != "images":
        raise DataError(f"{manifest.root} is a table of texts, no folder of images.")
    changed: list[str] = []
    for path, digest in {row.path: row.digest for row in rows}.items():
        try:
            intact = content_digest((manifest.root / path).read_bytes()) == digest
        except OSError as error:
            changed.append(f"{path}: {error.strerror}")
        else:
            if not intact:
                changed.append(f"{path}: its content has changed")
    if changed:
        raise DataError(
            f"{counted(len(changed), 'image')} of {manifest.root} {'is' if len(changed) == 1 else 'are'} not what the "
            f"study was trained on:\n{listed(changed)}\nStart again: the folder is then read anew."
        )
    return [manifest.root / row.path for row in rows]


def given_files(path: Path) -> list[Path]:
    """The image files that a user means by a path: itself, or all below it.

    Raises:
        DataError: if there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} does not exist. Give image files, or folders that hold them.")
    files = image_files(path)
    if not files:
        raise DataError(f"{path} holds no image file.")
    return files


def labelled_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Image files of ``FOLDER/<class>/…`` and the name of the class of each, in order; nothing is read.

    Raises:
        DataError: if there is none.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    root = folder.expanduser().absolute()
    found = [(root / path, name) for name, paths in _classes_below(root, root, []).items() for path in paths]
    if not found:
        raise DataError(f"{folder} holds no images in class folders: FOLDER/<class>/… is looked for.")
    return [path for path, _ in found], [name for _, name in found]


# ---------------------------------------------------------------------------------------------- finding the files


def _find_layout(root: Path, config: "DataConfig") -> _Layout:
    if not _children(root):
        raise DataError(f"The folder {root} is empty: put one subfolder of images per class into it.")
    given = _split_folders(root)
    folders: dict[Split, Path] = given or {"train": root}
    problems = list(_strays(root, root, config, beside=given)) if given else []
    files: list[Item] = []
    trained: set[str] = set()
    for split in sorted(folders, key=HELD_OUT.__getitem__):  # training first: it says which classes there are
        problems += _strays(folders[split], root, config)
        by_class = _classes_below(folders[split], root, problems)
        if split == "train":
            trained = set(by_class)
        for name, paths in by_class.items():
            if name in trained:
                files += [Item(path, name, split) for path in paths]
            else:
                reason = f"{given['train'].name}/ has no image of this class: {counted(len(paths), 'image')} left out"
                problems.append(Problem(f"{_relative(folders[split], root)}/{name}", reason, "class"))
    if len(trained) < 2:
        raise DataError(_too_few_classes(root, folders["train"], trained))
    missing = frozenset(split for split in SPLITS if split not in folders)
    return _Layout(files, problems, given, missing, _describe(given, missing, config))


def _class_name(class_folder: Path) -> str:
    """That of the folder; macOS writes "é" as two characters and others as one, and both are the same class."""
    try:
        class_folder.name.encode()
    except UnicodeEncodeError:
        name = printable(class_folder.name)
        raise DataError(
            f"{class_folder.parent} holds the class folder {name}, whose name is no text in the encoding of file names "
            "here, so that it could not be recorded. Rename it, or set PYTHONUTF8=1."
        ) from None
    return unicodedata.normalize("NFC", class_folder.name)


def _classes_below(folder: Path, root: Path, problems: list[Problem]) -> dict[str, list[str]]:
    """Relative paths of the images of each class that has any."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for class_folder in _folders(folder):
        found = list(_images_below(class_folder, root, {_identity(root), _identity(folder)}, problems))
        if found:
            by_class[_class_name(class_folder)] += found
        else:
            problems.append(Problem(_relative(class_folder, root), "a class folder without images", "class"))
    return by_class


def _split_folders(root: Path) -> dict[Split, Path]:
    """The folders train, validation and test, by any of their names, or nothing where the classes are at the top."""
    top = _folders(root)
    holding: dict[Split, list[Path]] = defaultdict(list)
    for folder in top:
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is not None and _folders(folder):
            holding[split].append(folder)
    if holding["train"]:
        for split, folders in holding.items():
            if len(folders) > 1:
                names = " and ".join(f"{folder.name}/" for folder in folders)
                raise DataError(f"{root} holds both {names}, which mean the same ({split}): keep one of them.")
        return {split: folders[0] for split, folders in holding.items() if folders}
    held_out = [folder for folders in holding.values() for folder in folders]
    others = [folder.name for folder in top if folder.name.lower() not in SPLIT_NAMES]
    if held_out and (not others or any(inner.name in others for folder in held_out for inner in _folders(folder))):
        names = " and ".join(f"{folder.name}/" for folder in held_out)
        raise DataError(
            f"{root} holds {names} with class folders, but no train/ with class folders beside it. Put the training "
            "images under train/<class>/, or the class folders directly into the data folder to have all splits made."
        )
    return {}


def _images_below(folder: Path, root: Path, seen: set[tuple[int, int]], problems: list[Problem]) -> Iterator[str]:
    """Relative paths of all images in a class folder, however deep; links are followed, loops are not."""
    identity = _identity(folder)
    if identity in seen:
        problems.append(Problem(_relative(folder, root), "a link to a folder that is read already", "stray"))
        return
    seen.add(identity)
    for child in _children(folder):
        path = _relative(child, root)
        if _hidden(child):
            problems.append(Problem(path, _HIDDEN, "stray"))
        elif child.is_dir():
            yield from _images_below(child, root, seen, problems)
        elif child.suffix.lower() not in images.EXTENSIONS:
            problems.append(Problem(path, _by_extension(child), "stray"))
        elif child.exists() and not child.is_file():  # reading a named pipe would wait for ever
            problems.append(Problem(path, "neither a file nor a folder", "stray"))
        else:
            yield path


def _strays(
    folder: Path, root: Path, config: "DataConfig", *, beside: dict[Split, Path] | None = None
) -> Iterator[Problem]:
    """What lies above the class folders and is none of them; ``beside``: the split folders, where these are above."""
    for child in _children(folder):
        path = _relative(child, root)
        if _hidden(child):
            yield Problem(path, _HIDDEN, "stray")
        elif child.is_dir():
            if beside is not None and child not in beside.values():
                split = SPLIT_NAMES.get(child.name.lower())
                reason = "a folder without class folders" if split else "a folder that is no split"
                yield Problem(path, f"{reason}, beside {beside['train'].name}/", "stray")
        elif child.suffix.lower() in images.EXTENSIONS:
            yield Problem(path, "an image outside every class folder", "stray")
        elif not (config.group_column is not None and path == _METADATA):
            yield Problem(path, _by_extension(child), "stray")


def _by_extension(file: Path) -> str:
    if file.suffix.lower() in _UNREAD:
        return f"{file.suffix} is not read: convert it to JPEG or PNG"
    return "not an image by its extension"


def _children(folder: Path) -> list[Path]:
    try:
        return sorted((c for c in folder.iterdir() if c.name != MIRROR_STATE), key=lambda child: child.name)
    except OSError as error:
        raise DataError(f"Cannot read the folder {folder}: {error.strerror}.") from None


def _folders(folder: Path) -> list[Path]:
    return [child for child in _children(folder) if not _hidden(child) and child.is_dir()]


def _hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _JUNK


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _too_few_classes(root: Path, folder: Path, classes: set[str]) -> str:
    found = f"only one class folder with images ({next(iter(classes))})" if classes else "no class folder with images"
    message = f"{folder} holds {found}; a classifier needs at least two, as in {root.name}/<class>/photo.jpg."
    inner = [child for child in _folders(folder) if len(_folders(child)) > 1]
    if len(inner) == 1:
        message += f" Did you mean {inner[0]}?"
    elif not classes:
        message += f" A file is taken for an image by its extension: {', '.join(sorted(images.EXTENSIONS))}."
    return message


def _describe(given: dict[Split, Path], missing: frozenset[Split], config: "DataConfig") -> str:
    taken = split_off(missing, config)
    if not given:
        return f"one folder per class; {taken} split off by content"
    folders = ", ".join(f"{given[split].name}/" for split in SPLITS if split in given)
    return f"split folders {folders}" + (f"; {taken} split off {given['train'].name}/ by content" if taken else "")


# --------------------------------------------------------------------------------------------------- reading them


def _inspect(path: str, *, root: Path, max_pixels: int) -> tuple[str, str]:
    """(content digest, reason why the file is bad or nothing)."""
    try:
        data = (root / path).read_bytes()
    except (OSError, MemoryError) as error:
        return "", f"cannot be read: {getattr(error, 'strerror', None) or error or 'out of memory'}"
    try:
        images.decode(data, max_pixels=max_pixels)
    except images.BadImage as error:
        return "", str(error)
    return content_digest(data), ""


# ------------------------------------------------------------------------------------- their groups


def _with_groups(files: list[Item], config: "DataConfig", root: Path) -> list[Item]:
    """The files with their groups, by which they stay on one side."""
    if config.group_pattern is not None:
        groups = _groups_by_pattern(files, config.group_pattern)
    elif config.group_column is not None:
        groups = _groups_by_column(files, config.group_column, root / _METADATA)
    else:
        groups = [None] * len(files)
    return [replace(file, group=group) for file, group in zip(files, groups, strict=True)]


def _groups_by_pattern(files: list[Item], pattern: str) -> list[str | None]:
    """The first capture group of the match, or the whole match; a file without a match is a group of its own."""
    compiled = re.compile(unicodedata.normalize("NFC", pattern))
    matches = [compiled.search(unicodedata.normalize("NFC", file.path)) for file in files]
    groups = [
        group_name(match[1] if compiled.groups and match[1] else match[0]) if match else None for match in matches
    ]
    if files and not any(groups):
        what = "the empty text alone in" if any(matches) else "none of"
        raise DataError(
            f"data.group_pattern={pattern!r} matches {what} {counted(len(files), 'image')}, for example "
            f"{printable(files[0].path)!r}. It is searched in the path relative to the data folder."
        )
    return groups


def _groups_by_column(files: list[Item], column: str, table: Path) -> list[str | None]:
    """Groups from metadata.csv, the file of HuggingFace's image folders; an empty cell is a group of its own."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            lacking = [name for name in ("file_name", column) if name not in columns]
            if lacking:
                raise DataError(
                    f"{table} has no column {' and no column '.join(map(repr, lacking))}; it has: "
                    f"{', '.join(columns) or 'none'}. data.group_column needs file_name (relative to {table.parent}) "
                    "and the column that it names."
                )
            records = [(record["file_name"] or "", record[column] or "") for record in reader]
    except FileNotFoundError:
        raise DataError(
            f"data.group_column={column!r} needs the file {table} with the columns file_name and {column}."
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Cannot read {table} as UTF-8 CSV: {error}.") from None
    named: dict[str, str | None] = {}
    for name, cell in records:
        path = unicodedata.normalize("NFC", name.strip().replace("\\", "/").removeprefix("./"))
        group = group_name(cell)
        if named.setdefault(path, group) != group:
            raise DataError(f"{table} puts {path!r} into two groups: {named[path] or ''!r} and {group or ''!r}.")
    paths = [unicodedata.normalize("NFC", file.path) for file in files]
    without = [path for path in paths if path not in named]
    if without:
        raise DataError(
            f"{table} has no row for {counted(len(without), 'image')} (file_name must be relative to {table.parent}):\n"
            f"{listed(without)}"
        )
    return [named[path] for path in paths]
