"""Class folders, with or without split folders above or below them."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thawline.data import images
from thawline.data._listing import (
    HIDDEN,
    by_extension,
    children,
    class_name,
    classes_below,
    folders,
    is_folder,
    is_image,
    relative,
)
from thawline.data._naming import is_junk, is_structure, split_name, split_names
from thawline.data.contract import HELD_OUT, SPLITS, Item, Problem, counted, few, split_off
from thawline.data.splits import Split
from thawline.exceptions import DataError

if TYPE_CHECKING:  # the processes that decode import this package and need no pydantic
    from thawline.config import DataConfig

__all__ = [
    "METADATA",
    "Layout",
    "NoClassesError",
    "describe_splits",
    "folder_layout",
    "labelled_in_folders",
    "split_folders",
]

METADATA = "metadata.csv"
_SHOWN = 4  # maximum number of names in an error


class NoClassesError(DataError):
    """A folder whose subfolders are not classes; a table may still label the images."""


@dataclass(frozen=True)
class Layout:
    """The images of a data set, before any is read."""

    root: Path
    """The folder to which paths are relative."""
    files: list[Item]
    problems: list[Problem]
    given: Mapping[Split, str]
    """The given splits' names, such as ``val/``; empty without given splits."""
    missing: frozenset[Split]
    """Splits that are not given, which are split off the training files by hash."""
    text: str
    """Description of the recognised layout."""
    grouped: bool = False
    """Whether the files have groups from a column of a table."""


def folder_layout(root: Path, config: "DataConfig") -> Layout:
    """The images of a folder of class folders.

    Raises:
        NoClassesError: if its folders are not classes, or may be something else; with advice.
        DataError: if a folder cannot be listed.
    """
    given = split_folders(root)
    if not given and config.class_level is None and (inner := _splits_in_classes(root)):
        return _classes_above(root, inner, config)
    homes: dict[Split, Path] = given or {"train": root}
    problems = list(_strays(root, root, config, beside=given)) if given else []
    files: list[Item] = []
    trained: dict[str, list[str]] = {}
    for split in sorted(homes, key=HELD_OUT.__getitem__):  # training first, as it defines the classes
        by_class: dict[str, list[str]] = defaultdict(list)
        for base in _bases(homes[split], config.class_level or 1):
            problems += _strays(base, root, config)
            for name, paths in classes_below(base, root, problems).items():
                by_class[name] += paths
        if split == "train":
            trained = by_class
            if config.class_level is None:
                _check_names(homes[split], given, by_class)
        for name, paths in by_class.items():
            if name in trained:
                files += [Item(path, name, split) for path in paths]
            else:
                reason = f"{given['train'].name}/ has no image of this class: {counted(len(paths), 'image')} skipped"
                problems.append(Problem(f"{relative(homes[split], root)}/{name}", reason, "class"))
    if len(trained) < 2:
        raise NoClassesError(_too_few_classes(root, homes["train"], set(trained)))
    named = {split: f"{relative(folder, root)}/" for split, folder in given.items()}
    missing = frozenset(split for split in SPLITS if split not in homes)
    what = f"split folders {', '.join(named[s] for s in SPLITS if s in named)}" if given else "one folder per class"
    if (config.class_level or 1) > 1:
        what += f" at level {config.class_level}"
    return Layout(root, files, problems, named, missing, describe_splits(what, named, missing, config))


def labelled_in_folders(root: Path, config: "DataConfig") -> list[tuple[str, str]]:
    """Relative path and class of each image of a folder for evaluation, from all its splits and of any class.

    Raises:
        DataError: if two folders are the same split, or if folders may be either splits or classes.
    """
    homes = split_folders(root, trains=False).values() or [root]
    bases = [base for home in homes for base in _bases(home, config.class_level or 1)]
    return [(path, name) for base in bases for name, paths in classes_below(base, root, []).items() for path in paths]


