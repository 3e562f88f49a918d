"""The tables of a data path, with their columns."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thawline.data._columns import USUAL, Guess, Role
from thawline.data._listing import children, folders
from thawline.data._naming import split_names, without_shard, words
from thawline.data._table_files import table_stem, tables_among
from thawline.data._tables import Table, read_table
from thawline.data.contract import SPLITS, Manifest
from thawline.data.images import EXTENSIONS
from thawline.data.splits import Split
from thawline.exceptions import DataError

if TYPE_CHECKING:  # decoding processes import this package and do not need pydantic
    from thawline.config import DataConfig

__all__ = ["NamedTable", "Source", "file_of", "known_names", "read_source", "tables_in"]


@dataclass(frozen=True)
class NamedTable:
    name: str
    """Name of the file."""
    split: Split | None
    """The split of the whole file, if the data are a folder of tables."""
    table: Table


@dataclass(frozen=True)
class Source:
    tables: list[NamedTable]
    columns: dict[Role, str]
    """Name of the column of each existing role."""
    text: str
    """Description of how they were read."""


def tables_in(folder: Path) -> dict[Split, list[Path]]:
    """``train.csv``, ``validation.csv``, ``test.csv`` by any of their names, or the only table of a folder.

    A table may be in parts, ``train-00000-of-00002.parquet``, and all may be in one subfolder, such as ``data``, as on
    Hugging Face's hub. Empty if there is another subfolder or an image: image folders may contain tables too.
    """
    found = children(folder)
    tables = tables_among(found)
    inner = folders(folder)
    if any(child.suffix.lower() in EXTENSIONS for child in found):
        return {}
    if not tables and len(inner) == 1 and not folders(inner[0]):
        return tables_in(inner[0])
    if not tables or inner:
        return {}
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for table in tables:
        by_stem[without_shard(table_stem(table))].append(table)
    if len(by_stem) == 1 and (
        len(tables) == 1 or all(table_stem(table) != without_shard(table_stem(table)) for table in tables)
    ):
        return {"train": tables}
    splits: dict[Split, list[Path]] = {}
    for split, stems in split_names(by_stem).items():
        parts = by_stem[stems[0]]
        if len(stems) == 1 and (len(parts) == 1 or all(table_stem(part) != stems[0] for part in parts)):
            splits[split] = parts
    left = [table for table in tables if not any(table in parts for parts in splits.values())]
    if [table for table in left if not {"submission", "sample"} & set(words(table_stem(table)))]:
        names = ", ".join(table.name for table in tables)
        raise DataError(
            f"{folder} contains the tables {names}. Give one of them as the data, or name them train, validation and "
            "test, one of each."
        )
    if "train" not in splits:
        raise DataError(f"{folder} contains {', '.join(t.name for t in tables)}, but no table named train.")
    return splits


def file_of(manifest: Manifest, name: str) -> Path:
    return manifest.root / name if manifest.root.is_dir() else manifest.root


def read_source(root: Path, config: "DataConfig") -> Source:
    """The tables of a data path and their columns."""
    if config.group_pattern is not None:
        raise DataError(
            "data.group_pattern applies to the paths of files, but texts have none: set the column of "
            "groups with data.group_column."
        )
    if config.class_pattern is not None:
        raise DataError(
            f"data.class_pattern applies to the names of image files, but {root} is a table of texts: remove it."
        )
    given: dict[Role, str | None] = {
        "text": config.text_column,
        "label": config.label_column,
        "split": config.split_column,
        "group": config.group_column,
    }
    paths: Mapping[Split, list[Path]] = tables_in(root) if root.is_dir() else {"train": [root]}
    whole = len(paths) == 1
    if not whole and config.split_column is not None:
        raise DataError(f"data.split_column cannot be set, because {root} has a table for each split.")
    tables: list[NamedTable] = []
    for split, path in [(split, path) for split, parts in _in_order(paths) for path in parts]:
        header = tables[0].table.header if tables else config.header
        table = read_table(path, names=known_names(*given.values()), header=header)
        name = path.relative_to(root).as_posix() if root.is_dir() else path.name
        tables.append(NamedTable(name, None if whole else split, table))
    roles: tuple[Role, ...] = ("text", "label", "split", "group") if whole else ("text", "label", "group")
    columns, found = Guess(root.name, [named.table for named in tables], given, roles).columns()
    notes = [*dict.fromkeys(named.table.note for named in tables if named.table.note), found]
    header_line = [] if tables[0].table.header else ["no header line"]
    return Source(tables, columns, "; ".join([*header_line, *notes]))


def _in_order(paths: Mapping[Split, list[Path]]) -> list[tuple[Split, list[Path]]]:
    return sorted(paths.items(), key=lambda pair: SPLITS.index(pair[0]))


def known_names(*given: str | None) -> set[str]:
    """Names that identify a first line as a header."""
    usual = {name for names in USUAL.values() for name in names}
    return usual | {name.casefold() for name in given if name is not None and not name.isdecimal()}
