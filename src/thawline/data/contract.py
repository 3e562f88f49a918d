"""The data model of all kinds of data, and its terms.

Folders of images (:mod:`thawline.data.folder`) and tables of texts (:mod:`thawline.data.text`) are read into
:class:`Found`; :func:`thawline.data.manifests.manifest_of` turns both into a :class:`Manifest`.
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

if TYPE_CHECKING:  # decoding processes import this module and do not need pydantic
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
"""Possible names of given splits, in lower case."""
HELD_OUT: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}
"""Priority of splits: the more held out, the higher."""

NAMED = 10
"""Maximum number of files or classes in a message."""


@dataclass(frozen=True)
class Row:
    """One image or text for training or evaluation."""

    path: str
    """For an image, its path relative to the manifest's root, with ``/``; for a text, the file's name and its line, or
    its row in a Parquet or Excel file or a JSON array, from 1: ``messages.csv:17``."""
    label: int
    """Index into the manifest's classes."""
    split: Split
    digest: str
    """First 32 hex digits of the SHA-256 of the image file's bytes, or of the normalised text."""
    group: str | None


@dataclass(frozen=True)
class Problem:
    """A problem with a file, folder or line, to be reported to the user.

    Items with ``bad`` (cannot be read), ``stray`` (not an image of a class), ``leak`` and ``conflict`` are skipped;
    ``duplicate`` and ``near`` (the same picture in another file) are kept; ``class`` is a warning about a whole class;
    ``excluded`` and ``relabelled`` come from :mod:`thawline.data.corrections`.
    """

    path: str
    reason: str
    kind: ProblemKind


@dataclass(frozen=True)
class TextTable:
    """The format of a table of texts, and the lengths of its texts."""

    text_column: str
    """Name of the column; unnamed ones are numbered from ``1``."""
    label_column: str
    split_column: str | None
    group_column: str | None
    header: bool
    """Whether the first line names the columns; always for JSON and Parquet."""
    median_length: int
    """Median number of characters of a text."""
    longest: int
    """Number of characters of the longest text."""

    @property
    def text_name(self) -> str | None:
        """Name of the text column in the header; ``None`` without a header."""
        return self.text_column if self.header else None