def split_folders(root: Path, *, trains: bool = True) -> dict[Split, Path]:
    """The folders train, validation and test, by any of their names; empty if the classes are at the top.

    Args:
        root: the data folder.
        trains: whether a training folder is required.

    Raises:
        NoClassesError: if two are the same split, or nothing is left to train on.
    """
    top = folders(root)
    by_name = {folder.name: folder for folder in top}
    holding: dict[Split, list[Path]] = {}
    for split, names in split_names(by_name).items():
        if found := [_unwrapped(by_name[name]) for name in names if folders(by_name[name])]:
            holding[split] = found
    others = [folder.name for folder in top if split_name(folder.name) is None]
    if "train" in holding or (not trains and not others):
        for split, found in holding.items():
            if len(found) > 1:
                names_of = " and ".join(f"{relative(folder, root)}/" for folder in found)
                raise DataError(f"{root} has both {names_of}, which are the same split ({split}): keep one of them.")
        return {split: found[0] for split, found in holding.items()}
    held_out = [folder for found in holding.values() for folder in found]
    if held_out and (not others or any(inner.name in others for folder in held_out for inner in folders(folder))):
        names_of = " and ".join(f"{relative(folder, root)}/" for folder in held_out)
        raise NoClassesError(
            f"{root} contains {names_of} with class folders, but no train/ with class folders. Put the training "
            "images under train/<class>/, or the class folders directly into the data folder to create all splits."
        )
    # A folder with a single subfolder, as from an archive: use that one's splits.
    if not held_out and len(top) == 1 and not any(is_image(child) for child in children(root)):
        return split_folders(top[0], trains=trains)
    return {}


def describe_splits(what: str, given: Mapping[Split, str], missing: frozenset[Split], config: "DataConfig") -> str:
    """A description of the layout and the origin of each split."""
    taken = split_off(missing, config)
    if not taken:
        return what
    return f"{what}; {taken} split off {given['train'] + ' ' if 'train' in given else ''}by content"


def _unwrapped(folder: Path) -> Path:
    """The inner folder of ``seg_train/seg_train/<class>`` or ``train/images/<class>``, whose name is not a class."""
    inner = folders(folder)
    if len(inner) == 1 and is_structure(inner[0].name) | (inner[0].name == folder.name) and len(folders(inner[0])) > 1:
        return _unwrapped(inner[0])
    return folder


def _bases(folder: Path, level: int) -> list[Path]:
    """The folders that contain class folders."""
    found = [folder]
    for _ in range(level - 1):
        found = [inner for each in found for inner in folders(each)]
    return found


def _splits_in_classes(root: Path) -> dict[str, dict[Split, Path]]:
    """``<class>/train`` and ``<class>/test``: the split folders in each class folder; empty if one has none."""
    found: dict[str, dict[Split, Path]] = {}
    for folder in folders(root):
        inner = {child.name: child for child in folders(folder)}
        names = split_names(inner)
        if len(names) < 2 or "train" not in names or any(len(same) > 1 for same in names.values()):
            return {}
        if len(names) < len(inner) or any(map(is_image, children(folder))) or any(map(folders, inner.values())):
            return {}
        found[class_name(folder)] = {split: inner[same[0]] for split, same in names.items()}
    return found if len(found) > 1 and not any(map(is_structure, found)) else {}


def _classes_above(root: Path, inner: Mapping[str, Mapping[Split, Path]], config: "DataConfig") -> Layout:
    problems = list(_strays(root, root, config))
    files = []
    for name, by_split in inner.items():
        for split, folder in by_split.items():
            problems += _strays(folder, root, config, images_belong=True)
            files += [Item(relative(file, root), name, split) for file in children(folder) if _is_plain_image(file)]
    there = {file.given for file in files}
    if "train" not in there:
        raise NoClassesError(f"{root} contains split folders in each class folder, but no image to train on.")
    given = {split: f"<class>/{folder.name}/" for by_split in inner.values() for split, folder in by_split.items()}
    given = {split: name for split, name in given.items() if split in there}
    missing = frozenset(split for split in SPLITS if split not in given)
    what = f"one folder per class, with split folders in each: {', '.join(given[s] for s in SPLITS if s in given)}"
    return Layout(root, files, problems, given, missing, describe_splits(what, given, missing, config))


