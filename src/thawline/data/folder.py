"""Read an image folder into a manifest: check every file, report every problem, never mislabel silently."""

import csv
import io
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from thawline.data import images
from thawline.data._file_names import class_in_name, file_name_layout, pattern_for
from thawline.data._files import printable
from thawline.data._folders import METADATA, Layout, NoClassesError, folder_layout, labelled_in_folders
from thawline.data._image_tables import ImageTable, contradicted, image_tables_in, table_layout
from thawline.data._listing import children, images_below, relative
from thawline.data._near_duplicates import SIDE, Thumbnails, near_duplicates, thumbnail, write_thumbnail
from thawline.data._pool import map_files
from thawline.data._unpacking import unpacked
from thawline.data.contract import (
    Found,
    ImageShapes,
    Item,
    Manifest,
    Problem,
    Row,
    check_bad,
    content_digest,
    counted,
    group_name,
    listed,
)
from thawline.data.manifests import manifest_of
from thawline.exceptions import DataError

if TYPE_CHECKING:  # decoding processes import this module and do not need pydantic
    from thawline.config import DataConfig

__all__ = ["check_folder", "files_of", "given_files", "image_files", "labelled_files", "scan_folder"]

_MOST_COMPARED = 200_000
"""Maximum number of images for finding near-duplicates: each is compared with all others."""


def scan_folder(config: "DataConfig", *, on_progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Find the classes, decode every file once, and build the manifest; see :func:`thawline.data.scan`.

    Raises:
        DataError: if there is nothing to train on, too much is unreadable, or a split or a class would be empty.
    """
    layout = find_layout(config)
    root, paths = layout.root, [file.path for file in layout.files]
    compared = config.near_duplicates == "together" and len(paths) <= _MOST_COMPARED
    if config.near_duplicates == "together" and not compared:
        layout = replace(layout, text=f"{layout.text}; too many images to find near-duplicates")
    with _file_of_thumbnails(len(paths) if compared else 0) as thumbnails:
        answers = map_files(
            partial(_inspect, root=root, max_pixels=config.max_pixels, thumbnails=thumbnails),
            list(enumerate(paths)),
            workers=config.workers,
            crashed=lambda item: _Inspected("", "the decoder crashed on it"),
            on_progress=on_progress,
        )
        bad = [Problem(path, each.reason, "bad") for path, each in zip(paths, answers, strict=True) if each.reason]
        without_file = [problem for problem in layout.problems if problem.kind == "bad"]
        check_bad([*without_file, *bad], len(without_file) + len(paths), config.max_bad_fraction, "images")
        near = _near(answers, thumbnails)
    files = [replace(f, digest=each.digest) for f, each in zip(layout.files, answers, strict=True) if not each.reason]
    return manifest_of(
        Found(
            root=root,
            kind="images",
            items=files if layout.grouped else _with_groups(files, config, root),
            classes=tuple(sorted({file.class_name for file in layout.files})),
            problems=[*layout.problems, *bad],
            given=dict(layout.given),
            missing=layout.missing,
            layout=layout.text,
            shapes=ImageShapes.of([each.shape for each in answers if each.shape is not None]),
            near=near,
        ),
        config,
    )


def check_folder(config: "DataConfig") -> None:
    """Refuse a folder without classes, by listing it, without reading files.

    Raises:
        DataError: as :func:`scan` for the layout.
    """
    find_layout(config)


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, by extension, in order; skips hidden ones.

    Raises:
        DataError: if a folder cannot be read.
    """
    return [folder / path for path in images_below(folder, folder, set(), [])]


def files_of(manifest: Manifest, rows: Sequence[Row]) -> list[Path]:
    """The files of these rows, in order; reads each once to check that it is unchanged since the scan.

    Raises:
        DataError: if the manifest is one of texts, or a file is missing or changed.
    """
    if manifest.kind != "images":
        raise DataError(f"{manifest.root} is a table of texts, not a folder of images.")
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
            f"study was trained on:\n{listed(changed)}\nStart again to read the folder again."
        )
    return [manifest.root / row.path for row in rows]


