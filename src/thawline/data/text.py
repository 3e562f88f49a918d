"""Read tables of labelled texts into a manifest, with the same contract as for images."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from thawline.data._columns import NAME_OF_A_COLUMN, ON_COMMAND_LINE, Guess, Role, split_of
from thawline.data._labels import LabelColumn, check_classes, wrong_label
from thawline.data._naming import ARCHIVE_SUFFIXES
from thawline.data._sources import NamedTable, Source, file_of, known_names, read_source, tables_in
from thawline.data._table_files import TABLE_SUFFIXES, is_table_file
from thawline.data._tables import BadCell, Cell, Table, read_table
from thawline.data._unpacking import unpacked
from thawline.data.contract import (
    NOUNS,
    SPLITS,
    Found,
    Item,
    Manifest,
    Problem,
    Row,
    TextTable,
    check_bad,
    content_digest,
    counted,
    group_name,
    listed,
    split_off,
)
from thawline.data.manifests import manifest_of
from thawline.data.splits import Split
from thawline.data.tokenizer import normalized
from thawline.exceptions import DataError

if TYPE_CHECKING:  # decoding processes import this package and do not need pydantic
    from thawline.config import DataConfig

__all__ = ["given_texts", "is_table", "labelled_texts", "scan_table", "texts_of"]


def is_table(path: Path) -> bool:
    """Whether a data path is a table of texts, by name: a file, or a folder of tables instead of class folders.

    Raises:
        DataError: if the path does not exist, is a file but not a table, or the folder cannot be listed.
    """
    if not path.exists():
        raise DataError(f"There is no folder or table {path}.")
    if path.is_dir():
        return bool(tables_in(path))
    if not is_table_file(path):
        raise DataError(
            f"{path} is a file with an unsupported extension: tables have {', '.join(TABLE_SUFFIXES)}, archives "
            f"{', '.join(ARCHIVE_SUFFIXES)}. For images give the folder with one subfolder of images per class."
        )
    return True


def scan_table(config: "DataConfig", *, on_progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Find the columns, read every row once, and build the manifest; see :func:`thawline.data.scan`.

    Raises:
        DataError: if the columns cannot be determined, there is nothing to train on, too much is unreadable, or a split
            or a class would be empty.
    """
    root = config.path.expanduser().absolute()
    source = read_source(root, config)
    if config.header is False and (named := [table.name for table in source.tables if table.table.header]):
        raise DataError(f"data.header=False cannot be set for {', '.join(named)}, whose columns always have names.")
    found = _found(root, source, config)
    if on_progress is not None:
        on_progress(len(found.items), len(found.items))
    return manifest_of(found, config)


def texts_of(manifest: Manifest, rows: Sequence[Row]) -> list[str]:
    """The normalised texts (:func:`~thawline.data.tokenizer.normalized`) of these rows, in order.

    Every file is read once, for any number of rows.

    Raises:
        DataError: if a file is missing, or a row has changed since the scan.
    """
    if manifest.table is None:
        raise DataError(f"{manifest.root} is a folder of images, not a table of texts.")
    column = manifest.table.text_column
    texts: dict[str, str] = {}
    for file in sorted({row.path.rpartition(":")[0] for row in rows}):
        table = read_table(file_of(manifest, file), names=(), header=manifest.table.header)
        if column in table.columns:
            cells = table.column(column)
            lines = (f"{file}:{record.line}" for record in table.records)
            texts |= {line: normalized(cell) for line, cell in zip(lines, cells, strict=True) if isinstance(cell, str)}
    changed = [row.path for row in rows if row.path not in texts or _digest(texts[row.path]) != row.digest]
    if changed:
        raise DataError(
            f"{counted(len(changed), 'text')} of {manifest.root} changed since the table was read:\n"
            f"{listed(changed)}\nStart again to read the table again."
        )
    return [texts[row.path] for row in rows]