@dataclass(frozen=True)
class ImageShapes:
    """Formats and sizes of the readable images after EXIF rotation; width and height in pixels."""

    formats: dict[str, int]
    """Number of images by format, such as ``JPEG``; most frequent first."""
    median: tuple[int, int]
    """Median width and median height."""
    smallest: tuple[int, int]
    """Size of the image with the fewest pixels."""
    largest: tuple[int, int]
    """Size of the image with the most pixels."""
    aspect: tuple[float, float, float]
    """Width divided by height: minimum, median and maximum."""

    @classmethod
    def of(cls, shapes: Sequence[tuple[str, int, int]]) -> "ImageShapes | None":
        """From format, width and height of each image; ``None`` without images."""
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
    """The data for training and evaluation: rows sorted by (split, class name, content digest), so that neither file
    names nor the order of lines matter."""

    root: Path
    """The data folder, or the table."""
    classes: tuple[str, ...]
    """Sorted names; a row's label is an index into them."""
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]
    digest: str
    """32 hex digits that change if and only if the training data change."""
    layout: str
    """Description of the recognised layout and of the splits."""
    kind: DataKind = "images"
    """The kind of rows: images, or texts (see :mod:`thawline.data.text`)."""
    table: TextTable | None = None
    """Format of a table of texts."""
    shapes: ImageShapes | None = None
    """Shapes of images; unknown for an older file."""

    @property
    def name(self) -> str:
        """Display name of the data: that of the folder, or of the table without its extension."""
        path = self.root.resolve()
        return table_stem(path) if self.kind == "texts" and not path.is_dir() else path.name

    def of(self, split: Split) -> tuple[Row, ...]:
        """The rows of one split."""
        return tuple(row for row in self.rows if row.split == split)

    def counts(self) -> dict[str, dict[Split, int]]:
        """Number of images or texts per class and split."""
        counter = Counter((row.label, row.split) for row in self.rows)
        return {name: {split: counter[label, split] for split in SPLITS} for label, name in enumerate(self.classes)}

    @property
    def bad(self) -> tuple[Problem, ...]:
        """Problems of files or lines that could not be read."""
        return tuple(problem for problem in self.problems if problem.kind == "bad")

    def to_json(self, path: Path) -> None:
        """Write the manifest atomically: a reader sees the old file or the new one."""
        content = asdict(self) | {"root": str(self.root)}
        write_atomically(path, json.dumps(content, indent=1).encode())

    @classmethod
    def from_json(cls, path: Path) -> "Manifest":
        """Read a file of :meth:`to_json`.

        Raises:
            DataError: if the file is missing, is not a manifest, or does not match its digest.
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
            raise DataError(f"The manifest {path} does not match its digest: it was changed.")
        return manifest


@dataclass(frozen=True)
class Item:
    """An image or a text with its class, before conflicts and leaks are removed."""

    path: str
    """See :attr:`Row.path`."""
    class_name: str
    given: Split
    """Its given split; ``train`` without given splits."""
    digest: str = ""
    group: str | None = None
    key: str = ""


@dataclass(frozen=True)
class Found:
    """The result of reading a folder or a table."""

    root: Path
    kind: DataKind
    items: Sequence[Item]
    """Everything that could be read, with digests and groups."""
    classes: tuple[str, ...]
    """Sorted names, including classes without a readable item, which are refused."""
    problems: Sequence[Problem]
    given: dict[Split, str]
    """The given splits' names, such as ``val/``; empty without given splits."""
    missing: frozenset[Split]
    """Splits that are not given, which are split off the training data by hash."""
    layout: str
    table: TextTable | None = None
    shapes: ImageShapes | None = None
    near: Sequence[tuple[str, str]] = ()
    """Pairs of digests of near-duplicate images."""


def _shapes_of(content: Mapping[str, Any]) -> ImageShapes:
    sides: dict[str, Any] = {name: tuple(value) for name, value in content.items() if name != "formats"}
    return ImageShapes(formats=dict(content["formats"]), **sides)


def content_digest(data: bytes) -> str:
    """First 32 hex digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


def manifest_digest(classes: tuple[str, ...], rows: tuple[Row, ...]) -> str:
    """Digest of the training data: classes, and content, class and split of every row, but not file names."""
    content = [list(classes), sorted([row.split, classes[row.label], row.digest] for row in rows)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def check_bad(bad: Sequence[Problem], total: int, limit: float, kind: DataKind) -> None:
    """Refuse data if more than the share ``limit`` of ``total`` cannot be read.

    Raises:
        DataError: with the first of them, and the setting that would allow this many.
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
    """Name of a group in normal form: "é" may be one character or, on macOS, two, for the same patient."""
    return unicodedata.normalize("NFC", text).strip() or None


def listed(lines: Sequence[str]) -> str:
    """The first few lines, indented, and the number of further ones."""
    more = [f"and {len(lines) - NAMED} more"] if len(lines) > NAMED else []
    return "\n".join(f"  {printable(line)}" for line in [*lines[:NAMED], *more])


def few(names: Sequence[str], shown: int = NAMED) -> str:
    """The first few names in one line, and the number of further ones."""
    more = [f"and {len(names) - shown} more"] if len(names) > shown else []
    return ", ".join([*names[:shown], *more])


def split_off(missing: frozenset[Split], config: "DataConfig") -> str:
    """The splits made by hash, in words: ``validation (15%) and test (15%)``."""
    fractions: dict[Split, float] = {"validation": config.validation_fraction, "test": config.test_fraction}
    return " and ".join(f"{split} ({share:.0%})" for split, share in fractions.items() if split in missing)
