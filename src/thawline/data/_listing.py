"""List a folder of images, without reading files."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from thawline.data import images
from thawline.data._files import as_text
from thawline.data._naming import is_junk
from thawline.data.contract import Problem
from thawline.data.remote import MIRROR_STATE
from thawline.exceptions import DataError

__all__ = ["by_extension", "children", "class_name", "classes_below", "folders", "images_below", "is_image", "relative"]

HIDDEN = "hidden, or created by a system or program"

_HEIC = {".heic", ".heics", ".heif", ".heifs", ".hif"}
_UNREAD = {".svg", ".psd", ".eps", ".pdf", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".jxl"}


def children(folder: Path) -> list[Path]:
    """The entries of a folder, sorted by name.

    Raises:
        DataError: if the folder cannot be read.
    """
    try:
        return sorted((c for c in folder.iterdir() if c.name != MIRROR_STATE), key=lambda child: child.name)
    except OSError as error:
        raise DataError(f"Cannot read the folder {folder}: {error.strerror}.") from None


def folders(folder: Path) -> list[Path]:
    """The subfolders of a folder, without those of systems and programs."""
    return [child for child in children(folder) if not is_junk(child) and is_folder(child)]


def is_folder(path: Path) -> bool:
    """Whether it is a folder, or a link to one.

    Raises:
        DataError: if permission is missing: a folder without execute permission only lists names.
    """
    try:
        return path.is_dir()
    except OSError as error:
        raise DataError(
            f"Cannot access {path}: {error.strerror}. Folders need execute permission: chmod -R u+X {path.parent}"
        ) from None


def is_image(path: Path) -> bool:
    """Whether it is an image by its extension."""
    return path.suffix.lower() in images.EXTENSIONS


def by_extension(file: Path) -> str:
    """Why a file is not read."""
    if file.suffix.lower() in _HEIC:
        return f"{file.suffix} requires pillow-heif: pip install 'thawline[heic]', or convert it to JPEG"
    if file.suffix.lower() in _UNREAD:
        return f"{file.suffix} is not supported: convert it to JPEG or PNG"
    return "not an image by its extension"


def class_name(folder: Path) -> str:
    """Name of the folder in normal form: macOS stores "é" as two characters and others as one, for the same class."""
    return as_text(unicodedata.normalize("NFC", folder.name))


def classes_below(folder: Path, root: Path, problems: list[Problem]) -> dict[str, list[str]]:
    """Image paths relative to ``root`` of each non-empty class folder in ``folder``."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for class_folder in folders(folder):
        found = list(images_below(class_folder, root, {identity(root), identity(folder)}, problems))
        if found:
            by_class[class_name(class_folder)] += found
        else:
            problems.append(Problem(relative(class_folder, root), "a class folder without images", "class"))
    return by_class


def images_below(folder: Path, root: Path, seen: set[tuple[int, int]], problems: list[Problem]) -> Iterator[str]:
    """Relative paths of all images in a folder at any depth; follows links, but not loops."""
    here = identity(folder)
    if here in seen:
        problems.append(Problem(relative(folder, root), "a link to a folder that is already read", "stray"))
        return
    seen.add(here)
    for child in children(folder):
        path = relative(child, root)
        if is_junk(child):
            problems.append(Problem(path, HIDDEN, "stray"))
        elif is_folder(child):
            yield from images_below(child, root, seen, problems)
        elif not is_image(child):
            problems.append(Problem(path, by_extension(child), "stray"))
        elif child.exists() and not child.is_file():  # reading a named pipe would wait forever
            problems.append(Problem(path, "neither a file nor a folder", "stray"))
        else:
            yield path


def identity(folder: Path) -> tuple[int, int]:
    """Identifies a folder, independent of links."""
    try:
        status = folder.stat()
    except OSError as error:
        raise DataError(f"Cannot access {folder}: {error.strerror}.") from None
    return status.st_dev, status.st_ino


def relative(path: Path, root: Path) -> str:
    """A relative path, with ``/`` on every system."""
    return path.relative_to(root).as_posix()