def labelled_texts(path: Path, config: "DataConfig") -> tuple[list[str], list[str]]:
    """Texts of another table and their class names, in order; given splits are ignored.

    Args:
        path: the table, or a folder of tables.
        config: columns to use; those that are not set are found as for training.

    Raises:
        DataError: if the columns cannot be determined, there are no texts, or more are unreadable than
            ``data.max_bad_fraction`` allows; unreadable ones are skipped.
    """
    config, _ = unpacked(config.model_copy(update={"path": path}))
    root = config.path.expanduser().absolute()
    if not is_table(root):
        raise DataError(f"{path}: not a table of texts; supported file extensions are {', '.join(TABLE_SUFFIXES)}.")
    source = read_source(root, config.model_copy(update={"split_column": None, "group_column": None}))
    columns: dict[Role, str] = {role: column for role, column in source.columns.items() if role != "split"}
    examples, bad, total = [], [], 0
    labels = _labels(source)
    for table in source.tables:
        read, problems, _ = _examples(table, columns, labels, given="test")
        examples += read
        bad += problems
        total += len(read) + len(problems)
    check_bad(bad, total, config.max_bad_fraction, "texts")
    if not examples:
        raise DataError(f"{path} contains no texts.")
    return [example.text for example in examples], [example.item.class_name for example in examples]