def given_files(path: Path) -> list[Path]:
    """The image files of a path: itself, or all below it.

    Raises:
        DataError: if there are none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} does not exist. Give image files, or folders of images.")
    files = image_files(path)
    if not files:
        raise DataError(f"{path} contains no image files.")
    return files


def labelled_files(path: Path, config: "DataConfig") -> tuple[list[Path], list[str]]:
    """Image files of ``FOLDER/<class>/…``, or of a table, and the class of each, without reading images.

    Args:
        path: the folder, with or without split folders; the table; or an archive of either.
        config: options for class folders and columns of tables; columns that are not set are found as for training.
            Splits are ignored.

    Raises:
        DataError: if there are none, or the meaning of the folders is ambiguous.
    """
    config, _ = unpacked(config.model_copy(update={"path": path, "image_folder": None}))
    root = config.path.expanduser().absolute()
    if root.is_dir() and config.class_pattern is not None:
        return _labelled_by_name(root, config.class_pattern)
    if root.is_dir() and config.image_column is None:
        found = labelled_in_folders(root, config)
        if not found:
            level = f" (data.class_level={config.class_level})" if config.class_level is not None else ""
            raise DataError(f"{path} contains no images in class folders: expected FOLDER/<class>/…{level}.")
        return [root / file for file, _ in found], [name for _, name in found]
    if not root.exists():
        raise DataError(f"There is no folder {path}.")
    layout = find_layout(config.model_copy(update={"split_column": None, "group_column": None}))
    return [layout.root / file.path for file in layout.files], [file.class_name for file in layout.files]


def _labelled_by_name(root: Path, pattern: str) -> tuple[list[Path], list[str]]:
    files = image_files(root)
    names = [class_in_name(file.name, pattern) for file in files]
    unnamed = [relative(file, root) for file, name in zip(files, names, strict=True) if not name]
    if unnamed:
        count = counted(len(unnamed), "image")
        raise DataError(f"data.class_pattern={pattern!r} finds no class in the name of {count}:\n{listed(unnamed)}")
    if not files:
        raise DataError(f"{root} contains no image files.")
    return files, names


def find_layout(config: "DataConfig") -> Layout:
    """Find the layout and the class of each image, without reading images.

    Class folders have priority; if the folders are not classes, tables beside them are used.

    Raises:
        DataError: if neither gives the classes, or an option for tables is set without a table.
    """
    root = config.path.expanduser().absolute()
    if root.is_file() and config.class_pattern is not None:
        raise DataError(f"data.class_pattern is for a folder of images, but {root} is a table. Remove it.")
    if root.is_file():
        base = root.parent if config.image_folder is None else config.image_folder.expanduser().absolute()
        return table_layout([ImageTable(root, None, base)], base, config)
    if not children(root):
        raise DataError(f"The folder {root} is empty: put one subfolder of images per class into it.")
    try:
        layout = _layout_without_table(root, config)
    except NoClassesError as error:
        if config.class_pattern is not None:
            raise
        tables = image_tables_in(root, config)
        if not tables:
            raise NoClassesError(f"{error}{pattern_for(list(images_below(root, root, set(), [])))}") from None
        return table_layout(tables, root, config)
    of_tables = {"label_column": config.label_column, "split_column": config.split_column, "header": config.header}
    if wrong := [f"data.{key}={value}" for key, value in of_tables.items() if value is not None]:
        raise DataError(f"{', '.join(wrong)}: only for tables, but {root} is read as {layout.text}. Remove it.")
    return replace(layout, problems=[*layout.problems, *contradicted(layout)])


def _layout_without_table(root: Path, config: "DataConfig") -> Layout:
    """The layout by names of folders or files."""
    if config.class_pattern is not None:
        return file_name_layout(root, config.class_pattern, config)
    if config.image_column is not None or config.image_folder is not None:
        raise NoClassesError(f"{root} contains no table of images, although data.image_column or image_folder is set.")
    return folder_layout(root, config)


# --------------------------------------------------------------------------------------------------- reading them


@dataclass(frozen=True)
class _Inspected:
    digest: str
    reason: str
    """Why the file is bad, or an empty string."""
    shape: tuple[str, int, int] | None = None
    """Format, width and height."""
    has_thumbnail: bool = False


def _inspect(item: tuple[int, str], *, root: Path, max_pixels: int, thumbnails: Path | None) -> _Inspected:
    """Read one file, and write its thumbnail to the shared file at its number."""
    number, path = item
    try:
        data = (root / path).read_bytes()
    except (OSError, MemoryError) as error:
        return _Inspected("", f"cannot be read: {getattr(error, 'strerror', None) or error or 'out of memory'}")
    try:
        image = images.decode(data, max_pixels=max_pixels)
    except images.BadImage as error:
        return _Inspected("", str(error))
    made = b"" if thumbnails is None else thumbnail(image)
    if made and thumbnails is not None:
        write_thumbnail(made, thumbnails, number)
    return _Inspected(content_digest(data), "", (_format_of(data), *image.size), bool(made))


def _format_of(data: bytes) -> str:
    """Pillow's name of a decoded image's format, from the file header."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.format or "other"
    except Exception:  # a PNG that :func:`thawline.data.images.decode` repairs
        return "other"


