"""Read an image folder into a manifest: every file looked at, every problem named, nothing mislabelled silently."""

import csv
import hashlib
import json
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from thawline.data import images
from thawline.data._files import printable, write_atomically
from thawline.data._pool import map_files
from thawline.data.remote import MIRROR_STATE
from thawline.data.splits import Split, assign, keys
from thawline.exceptions import DataError

if TYPE_CHECKING:  # the processes that decode import this module and need no pydantic
    from thawline.config import DataConfig

__all__ = [
    "Manifest",
    "Problem",
    "ProblemKind",
    "Row",
    "Split",
    "check_folder",
    "given_files",
    "image_files",
    "labelled_files",
    "scan",
]

ProblemKind = Literal["bad", "stray", "duplicate", "leak", "conflict", "class"]

_SPLITS: tuple[Split, ...] = get_args(Split)
_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_HELD_OUT: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}
_JUNK = {"thumbs.db", "desktop.ini", "__macosx"}
_METADATA = "metadata.csv"
_UNREAD = {".heic", ".heif", ".svg", ".psd", ".eps", ".pdf", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".jxl"}
_HIDDEN = "hidden, or left behind by a program"
_NAMED = 10  # how many files an error lists


@dataclass(frozen=True)
class Row:
    """One image that is trained on or evaluated with."""

    path: str
    """Relative to the manifest's root, with ``/``."""
    label: int
    """Index into the manifest's classes."""
    split: Split
    digest: str
    """First 32 hex digits of the SHA-256 of the file's bytes."""
    group: str | None


@dataclass(frozen=True)
class Problem:
    """Something about one file or folder that a person should know.

    ``bad`` (cannot be decoded), ``stray`` (no image of a class), ``leak`` and ``conflict`` are left out; a
    ``duplicate`` is kept; ``class`` is a warning about a whole class.
    """

    path: str
    reason: str
    kind: ProblemKind


@dataclass(frozen=True)
class Manifest:
    """What is trained on: rows sorted by (split, class name, content digest, path), so that no file name matters."""

    root: Path
    classes: tuple[str, ...]
    """Names, sorted; a row's label is an index into them."""
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    digest: str
    """32 hex digits that change if and only if what would be trained on changes."""
    layout: str
    """What was found and done, in words."""

    @property
    def name(self) -> str:
        """Of the folder, by which the data is shown."""
        return self.root.resolve().name

    def of(self, split: Split) -> tuple[Row, ...]:
        """The rows of one split."""
        return tuple(row for row in self.rows if row.split == split)

    def counts(self) -> dict[str, dict[Split, int]]:
        """Number of images of each class in each split."""
        counter = Counter((row.label, row.split) for row in self.rows)
        return {name: {split: counter[label, split] for split in _SPLITS} for label, name in enumerate(self.classes)}

    @property
    def bad(self) -> tuple[Problem, ...]:
        """The files that could not be decoded."""
        return tuple(problem for problem in self.problems if problem.kind == "bad")

    def to_json(self, path: Path) -> None:
        """Write the manifest in one step: a reader sees the old file or the new one, never half of it."""
        content = asdict(self) | {"root": str(self.root)}
        write_atomically(path, json.dumps(content, indent=1).encode())

    @classmethod
    def from_json(cls, path: Path) -> "Manifest":
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: if the file is missing, is no manifest, or does not hold what its digest says.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            rows = tuple(Row(**row) for row in content["rows"])
            problems = tuple(Problem(**problem) for problem in content["problems"])
            manifest = cls(
                root=Path(content["root"]),
                classes=tuple(content["classes"]),
                rows=rows,
                problems=problems,
                digest=content["digest"],
                layout=content["layout"],
            )
            intact = manifest.digest == _manifest_digest(manifest.classes, rows)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(f"Cannot read the manifest {path}: {error}. `thawline check DATA` scans anew.") from None
        if not intact:
            raise DataError(f"The manifest {path} does not hold what its digest says: somebody changed it.")
        return manifest


@dataclass(frozen=True)
class _File:
    """A file with an image's name in a class folder."""

    path: str
    class_name: str
    given: Split
    """The split folder that it lies in; ``train`` where there are none."""
    digest: str = ""
    group: str | None = None
    key: str = ""


