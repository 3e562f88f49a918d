"""The values that every kind of data is read into, and the words for them.

Folders of images (:mod:`thawline.data.folder`) and tables of texts (:mod:`thawline.data.text`) are each read into
:class:`Found`; :func:`thawline.data.manifests.manifest_of` makes the :class:`Manifest` of both.
"""

import hashlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from thawline.data._files import printable, write_atomically
from thawline.data._table_files import table_stem
from thawline.data._tables import SAVE_AS_UTF8
from thawline.data.splits import Split
from thawline.exceptions import DataError

if TYPE_CHECKING:  # the processes that decode import this module and need no pydantic
    from thawline.config import DataConfig

__all__ = [
    "HELD_OUT",
    "NAMED",
    "NOUNS",
    "SPLITS",
    "SPLIT_NAMES",
    "DataKind",
    "Found",
    "ImageShapes",
    "Item",
    "Manifest",
    "Problem",
    "ProblemKind",
    "Row",
    "TextTable",
    "check_bad",
    "content_digest",
    "counted",
    "group_name",
    "listed",
    "manifest_digest",
    "split_off",
]

DataKind = Literal["images", "texts"]
ProblemKind = Literal["bad", "stray", "duplicate", "near", "leak", "conflict", "class", "excluded", "relabelled"]

NOUNS: dict[DataKind, str] = {"images": "image", "texts": "text"}
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "development": "validation",
    "eval": "validation",
    "test": "test",
    "testing": "test",
}
"""What given splits may be called, in lower case."""
HELD_OUT: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}
"""The more a split is held out, the higher."""

NAMED = 10
"""How many files or classes a message lists."""


@dataclass(frozen=True)
class Row:
    """One image or text that is trained on or evaluated with."""

    path: str
    """Of an image relative to the manifest's root, with ``/``; of a text the file's name and its line, or its row in a
    Parquet or Excel file or a JSON array, from 1: ``messages.csv:17``."""
    label: int
    """Index into the manifest's classes."""
    split: Split
    digest: str
    """First 32 hex digits of the SHA-256 of the image file's bytes, or of the text as it is trained on."""
    group: str | None


@dataclass(frozen=True)
class Problem:
    """Something about one file, folder or line that a person should know.

    ``bad`` (cannot be read), ``stray`` (no image of a class), ``leak`` and ``conflict`` are left out; a ``duplicate``
    and a ``near`` one (the same picture in another file) are kept; ``class`` is a warning about a whole class;
    ``excluded`` and ``relabelled`` are what :mod:`thawline.data.corrections` did.
    """

    path: str
    reason: str
    kind: ProblemKind


@dataclass(frozen=True)
class TextTable:
    """How a table of texts is read, and how long its texts are."""

    text_column: str
    """Columns without a name are called by their number, from ``1``."""
    label_column: str
    split_column: str | None
    group_column: str | None
    header: bool
    """Whether the first line names the columns; always for JSON and Parquet."""
    median_length: int
    """Characters that half of the texts have at most."""
    longest: int
    """Characters of the longest text."""

    @property
    def text_name(self) -> str | None:
        """Name of the column of texts in the header; ``None`` where no line names the columns."""
        return self.text_column if self.header else None


@dataclass(frozen=True)
class ImageShapes:
    """Formats and sizes of the images that can be read, upright as they are seen; width and height in pixels."""

    formats: dict[str, int]
    """How many there are of each, such as ``JPEG``; the most frequent first."""
    median: tuple[int, int]
    """Median width and median height."""
    smallest: tuple[int, int]
    """Size of an image of the fewest pixels."""
    largest: tuple[int, int]
    """Size of an image of the most pixels."""
    aspect: tuple[float, float, float]
    """Width divided by height: the least, the median and the greatest."""

    @classmethod
    def of(cls, shapes: Sequence[tuple[str, int, int]]) -> "ImageShapes | None":
        """Of format, width and height of each image; ``None`` of no image."""
        if not shapes:
            return None
        sizes = [(width, height) for _, width, height in shapes]
        aspects = sorted(width / height for width, height in sizes)
        widths, heights = (sorted(sides) for sides in zip(*sizes, strict=True))
        middle = len(sizes) // 2
        return cls(
            formats=dict(Counter(name for name, *_ in shapes).most_common()),
            median=(widths[middle], heights[middle]),
            smallest=min(sizes, key=math.prod),
            largest=max(sizes, key=math.prod),
            aspect=(aspects[0], aspects[middle], aspects[-1]),
        )