def _is_plain_image(file: Path) -> bool:
    return not is_junk(file) and is_image(file) and not is_folder(file) and (file.is_file() or not file.exists())


def _strays(
    folder: Path,
    root: Path,
    config: "DataConfig",
    *,
    beside: Mapping[Split, Path] | None = None,
    images_belong: bool = False,
) -> Iterator[Problem]:
    """Other files and folders beside the class folders, or, with ``beside``, beside the split folders."""
    for child in children(folder):
        path = relative(child, root)
        if is_junk(child):
            yield Problem(path, HIDDEN, "stray")
        elif is_folder(child):
            if beside is not None and not any(inner.is_relative_to(child) for inner in beside.values()):
                split = split_name(child.name)
                reason = "a folder without class folders" if split else "not a split folder"
                yield Problem(path, f"{reason}, beside {relative(beside['train'], root)}/", "stray")
        elif is_image(child):
            if not images_belong:
                yield Problem(path, "an image outside every class folder", "stray")
        elif not (config.group_column is not None and path == METADATA):
            yield Problem(path, by_extension(child), "stray")


# ------------------------------------------------------------------------------------------------- what is no class


def _check_names(folder: Path, given: Mapping[Split, Path], by_class: Mapping[str, list[str]]) -> None:
    """Refuse subfolders that may not be classes.

    Raises:
        NoClassesError: with the folders found, and the options to clarify them.
    """
    if len(by_class) < 2:
        return
    names = sorted(by_class)
    shown = few([f"{name}/" for name in names], _SHOWN)
    is_class = "If they are the classes, --set data.class_level=1"
    or_splits = "" if given else ", or put the images under train/<class>/ and test/<class>/"
    table = f"if a table has the labels, give it as the data{or_splits}."
    if len(split_names(names)) > 1 or all(map(is_structure, names)):
        raise NoClassesError(
            f"{folder} contains {shown}, which are names of splits or image folders, not of classes, and no class "
            f"folders in them. {is_class}; {table}"
        )
    shared = _shared_subfolders(folder, by_class)
    if shared:
        raise NoClassesError(
            f"{shown} in {folder} contain the same subfolders {few(shared, _SHOWN)}: either may be the classes. "
            f"{is_class}; if their subfolders are, --set data.class_level=2; {table}"
        )


def _shared_subfolders(folder: Path, by_class: Mapping[str, list[str]]) -> list[str]:
    """Names of subfolders that recur under several classes, if they contain most of the images."""
    classes_of: dict[str, set[str]] = defaultdict(set)
    count = Counter[str]()
    for class_folder in folders(folder):
        name = class_name(class_folder)
        for inner in folders(class_folder):
            classes_of[inner.name].add(name)
    for name, paths in by_class.items():
        for path in paths:
            count.update({part for part in path.split("/")[:-1] if name in classes_of.get(part, ())})
    shared = sorted(inner for inner, classes in classes_of.items() if len(classes) > 1 and count[inner])
    total = sum(map(len, by_class.values()))
    return shared if len(shared) > 1 and sum(count[inner] for inner in shared) > total / 2 else []


def _only_folder_of_folders(folder: Path) -> Path | None:
    """The single folder at any depth that contains several folders; ``None`` if there is not exactly one."""
    below = [child for child in folders(folder) if folders(child)]
    several = [child for child in below if len(folders(child)) > 1]
    if len(several) == 1:
        return several[0]
    return _only_folder_of_folders(below[0]) if len(below) == 1 else None


def _too_few_classes(root: Path, folder: Path, classes: set[str]) -> str:
    found = f"only one class folder with images ({next(iter(classes))})" if classes else "no class folder with images"
    message = f"{folder} contains {found}; a classifier needs at least two, as in {root.name}/<class>/photo.jpg."
    meant = _only_folder_of_folders(folder)
    if meant is not None:
        message += f" Did you mean {meant}?"
    elif not classes:
        message += f" Images are recognised by extension: {', '.join(sorted(images.EXTENSIONS))}."
    return message