@contextmanager
def _file_of_thumbnails(count: int) -> Iterator[Path | None]:
    """An empty file for this many thumbnails; ``None`` for 0. In memory, 200,000 would take 600 MB, and twice that
    during the comparison.

    Raises:
        DataError: if there is not enough space.
    """
    if not count:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="thawline-") as folder:
        path, size = Path(folder) / "thumbnails", count * SIDE * SIDE * 3
        if size > shutil.disk_usage(folder).free:
            raise DataError(
                f"Thumbnails for finding near-duplicates take {size / 1e9:.1f} GB in {path.parents[1]}, which "
                "has less. Set TMPDIR to a folder on a larger disk, or data.near_duplicates=off."
            )
        path.touch()
        yield path


def _near(answers: Sequence[_Inspected], thumbnails: Path | None) -> list[tuple[str, str]]:
    """Pairs of digests of near-duplicate images, independent of file names."""
    rows = {each.digest: number for number, each in enumerate(answers) if each.has_thumbnail}
    if thumbnails is None or not rows:
        return []
    digests = sorted(rows)
    pairs = near_duplicates(Thumbnails.in_file(thumbnails, [rows[digest] for digest in digests]))
    return [(digests[one], digests[other]) for one, other in pairs]


# ------------------------------------------------------------------------------------- their groups


def _with_groups(files: list[Item], config: "DataConfig", root: Path) -> list[Item]:
    """The files with their groups, which stay in one split."""
    if config.group_pattern is not None:
        groups = _groups_by_pattern(files, config.group_pattern)
    elif config.group_column is not None:
        groups = _groups_by_column(files, config.group_column, root / METADATA)
    else:
        groups = [None] * len(files)
    return [replace(file, group=group) for file, group in zip(files, groups, strict=True)]


def _groups_by_pattern(files: list[Item], pattern: str) -> list[str | None]:
    """Groups from the first capture group, or from the whole match; a file without a match forms its own group."""
    compiled = re.compile(unicodedata.normalize("NFC", pattern))
    matches = [compiled.search(unicodedata.normalize("NFC", file.path)) for file in files]
    groups = [
        group_name(match[1] if compiled.groups and match[1] else match[0]) if match else None for match in matches
    ]
    if files and not any(groups):
        what = "only empty text in" if any(matches) else "none of"
        raise DataError(
            f"data.group_pattern={pattern!r} matches {what} {counted(len(files), 'image')}, for example "
            f"{printable(files[0].path)!r}. It is applied to the path relative to the data folder."
        )
    return groups


def _groups_by_column(files: list[Item], column: str, table: Path) -> list[str | None]:
    """Groups from metadata.csv, as in Hugging Face's image folders; a file with an empty cell forms its own group."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            lacking = [name for name in ("file_name", column) if name not in columns]
            if lacking:
                raise DataError(
                    f"{table} has no column {' and no column '.join(map(repr, lacking))}; it has: "
                    f"{', '.join(columns) or 'none'}. data.group_column needs file_name (relative to {table.parent}) "
                    "and that column."
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
            raise DataError(f"{table} assigns {path!r} to two groups: {named[path] or ''!r} and {group or ''!r}.")
    paths = [unicodedata.normalize("NFC", file.path) for file in files]
    without = [path for path in paths if path not in named]
    if without:
        raise DataError(
            f"{table} has no row for {counted(len(without), 'image')} (file_name must be relative to {table.parent}):\n"
            f"{listed(without)}"
        )
    return [named[path] for path in paths]