def given_texts(path: Path, text_column: str | None = None, *, trained: str | None = None) -> list[str]:
    """The texts of a file: a table, without need for labels, or ``.txt`` with one text per line.

    Every row is in the list; a row without a text is ``""``. Empty lines are skipped.

    Args:
        path: the file.
        text_column: name of the column, or its number from 1 without a header.
        trained: name of the column of the model's training, used if ``text_column`` is ``None`` and the column exists;
            otherwise the column is found as for training.

    Raises:
        DataError: if the file cannot be read, a line is malformed or not UTF-8 (with its number), or the column or the
            header is ambiguous.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder: give a table of texts ({', '.join(TABLE_SUFFIXES)}) or a .txt file.")
    if path.suffix.lower() == ".txt":
        if text_column is not None:
            raise DataError(f"{path} has one text per line and no columns: remove {ON_COMMAND_LINE}{text_column}.")
        return _lines(path)
    is_table(path)  # raises if it is not
    table = read_table(path, names=known_names(text_column, trained))
    if text_column is None:
        if table.header and trained in table.columns:
            text_column = trained
        elif not table.header:
            _check_first_line(path, table)
    chosen, _ = Guess(path.name, [table], {"text": text_column}, ("text",), option=ON_COMMAND_LINE).columns()
    wrong = [f"line {line} {reason}" for line, reason in table.malformed]
    cells = table.column(chosen["text"])
    for record, cell in zip(table.records, cells, strict=True):
        if isinstance(cell, BadCell):
            wrong.append(f"line {record.line}: the text {cell.reason}")
    if wrong:
        raise DataError(f"{path} cannot be read as a table of texts:\n{listed(wrong)}")
    return [cell if isinstance(cell, str) else "" for cell in cells]


def _check_first_line(path: Path, table: Table) -> None:
    """Refuse to guess whether the first line is a text or a header, which is ambiguous without labels.

    A header mistaken for a text would shift all predictions by one row.
    """
    first = table.records[0].cells if table.records else ()
    words = [cell.strip() for cell in first if isinstance(cell, str)]
    if first and len(set(words)) == len(first) and all(map(NAME_OF_A_COLUMN.fullmatch, words)):
        raise DataError(
            f"Cannot determine whether the first line of {path} is a header: {', '.join(words)}. If it is, "
            f"give the name of the text column, as in {ON_COMMAND_LINE}{words[0]}; else its number, 1 to {len(first)}, "
            f"as in {ON_COMMAND_LINE}1"
        )


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from None
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is not UTF-8 in line {number}: {error.reason} at byte {error.start + 1}."
            ) from None
    return [text for text in texts if text.strip()]


@dataclass(frozen=True)
class _Example:
    item: Item
    text: str


def _found(root: Path, source: Source, config: "DataConfig") -> Found:
    examples: list[_Example] = []
    bad: list[Problem] = []
    trained: set[str] = set()
    labels = _labels(source)
    for named in source.tables:
        read, problems, classes = _examples(named, source.columns, labels, given=named.split or "train")
        examples += read
        bad += problems
        trained |= classes
    total = len(examples) + len(bad)
    check_bad(bad, total, config.max_bad_fraction, "texts")
    check_classes(trained, total, column=source.columns["label"], of="texts", where=str(root), how=source.text)
    lengths = [len(example.text) for example in examples] or [0]
    given = _given_splits(source, examples)
    missing = frozenset(split for split in SPLITS if split not in given and split != "train")
    untrained: dict[tuple[Split, str], int] = Counter(
        (example.item.given, example.item.class_name) for example in examples if example.item.class_name not in trained
    )
    strays = [
        Problem(
            f"{given[split]}: {name}", f"no text of this class to train on, {counted(count, 'text')} skipped", "class"
        )
        for (split, name), count in untrained.items()
    ]
    return Found(
        root=root,
        kind="texts",
        items=[example.item for example in examples if example.item.class_name in trained],
        classes=tuple(sorted(trained)),
        problems=[*bad, *strays],
        given=given,
        missing=missing,
        layout=_describe(source, given, missing, config),
        table=TextTable(
            text_column=source.columns["text"],
            label_column=source.columns["label"],
            split_column=source.columns.get("split"),
            group_column=source.columns.get("group"),
            header=source.tables[0].table.header,
            median_length=round(median(lengths)),
            longest=max(lengths),
        ),
    )


def _labels(source: Source) -> LabelColumn:
    return LabelColumn(cell for named in source.tables for cell in named.table.column(source.columns["label"]))


def _examples(
    named: NamedTable, columns: Mapping[Role, str], labels: LabelColumn, *, given: Split
) -> tuple[list[_Example], list[Problem], set[str]]:
    """Readable examples, problems, and the classes of the training split, readable or not.

    Args:
        named: one table.
        columns: the column of each existing role.
        labels: the label column of all tables.
        given: the split of rows without a split column.
    """
    absent: list[Cell] = [None] * len(named.table.records)
    cells = {
        role: named.table.column(columns[role]) if role in columns else absent
        for role in ("text", "label", "split", "group")
    }
    examples, trained = [], set()
    bad = [Problem(f"{named.name}:{line}", f"the line {reason}", "bad") for line, reason in named.table.malformed]
    for record, text, label, split, group in zip(named.table.records, *cells.values(), strict=True):
        path = f"{named.name}:{record.line}"
        side = split_of(split) if "split" in columns else given
        if side == "train" and not wrong_label(label):
            trained.add(labels.name(label))
        reason = wrong_label(label) or _wrong_text(text) or _wrong_group(group)
        if side is None or reason:
            bad.append(Problem(path, reason or _wrong_split(split), "bad"))
            continue
        content = normalized(str(text))
        named_group = group_name(group) if isinstance(group, str) else None
        examples.append(_Example(Item(path, labels.name(label), side, _digest(content), named_group), content))
    return examples, bad, trained


def _wrong_text(cell: Cell) -> str:
    if isinstance(cell, BadCell):
        return f"the text {cell.reason}"
    return "" if cell is not None and normalized(cell) else "the text is empty"


def _wrong_group(cell: Cell) -> str:
    return f"the group {cell.reason}" if isinstance(cell, BadCell) else ""


def _wrong_split(cell: Cell) -> str:
    if isinstance(cell, BadCell):
        return f"the split {cell.reason}"
    return f"the split is {cell!r}, not one of {', '.join(SPLITS)}" if cell else "the split is missing"


def _digest(text: str) -> str:
    return content_digest(text.encode())


def _given_splits(source: Source, examples: Sequence[_Example]) -> dict[Split, str]:
    """The names of the given splits."""
    column = source.columns.get("split")
    if column is None:
        return {named.split: named.name for named in source.tables if named.split is not None}
    there = {example.item.given for example in examples}
    return {split: f"the split {split} of column {column}" for split in SPLITS if split in there}


def _describe(source: Source, given: Mapping[Split, str], missing: frozenset[Split], config: "DataConfig") -> str:
    parts = [f"table of {NOUNS['texts']}s", source.text]
    if len(source.tables) > 1:
        parts.append(f"splits {', '.join(given.values())}")
    if missing:
        parts.append(f"{split_off(missing, config)} split off by content")
    return "; ".join(parts)
