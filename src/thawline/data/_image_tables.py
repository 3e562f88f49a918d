"""Tables with images and their labels, and the files that they name."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from thawline.data._columns import USUAL, Guess, Role, looks_like_texts, split_of
from thawline.data._files import as_text
from thawline.data._folders import Layout, describe_splits
from thawline.data._image_index import ImageIndex, plain
from thawline.data._labels import LabelColumn, check_classes, wrong_label
from thawline.data._listing import children, folders, is_folder, relative
from thawline.data._naming import split_name, split_names, without_shard, words
from thawline.data._sources import known_names
from thawline.data._table_files import TABLE_SUFFIXES, table_stem, tables_among
from thawline.data._tables import BadCell, Cell, Table, read_table
from thawline.data.contract import SPLITS, Item, Problem, counted, group_name, listed
from thawline.data.images import EXTENSIONS
from thawline.data.splits import Split
from thawline.exceptions import DataError

if TYPE_CHECKING:  # the processes that decode import this package and need no pydantic
    from thawline.config import DataConfig

__all__ = ["ImageTable", "contradicted", "image_tables_in", "names_images", "table_layout"]

_HEAD = 200  # rows for recognising a table
_DEPTH = 3  # maximum depth of folders searched for metadata


@dataclass(frozen=True)
class ImageTable:
    """A table, and the place of its images."""

    path: Path
    split: Split | None
    """The split of the whole table."""
    base: Path
    """Folder to which its paths are relative, or which contains its images at any depth."""


def names_images(path: Path, config: "DataConfig") -> bool:
    """Whether a table names image files, judged by its first rows.

    Raises:
        DataError: if it cannot be read, or has both texts and existing images.
    """
    if config.text_column is not None:
        return False
    return _image_column(ImageTable(path, None, _base(path.parent, config)), config) is not None


def image_tables_in(root: Path, config: "DataConfig") -> list[ImageTable]:
    """The tables of a folder with labels of its images: ``metadata.csv`` at any level, or else ``train.csv`` and so on.

    Raises:
        DataError: if there are several candidates.
    """
    metadata = _metadata_below(root, root, _DEPTH)
    if metadata:
        return [table for table in metadata if _image_column(table, config) is not None]
    base = _base(root, config)
    tables = tables_among([child for child in children(root) if not is_folder(child)])
    named = [
        ImageTable(path, None, base) for path in tables if not {"submission", "sample"} & set(words(table_stem(path)))
    ]
    naming = [table for table in named if _image_column(table, config) is not None]
    if len(naming) < 2:
        return naming
    splits = {
        stem: split
        for split, stems in split_names({without_shard(table_stem(table.path)) for table in naming}).items()
        for stem in stems
    }
    if "train" not in splits.values():
        names = ", ".join(table.path.name for table in naming)
        raise DataError(f"{root} contains the tables {names}, which all name images. Give one of them as the data.")
    return [
        ImageTable(table.path, splits[without_shard(table_stem(table.path))], base)
        for table in naming
        if without_shard(table_stem(table.path)) in splits
    ]


def table_layout(tables: Sequence[ImageTable], root: Path, config: "DataConfig") -> Layout:
    """The images named by tables, with their labels, splits and groups.

    Args:
        tables: the training table, or all tables, of one data set.
        root: folder for relative paths.
        config: columns that are not set are found by name, or else by content.

    Raises:
        DataError: if a column cannot be determined, or too many images are missing.
    """
    read = [(table, read_table(table.path, names=_known(config))) for table in tables]
    read, columns, how, unlabelled = _columns(read, root, config)
    labels = LabelColumn(cell for _, table in read for cell in table.column(columns["label"]))
    indices = {base: ImageIndex(base) for base in {table.base for table, _ in read}}
    rows = _Rows(root, columns, labels)
    for table, content in read:
        rows.add(table, content, indices[table.base], whole=len(read) == 1)
    _check_found(rows, indices, config)
    trained = {item.class_name for item in rows.items if item.given == "train"}
    check_classes(trained, len(rows.items), column=columns["label"], of="images", where=str(root), how=how)
    given = _given(read, columns, rows.items)
    missing = frozenset(split for split in SPLITS if split not in given and split != "train")
    left_out = [*unlabelled, *_untrained(rows.items, trained, given), *rows.unnamed(indices)]
    names = ", ".join(table.path.name for table, _ in read)
    notes = [*dict.fromkeys(content.note for _, content in read if content.note), how]
    what = f"table of images {names}; {'; '.join(notes)}"
    if len(read) > 1:
        what += f"; splits {', '.join(given[split] for split in SPLITS if split in given)}"
    return Layout(
        root=root,
        files=[item for item in rows.items if item.class_name in trained],
        problems=[*rows.problems, *left_out],
        given=given,
        missing=missing,
        text=describe_splits(what, {}, missing, config),
        grouped=config.group_column is not None,
    )


def contradicted(layout: Layout) -> list[Problem]:
    """A problem for each table beside class folders that gives images of one folder several labels.

    The folders are used, but they may be mere parts of a download.
    """
    classes = {item.path.rpartition("/")[2]: item.class_name for item in layout.files}
    problems = []
    for path in tables_among(children(layout.root)):
        try:
            head = read_table(path, names=set(USUAL["image"]) | set(USUAL["label"]), limit=_HEAD)
        except DataError:  # the table was not given explicitly
            continue
        label = next((name for name in head.columns if name.strip().casefold() in USUAL["label"]), None)
        image = next((name for name in head.columns if _mostly(_names_a_file, head.column(name))), None)
        if label is None or image is None:
            continue
        labels: dict[str, set[Cell]] = defaultdict(set)
        for file, cell in zip(head.column(image), head.column(label), strict=True):
            if isinstance(file, str) and (name := plain(file).rpartition("/")[2]) in classes:
                labels[classes[name]].add(cell)
        if any(len(given) > 1 for given in labels.values()):
            reason = (
                f"its column {label} has several labels for images of one class folder: give it as the data to train on"
            )
            problems.append(Problem(path.name, f"{reason} those", "class"))
    return problems


# ------------------------------------------------------------------------------------------------------ which columns


def _base(folder: Path, config: "DataConfig") -> Path:
    return folder if config.image_folder is None else config.image_folder.expanduser().absolute()


def _known(config: "DataConfig") -> set[str]:
    given = (config.image_column, config.label_column, config.split_column, config.group_column)
    return known_names(*given) | set(USUAL["image"])


def _image_column(table: ImageTable, config: "DataConfig") -> str | None:
    """The column of a table with names of images, if any."""
    head = read_table(table.path, names=_known(config), limit=_HEAD)
    if config.image_column is not None:
        return config.image_column
    usual = sorted(
        (name for name in head.columns if name.strip().casefold() in USUAL["image"]),
        key=lambda name: USUAL["image"].index(name.strip().casefold()),
    )
    by_extension = [name for name in head.columns if _mostly(_names_a_file, head.column(name))]
    index = ImageIndex(table.base)
    if by_extension:
        column = next((name for name in usual if name in by_extension), by_extension[0])
        texts = [name for name in head.columns if _is_text(name) and name not in by_extension]
        if not texts:
            return column
        if _mostly(lambda cell: bool(index.find(cell, None)), head.column(column)):
            raise DataError(
                f"{table.path} has texts in column {texts[0]} and names of images in column {column}. Choose which to "
                f"classify: --set data.text_column={texts[0]} or --set data.image_column={column}"
            )
        return None
    if any(_is_text(name) or looks_like_texts(head.column(name)) for name in head.columns):
        return None
    try:
        return next((name for name in usual if _mostly(lambda c: bool(index.find(c, None)), head.column(name))), None)
    except DataError:  # an unreadable folder beside a table of texts is irrelevant
        return None


def _is_text(name: str) -> bool:
    return name.strip().casefold() in USUAL["text"]


def _names_a_file(cell: str) -> bool:
    return PurePosixPath(cell.strip().replace("\\", "/").lower()).suffix in EXTENSIONS and "://" not in cell


def _mostly(holds: Callable[[str], bool], cells: Sequence[Cell]) -> bool:
    given = [cell for cell in cells if isinstance(cell, str)]
    return bool(given) and sum(map(holds, given)) > len(given) / 2


def _columns(
    read: list[tuple[ImageTable, Table]], root: Path, config: "DataConfig"
) -> tuple[list[tuple[ImageTable, Table]], dict[Role, str], str, list[Problem]]:
    """The tables with labels, the column of each role, how they were found, and problems of other tables."""
    given: dict[Role, str | None] = {
        "image": _image_column(read[0][0], config),
        "label": config.label_column,
        "split": config.split_column,
        "group": config.group_column,
    }
    trains = [pair for pair in read if pair[0].split in (None, "train")] or read
    roles: tuple[Role, ...] = ("image", "label", "split", "group") if len(read) == 1 else ("image", "label", "group")
    name = trains[0][0].path.name
    columns, _ = Guess(name, [table for _, table in trains], given, roles).columns()
    labelled = [pair for pair in read if columns["label"] in pair[1].columns]
    problems = [
        Problem(_path_from(table.path, root), f"it has no column {columns['label']}: skipped", "stray")
        for table, content in read
        if columns["label"] not in content.columns
    ]
    if len(labelled) == 1:
        roles = ("image", "label", "split", "group")
    chosen, how = Guess(name, [table for _, table in labelled], given, roles).columns()
    return labelled, chosen, how, problems


def _path_from(path: Path, root: Path) -> str:
    """A path for messages, relative to the data if it is inside."""
    return relative(path, root) if path.is_relative_to(root) else path.as_posix()


class _Rows:
    """The images named by the rows of the tables."""

    def __init__(self, root: Path, columns: dict[Role, str], labels: LabelColumn) -> None:
        self._root, self._columns, self._labels = root, columns, labels
        self._named: dict[str, tuple[str, str]] = {}
        self._twice: set[str] = set()
        self._items: list[Item] = []
        self.problems: list[Problem] = []
        self.lost: list[str] = []
        """Rows whose image is missing."""
        self.total = 0

    @property
    def items(self) -> list[Item]:
        """The images whose rows all agree."""
        return [item for item in self._items if item.path not in self._twice]

    def add(self, table: ImageTable, content: Table, index: ImageIndex, *, whole: bool) -> None:
        """Read all rows of a table; ``whole``: whether it is the only one, so that a column may give the split."""
        name = _path_from(table.path, self._root)
        hint = without_shard(table_stem(table.path))
        self.problems += [Problem(f"{name}:{line}", f"the line {why}", "bad") for line, why in content.malformed]
        absent: list[Cell] = [None] * len(content.records)
        cells = [
            content.column(self._columns[role]) if role in self._columns else absent
            for role in ("image", "label", "split", "group")
        ]
        self.total += len(content.records) + len(content.malformed)
        for record, image, label, split, group in zip(content.records, *cells, strict=True):
            place = f"{name}:{record.line}"
            side = split_of(split) if whole and "split" in self._columns else table.split or "train"
            reason = wrong_label(label) or _wrong("image", image) or _wrong("group", group)
            if not reason and side is None:
                reason = f"the split is {split!r}, not one of {', '.join(SPLITS)}" if split else "the split is missing"
            if reason or side is None:
                self.problems.append(Problem(place, reason, "bad"))
                continue
            found = index.find(str(image), hint)
            if len(found) != 1:
                self._lose(place, str(image), found)
                continue
            path = _path_from(index.base / found[0], self._root)
            named = group_name(group) if isinstance(group, str) else None
            self._keep(place, Item(path, as_text(self._labels.name(label)), side, group=named))

    def _lose(self, place: str, image: str, found: list[str]) -> None:
        why = f"may be any of {', '.join(found[:3])}" if found else "does not exist"
        self.problems.append(Problem(place, f"the image {image} {why}", "bad"))
        self.lost.append(f"{place}: {image} {why}")

    def _keep(self, place: str, item: Item) -> None:
        label, first = self._named.setdefault(item.path, (item.class_name, place))
        if first == place:
            self._items.append(item)
        elif label == item.class_name:
            self.problems.append(Problem(place, f"it repeats {item.path} of {first}", "stray"))
        else:
            self._twice.add(item.path)
            reason = f"{place} labels it {item.class_name}, {first} {label}: one label is required"
            self.problems.append(Problem(item.path, reason, "conflict"))

    def unnamed(self, indices: dict[Path, ImageIndex]) -> list[Problem]:
        """Number of images that no row names, by folder."""
        counts: dict[str, int] = defaultdict(int)
        for base, index in indices.items():
            for path in index.files.values():
                whole = _path_from(base / path, self._root)
                if whole not in self._named:
                    counts[whole.rpartition("/")[0] or "."] += 1
        return [
            Problem(folder, f"{counted(count, 'image')} not in any row", "stray") for folder, count in counts.items()
        ]


def _wrong(what: str, cell: Cell) -> str:
    if isinstance(cell, BadCell):
        return f"the {what} {cell.reason}"
    return f"the {what} is missing" if what == "image" and not (cell or "").strip() else ""


def _check_found(rows: _Rows, indices: dict[Path, ImageIndex], config: "DataConfig") -> None:
    if len(rows.lost) > config.max_bad_fraction * rows.total:
        where = ", ".join(str(base) for base in indices)
        raise DataError(
            f"{len(rows.lost):,} of {counted(rows.total, 'row')} name no image file in {where}:\n"
            f"{listed(rows.lost)}\nSet the folder of the images: --set data.image_folder=FOLDER"
        )


def _given(
    read: Sequence[tuple[ImageTable, Table]], columns: dict[Role, str], items: Sequence[Item]
) -> dict[Split, str]:
    if len(read) > 1:
        return {table.split: table.path.name for table, _ in read if table.split is not None}
    if "split" not in columns:
        return {}
    there = {item.given for item in items}
    return {split: f"the split {split} of column {columns['split']}" for split in SPLITS if split in there}


def _untrained(items: Sequence[Item], trained: set[str], given: dict[Split, str]) -> list[Problem]:
    counts: dict[tuple[Split, str], int] = defaultdict(int)
    for item in items:
        if item.class_name not in trained:
            counts[item.given, item.class_name] += 1
    return [
        Problem(
            f"{given[split]}: {name}", f"no image of this class to train on, {counted(n, 'image')} skipped", "class"
        )
        for (split, name), n in counts.items()
    ]


# ----------------------------------------------------------------------------------------------------------- metadata


def _metadata_below(folder: Path, root: Path, depth: int) -> list[ImageTable]:
    """``metadata.csv``, ``.jsonl`` or ``.parquet`` as in Hugging Face's image folders, each with its split."""
    own = [folder / f"metadata{suffix}" for suffix in TABLE_SUFFIXES if (folder / f"metadata{suffix}").is_file()]
    if own:
        parts = [name.split for part in folder.relative_to(root).parts if (name := split_name(part)) is not None]
        return [ImageTable(own[0], parts[0] if parts else None, folder)]
    if depth == 0:
        return []
    return [table for inner in folders(folder) for table in _metadata_below(inner, root, depth - 1)]