@dataclass(frozen=True)
class _Layout:
    files: list[_File]
    problems: list[Problem]
    given: dict[Split, Path]
    """Split folders; empty where the class folders are at the top."""
    missing: frozenset[Split]
    """Splits without a folder of their own, which the hash takes from the training files."""
    text: str


def scan(config: "DataConfig", *, on_progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Find the classes, decode every file once, and decide what is trained on.

    - Files that cannot be decoded are named (kind ``bad``) and left out, never replaced.
    - The same image under two classes contradicts itself: all its copies are left out (kind ``conflict``).
    - The same image, or one group, in two *given* split folders is a leak: test wins over validation over train, and
      what lies in the lesser one is left out (kind ``leak``).
    - Copies within one class are kept (kind ``duplicate``): they always lie on one side.

    Args:
        config: the folder, the fractions, the groups and the limits.
        on_progress: called with (files read, files in all) as the reading goes on.

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
    _check_bad(bad, len(paths), config.max_bad_fraction)
    files = [replace(f, digest=digest) for f, (digest, reason) in zip(layout.files, answers, strict=True) if not reason]

    files = _with_groups(files, config, root)
    files, conflicts = _without_conflicts(files)
    files, leaks = _without_leaks(files)
    classes = tuple(sorted({file.class_name for file in layout.files}))
    rows = _rows(files, classes, layout.missing, config)
    problems = [*layout.problems, *bad, *conflicts, *leaks, *_duplicates(rows)]
    problems += _check_counts(rows, classes, layout, problems, config)
    kinds = get_args(ProblemKind)
    return Manifest(
        root=root,
        classes=classes,
        rows=rows,
        problems=tuple(sorted(problems, key=lambda problem: (kinds.index(problem.kind), problem.path))),
        digest=_manifest_digest(classes, rows),
        layout=layout.text,
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
    if not root.exists():
        raise DataError(f"There is no folder {root}.")
    if not root.is_dir():
        raise DataError(f"{root} is a file: give the folder that holds one subfolder of images per class.")
    if not _children(root):
        raise DataError(f"The folder {root} is empty: put one subfolder of images per class into it.")
    given = _split_folders(root)
    folders: dict[Split, Path] = given or {"train": root}
    problems = list(_strays(root, root, config, beside=given)) if given else []
    files: list[_File] = []
    trained: set[str] = set()
    for split in sorted(folders, key=_HELD_OUT.__getitem__):  # training first: it says which classes there are
        problems += _strays(folders[split], root, config)
        by_class = _classes_below(folders[split], root, problems)
        if split == "train":
            trained = set(by_class)
        for name, paths in by_class.items():
            if name in trained:
                files += [_File(path, name, split) for path in paths]
            else:
                reason = f"{given['train'].name}/ has no image of this class: {_images(len(paths))} left out"
                problems.append(Problem(f"{_relative(folders[split], root)}/{name}", reason, "class"))
    if len(trained) < 2:
        raise DataError(_too_few_classes(root, folders["train"], trained))
    missing = frozenset(split for split in _SPLITS if split not in folders)
    return _Layout(files, problems, given, missing, _describe(given, missing, config))


def _classes_below(folder: Path, root: Path, problems: list[Problem]) -> dict[str, list[str]]:
    """Relative paths of the images of each class that has any."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for class_folder in _folders(folder):
        found = list(_images_below(class_folder, root, {_identity(root), _identity(folder)}, problems))
        if found:
            # macOS writes "é" as two characters and others as one; a class must be the same class on both.
            by_class[unicodedata.normalize("NFC", class_folder.name)] += found
        else:
            problems.append(Problem(_relative(class_folder, root), "a class folder without images", "class"))
    return by_class


def _split_folders(root: Path) -> dict[Split, Path]:
    """The folders train, validation and test, by any of their names, or nothing where the classes are at the top."""
    top = _folders(root)
    holding: dict[Split, list[Path]] = defaultdict(list)
    for folder in top:
        split = _SPLIT_NAMES.get(folder.name.lower())
        if split is not None and _folders(folder):
            holding[split].append(folder)
    if holding["train"]:
        for split, folders in holding.items():
            if len(folders) > 1:
                names = " and ".join(f"{folder.name}/" for folder in folders)
                raise DataError(f"{root} holds both {names}, which mean the same ({split}): keep one of them.")
        return {split: folders[0] for split, folders in holding.items() if folders}
    held_out = [folder for folders in holding.values() for folder in folders]
    others = [folder.name for folder in top if folder.name.lower() not in _SPLIT_NAMES]
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
                split = _SPLIT_NAMES.get(child.name.lower())
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
    fractions = {"validation": config.validation_fraction, "test": config.test_fraction}
    taken = " and ".join(f"{split} ({fractions[split]:.0%})" for split in ("validation", "test") if split in missing)
    if not given:
        return f"one folder per class; {taken} split off by content"
    folders = ", ".join(f"{given[split].name}/" for split in _SPLITS if split in given)
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


def content_digest(data: bytes) -> str:
    """First 32 hex digits of the SHA-256 of a file's bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def _check_bad(bad: list[Problem], total: int, limit: float) -> None:
    if len(bad) > limit * total:
        raise DataError(
            f"{len(bad)} of {_images(total)} cannot be decoded ({len(bad) / total:.1%}), more than "
            f"data.max_bad_fraction={limit:g} allows:\n{_listed([f'{p.path}: {p.reason}' for p in bad])}\n"
            f"Repair or remove them, or go on without them: --set data.max_bad_fraction={_above(len(bad) / total)}"
        )


def _above(fraction: float) -> str:
    return f"{min(1.0, math.ceil(fraction * 100) / 100):g}"


def _listed(lines: list[str]) -> str:
    more = [f"and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
    return "\n".join(f"  {printable(line)}" for line in lines[:_NAMED] + more)


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


# ------------------------------------------------------------------------------------- groups, conflicts and leaks


def _with_groups(files: list[_File], config: "DataConfig", root: Path) -> list[_File]:
    """The files with their groups and with the keys that decide their side."""
    if config.group_pattern is not None:
        groups = _groups_by_pattern(files, config.group_pattern)
    elif config.group_column is not None:
        groups = _groups_by_column(files, config.group_column, root / _METADATA)
    else:
        groups = [None] * len(files)
    joined = keys([file.digest for file in files], groups)
    return [replace(f, group=group, key=key) for f, group, key in zip(files, groups, joined, strict=True)]


def _groups_by_pattern(files: list[_File], pattern: str) -> list[str | None]:
    """The first capture group of the match, or the whole match; a file without a match is a group of its own."""
    compiled = re.compile(pattern)
    matches = [compiled.search(file.path) for file in files]
    if files and not any(matches):
        raise DataError(
            f"data.group_pattern={pattern!r} matches none of {_images(len(files))}, for example {files[0].path!r}. "
            "It is searched in the path relative to the data folder."
        )
    return [(match[1] if compiled.groups and match[1] else match[0]) or None if match else None for match in matches]


def _groups_by_column(files: list[_File], column: str, table: Path) -> list[str | None]:
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
    named: dict[str, str] = {}
    for name, group in records:
        path = name.strip().replace("\\", "/").removeprefix("./")
        if named.setdefault(path, group.strip()) != group.strip():
            raise DataError(f"{table} puts {path!r} into two groups: {named[path]!r} and {group.strip()!r}.")
    without = [file.path for file in files if file.path not in named]
    if without:
        raise DataError(
            f"{table} has no row for {_images(len(without))} (file_name must be relative to {table.parent}):\n"
            f"{_listed(without)}"
        )
    return [named[file.path] or None for file in files]


def _without_conflicts(files: list[_File]) -> tuple[list[_File], list[Problem]]:
    """Leave out every copy of an image that lies under two classes: whichever is right, one of them is wrong."""
    by_digest = _by(files, lambda file: file.digest)
    kept, problems = [], []
    for file in files:
        other = next((copy for copy in by_digest[file.digest] if copy.class_name != file.class_name), None)
        if other is None:
            kept.append(file)
        else:
            problems.append(Problem(file.path, f"the same image as {other.path}, under another class", "conflict"))
    return kept, problems


def _without_leaks(files: list[_File]) -> tuple[list[_File], list[Problem]]:
    """Leave out what lies, by its content or its group, in a split folder that is held out more.

    Taking it from the training side keeps the test split what it was, so that results stay comparable.
    """
    by_key = _by(files, lambda file: file.key)
    kept, problems = [], []
    for file in files:
        side = max((relative.given for relative in by_key[file.key]), key=_HELD_OUT.__getitem__)
        if side == file.given:
            kept.append(file)
            continue
        held_out = [relative for relative in by_key[file.key] if relative.given == side]
        same_image = next((relative for relative in held_out if relative.digest == file.digest), None)
        same_group = next((relative for relative in held_out if relative.group == file.group is not None), None)
        if same_image is not None:
            reason = f"the same image as {same_image.path} in the {side} split"
        elif same_group is not None:
            reason = f"its group {file.group!r} is also in the {side} split ({same_group.path})"
        else:
            reason = f"copies tie its group to {held_out[0].path} in the {side} split"
        problems.append(Problem(file.path, reason, "leak"))
    return kept, problems


def _by(files: list[_File], value: Callable[[_File], str]) -> dict[str, list[_File]]:
    result: dict[str, list[_File]] = defaultdict(list)
    for file in files:
        result[value(file)].append(file)
    return result


# --------------------------------------------------------------------------------------------- rows and their digest


def _rows(
    files: list[_File], classes: tuple[str, ...], missing: frozenset[Split], config: "DataConfig"
) -> tuple[Row, ...]:
    def split_of(file: _File) -> Split:
        if file.given != "train":
            return file.given
        return assign(
            file.key,
            validation_fraction=config.validation_fraction if "validation" in missing else 0.0,
            test_fraction=config.test_fraction if "test" in missing else 0.0,
        )

    label = {name: index for index, name in enumerate(classes)}
    rows = [Row(f.path, label[f.class_name], split_of(f), f.digest, f.group) for f in files]
    return tuple(sorted(rows, key=lambda row: (row.split, classes[row.label], row.digest, row.path)))


def _duplicates(rows: tuple[Row, ...]) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for row in rows:  # copies are neighbours, sorted by path
        if first.setdefault(row.digest, row.path) != row.path:
            yield Problem(row.path, f"the same image as {first[row.digest]}", "duplicate")


def _manifest_digest(classes: tuple[str, ...], rows: tuple[Row, ...]) -> str:
    """What is trained on: classes, and the content, class and split of every image; names of files are not."""
    content = [list(classes), sorted([row.split, classes[row.label], row.digest] for row in rows)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _check_counts(
    rows: tuple[Row, ...], classes: tuple[str, ...], layout: _Layout, problems: list[Problem], config: "DataConfig"
) -> list[Problem]:
    """Refuse an empty split and a class without training images; warn of a class that a held-out split lacks."""
    by_class = Counter((classes[row.label], row.split) for row in rows)
    fractions: dict[Split, float] = {"validation": config.validation_fraction, "test": config.test_fraction}
    for split, fraction in fractions.items():
        if any(row.split == split for row in rows):
            continue
        if split in layout.given:
            folder = layout.given[split].name
            raise DataError(
                f"{folder}/ holds no usable image of a class that is trained on. Add images to it, or remove it to "
                f"have a {split} split taken from the training images." + _left_out(problems, folder)
            )
        units = len({row.group or row.digest for row in rows})
        raise DataError(
            f"No image fell into the {split} split at data.{split}_fraction={fraction:g}: there are only "
            f"{_images(len(rows))}, in {units:,} group{'' if units == 1 else 's'} that must stay together. Add images, "
            f"or raise the share: --set data.{split}_fraction={min(0.4, 2 * fraction):g}"
        )
    untrained = [name for name in classes if not by_class[name, "train"]]
    if untrained:
        held_out = [sum(by_class[name, split] for split in _SPLITS) for name in untrained]
        names = ", ".join(
            f"{name} ({_images(count)} held out)" for name, count in zip(untrained, held_out, strict=True)
        )
        raise DataError(
            f"These classes have no usable image to train on: {names}. Add images to their folders, or remove the "
            "folders." + _left_out(problems, *untrained)
        )
    return [
        Problem(name, f"no image of this class in the {split} split: nothing is known about it there", "class")
        for name in classes
        for split in fractions
        if not by_class[name, split]
    ]


def _left_out(problems: list[Problem], *folders: str) -> str:
    """The files in these folders that were left out, for an error that says that nothing is left."""
    kinds = ("bad", "conflict", "leak", "class")
    found = [p for p in problems if p.kind in kinds and set(folders) & set(p.path.split("/"))]
    return f" Left out were:\n{_listed([f'{p.path}: {p.reason}' for p in found])}" if found else ""
