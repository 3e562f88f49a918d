"""Images with the class in the file name: ``cat.0.jpg``."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from thawline.data._files import as_text, printable
from thawline.data._folders import Layout, NoClassesError, describe_splits
from thawline.data._listing import children, folders, images_below, is_image, relative
from thawline.data._naming import split_names
from thawline.data.contract import HELD_OUT, SPLITS, Item, Problem, counted, listed
from thawline.data.splits import Split
from thawline.exceptions import DataError

if TYPE_CHECKING:  # decoding processes import this package and do not need pydantic
    from thawline.config import DataConfig

__all__ = ["class_in_name", "file_name_layout", "pattern_for"]

_NUMBERED = r"^(\D+?)[._ -]*\d+\.\w+$"
"""Names numbered within their class: ``cat.0.jpg``, ``Maine_Coon_12.jpg``."""


def file_name_layout(root: Path, pattern: str, config: "DataConfig") -> Layout:
    """The images of a folder, with or without split folders, whose class a pattern finds in the file name.

    A split folder without any matching name, such as a competition's unlabelled test images, is not read.

    Raises:
        DataError: if too few names match, there are fewer than two classes, or two folders are the same split.
    """
    homes = _homes(root)
    problems: list[Problem] = _beside(root, homes) if len(homes) > 1 or homes["train"] != root else []
    by_split: dict[Split, list[Item]] = {}
    unmatched: list[str] = []
    for split, home in homes.items():
        paths = list(images_below(home, root, set(), problems))
        named = [(path, class_in_name(path, pattern)) for path in paths]
        items = [Item(path, name, split) for path, name in named if name]
        if items or split == "train":
            by_split[split] = items
            unmatched += [path for path, name in named if not name]
        else:
            what = f"{counted(len(paths), 'image')} in whose names data.class_pattern finds no class: skipped"
            problems.append(Problem(relative(home, root), what, "stray"))
    _check_matched(root, pattern, by_split["train"], unmatched, sum(map(len, by_split.values())), config)
    problems += [Problem(path, "data.class_pattern finds no class in its name", "bad") for path in unmatched]
    trained = {item.class_name for item in by_split["train"]}
    given: dict[Split, str] = {}
    if len(by_split) > 1:
        given = {split: f"{relative(homes[split], root)}/" for split in SPLITS if split in by_split}
    problems += _untrained(by_split, trained, given)
    missing = frozenset(split for split in SPLITS if split not in by_split)
    what = f"class in the file name, by data.class_pattern={printable(pattern)}"
    if given:
        what += f"; split folders {', '.join(given.values())}"
    elif homes["train"] != root:
        what += f"; only {relative(homes['train'], root)}/"
    files = [item for items in by_split.values() for item in items if item.class_name in trained]
    return Layout(root, files, problems, given, missing, describe_splits(what, given, missing, config))


def class_in_name(path: str, pattern: str) -> str:
    """The class that a pattern finds in the name of a file, its first group if it has one; empty if there is none."""
    name = unicodedata.normalize("NFC", path.rpartition("/")[2])
    match = re.search(unicodedata.normalize("NFC", pattern), name)
    if match is None:
        return ""
    return as_text((match[1] if match.re.groups else match[0]) or "").strip()


def pattern_for(paths: Sequence[str]) -> str:
    """A hint for images without class folders whose names are numbered within a few words; else empty.

    Args:
        paths: paths of the images.
    """
    classes = Counter(class_in_name(path, _NUMBERED) for path in paths)
    unmatched = classes.pop("", 0)
    if unmatched > len(paths) / 20 or not 1 < len(classes) <= len(paths) / 3:
        return ""
    shown = ", ".join(f"{printable(name)} ({count})" for name, count in classes.most_common(3))
    more = ", …" if len(classes) > 3 else ""
    return f" If the classes are in the file names, {shown}{more}: --set data.class_pattern='{_NUMBERED}'"


def _homes(root: Path) -> dict[Split, Path]:
    """The split folders by any of their names, training first; the folder itself if there are none."""
    top = {folder.name: folder for folder in folders(root)}
    named = split_names(top)
    if "train" not in named:
        # A folder with a single subfolder, as from an archive.
        if len(top) == 1 and not any(map(is_image, children(root))):
            return _homes(next(iter(top.values())))
        return {"train": root}
    for split, names in named.items():
        if len(names) > 1:
            same = " and ".join(f"{name}/" for name in names)
            raise DataError(f"{root} has both {same}, which are the same split ({split}): keep one of them.")
    return {split: top[named[split][0]] for split in sorted(named, key=HELD_OUT.__getitem__)}


def _beside(root: Path, homes: dict[Split, Path]) -> list[Problem]:
    """Images beside the split folders."""
    above = homes["train"].parent
    strays: dict[str, int] = {}
    for child in children(above):
        if child in homes.values():
            continue
        count = len(list(images_below(child, root, set(), []))) if child in folders(above) else int(is_image(child))
        if count:
            strays[relative(child, root)] = count
    return [
        Problem(path, f"{counted(count, 'image')} outside the split folders", "stray") for path, count in strays.items()
    ]


def _check_matched(
    root: Path, pattern: str, trained: Sequence[Item], unmatched: Sequence[str], matched: int, config: "DataConfig"
) -> None:
    if len(unmatched) > config.max_bad_fraction * (matched + len(unmatched)):
        raise DataError(
            f"data.class_pattern={pattern!r} finds no class in {len(unmatched):,} of "
            f"{counted(matched + len(unmatched), 'name')} of images in {root}:\n{listed(unmatched)}\n"
            "It is applied to the file name with its extension; its first group is the class, as in "
            r"'(\w+)\.\d+\.jpg'. Change it, or skip those images: --set data.max_bad_fraction=1"
        )
    classes = sorted({item.class_name for item in trained})
    if len(classes) < 2:
        found = f"only one class ({printable(classes[0])})" if classes else "no image to train on"
        raise NoClassesError(
            f"data.class_pattern={pattern!r} finds {found} in the names of the images in {root}; a classifier needs at "
            "least two."
        )
    if len(classes) > max(2, matched / 2):
        raise DataError(
            f"data.class_pattern={pattern!r} finds {len(classes):,} classes in the names of {matched:,} images, such "
            f"as {', '.join(map(printable, classes[:3]))}: too few images of each. Its first group is the class."
        )


def _untrained(by_split: dict[Split, list[Item]], trained: set[str], given: dict[Split, str]) -> list[Problem]:
    counts: dict[tuple[Split, str], int] = defaultdict(int)
    for split, items in by_split.items():
        for item in items:
            if item.class_name not in trained:
                counts[split, item.class_name] += 1
    return [
        Problem(
            f"{given[split]}: {name}", f"no image of this class to train on, {counted(n, 'image')} skipped", "class"
        )
        for (split, name), n in counts.items()
    ]