@dataclass(frozen=True)
class Manifest:
    """What is trained on: rows sorted by (split, class name, content digest), so that neither the names of files nor
    the order of lines matters."""

    root: Path
    """The data folder, or the table."""
    classes: tuple[str, ...]
    """Names, sorted; a row's label is an index into them."""
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    digest: str
    """32 hex digits that change if and only if what would be trained on changes."""
    layout: str
    """What was found and done, in words."""
    kind: DataKind = "images"
    """What a row is: an image, or a text (see :mod:`thawline.data.text`)."""
    table: TextTable | None = None
    """Of a table of texts."""
    shapes: ImageShapes | None = None
    """Of images; those of an older file are not known."""

    @property
    def name(self) -> str:
        """Of the folder, or of the table without its ending; the data is shown by it."""
        path = self.root.resolve()
        return table_stem(path) if self.kind == "texts" and not path.is_dir() else path.name

    def of(self, split: Split) -> tuple[Row, ...]:
        """The rows of one split."""
        return tuple(row for row in self.rows if row.split == split)

    def counts(self) -> dict[str, dict[Split, int]]:
        """Number of images or texts of each class in each split."""
        counter = Counter((row.label, row.split) for row in self.rows)
        return {name: {split: counter[label, split] for split in SPLITS} for label, name in enumerate(self.classes)}

    @property
    def bad(self) -> tuple[Problem, ...]:
        """The files or lines that could not be read."""
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
            table, shapes = content.get("table"), content.get("shapes")
            manifest = cls(
                root=Path(content["root"]),
                classes=tuple(content["classes"]),
                rows=rows,
                problems=problems,
                digest=content["digest"],
                layout=content["layout"],
                kind=content.get("kind", "images"),
                table=TextTable(**table) if table else None,
                shapes=_shapes_of(shapes) if shapes else None,
            )
            intact = manifest.digest == manifest_digest(manifest.classes, rows)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(f"Cannot read the manifest {path}: {error}. `thawline check DATA` scans again.") from None
        if not intact:
            raise DataError(f"The manifest {path} does not hold what its digest says: somebody changed it.")
        return manifest


@dataclass(frozen=True)
class Item:
    """An image or a text with its class, before it is decided which are trained on."""

    path: str
    """As :attr:`Row.path`."""
    class_name: str
    given: Split
    """The split that it lies in; ``train`` where none are given."""
    digest: str = ""
    group: str | None = None
    key: str = ""


@dataclass(frozen=True)
class Found:
    """What reading a folder or a table gave."""

    root: Path
    kind: DataKind
    items: Sequence[Item]
    """All that could be read, with digests and groups."""
    classes: tuple[str, ...]
    """Names, sorted; a class of which nothing could be read is among them, and refused."""
    problems: Sequence[Problem]
    given: dict[Split, str]
    """What people call each given split, such as ``val/``; empty where there are none."""
    missing: frozenset[Split]
    """Splits that are not given, which the hash takes from the training side."""
    layout: str
    table: TextTable | None = None
    shapes: ImageShapes | None = None
    near: Sequence[tuple[str, str]] = ()
    """Pairs of digests whose images show the same picture."""


def _shapes_of(content: Mapping[str, Any]) -> ImageShapes:
    sides: dict[str, Any] = {name: tuple(value) for name, value in content.items() if name != "formats"}
    return ImageShapes(formats=dict(content["formats"]), **sides)


def content_digest(data: bytes) -> str:
    """First 32 hex digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


def manifest_digest(classes: tuple[str, ...], rows: tuple[Row, ...]) -> str:
    """What is trained on: classes, and the content, class and split of every row; names of files are not."""
    content = [list(classes), sorted([row.split, classes[row.label], row.digest] for row in rows)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def check_bad(bad: Sequence[Problem], total: int, limit: float, kind: DataKind) -> None:
    """Refuse data of which more than the share ``limit`` of ``total`` cannot be read.

    Raises:
        DataError: naming the first of them, and the setting that allows for so many.
    """
    if len(bad) > limit * total:
        share = len(bad) / total
        encoding = sum("is not UTF-8" in problem.reason for problem in bad) > len(bad) / 2
        ways_out = f"{SAVE_AS_UTF8} Or skip them" if encoding else "Repair or remove them, or skip them"
        what = "cannot be decoded" if kind == "images" else "cannot be read"
        raise DataError(
            f"{len(bad)} of {counted(total, NOUNS[kind])} {what} ({share:.1%}), more than "
            f"data.max_bad_fraction={limit:g} allows:\n{listed([f'{p.path}: {p.reason}' for p in bad])}\n"
            f"{ways_out}: --set data.max_bad_fraction={min(1.0, math.ceil(share * 100) / 100):g}"
        )


def counted(count: int, noun: str) -> str:
    """``1 image``, ``1,200 images``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def group_name(text: str) -> str | None:
    """What a group is called: "é" is one character or two, as Macs write it, and both are the same patient."""
    return unicodedata.normalize("NFC", text).strip() or None


def listed(lines: Sequence[str]) -> str:
    """The first few lines, indented, and how many more there are."""
    more = [f"and {len(lines) - NAMED} more"] if len(lines) > NAMED else []
    return "\n".join(f"  {printable(line)}" for line in [*lines[:NAMED], *more])


def split_off(missing: frozenset[Split], config: "DataConfig") -> str:
    """The splits that the hash makes, in words: ``validation (15%) and test (15%)``."""
    fractions: dict[Split, float] = {"validation": config.validation_fraction, "test": config.test_fraction}
    return " and ".join(f"{split} ({share:.0%})" for split, share in fractions.items() if split in missing)
