"""What a drift check found: for programs, for the terminal, and as a page."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from thawline.data import printable
from thawline.drift.comparison import ShiftTest

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["ClassShare", "DriftReport", "Unusual", "drift_table"]

_CLASSES = 10  # shown to people; JSON has all


@dataclass(frozen=True)
class ClassShare:
    """How often a class is predicted, 0 to 1."""

    name: str
    reference: float
    new: float


@dataclass(frozen=True)
class Unusual:
    """A new image that lies far from the reference."""

    path: str
    distance: float
    """In the space of the features, as a multiple of the reference images' median."""


@dataclass(frozen=True)
class DriftReport:
    """What was compared, and what came of it."""

    model: str
    version: str
    folder: str
    reference: str
    """Where the reference images are from, in words."""
    alpha: float
    """The false-alarm rate: how often, at most, images from the same source would be called drift."""
    reference_images: int
    new_images: int
    tests: tuple[ShiftTest, ...]
    classes: tuple[ClassShare, ...]
    """The one whose share changed most comes first."""
    unusual: tuple[Unusual, ...]
    """A few to look at, the farthest first. Every folder has some: by themselves they are no sign of drift."""
    copies: int
    """New files left out because another one has the same content."""
    bad: Mapping[str, str]
    """Files, new or of the reference, that could not be read, with the reason; no number counts them."""
    note: str = ""
    """What else there is to know, for people; mostly nothing."""

    @property
    def drift(self) -> bool:
        """Whether any of the tests found a shift."""
        return any(test.drift for test in self.tests)

    @property
    def event(self) -> str:
        """Name of the event that tells of it."""
        return f"thawline.drift.{'detected' if self.drift else 'absent'}"

    def __str__(self) -> str:
        compared = f"{self.new_images} new images and {self.reference_images} of the reference"
        rate = f"at a false-alarm rate of {self.alpha:.2g}"
        if not self.drift:
            return f"No drift found between {compared}, {rate}."
        found = [test.part for test in self.tests if test.drift]
        return f"Drift between {compared}, {rate}: {_enumerated(found)} differ."

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        tests = [{**asdict(test), "drift": test.drift} for test in self.tests]
        return {**asdict(self), "tests": tests, "drift": self.drift}

    def as_markdown(self) -> str:
        """The same as a page."""
        classes = [[_code(each.name), *cells] for each, cells in self._class_rows()]
        parts = [
            f"# {self.model} version {self.version}: {'drift' if self.drift else 'no drift found'}",
            f"{self} {self.note}".rstrip(),
            f"New images: {_code(self.folder)}. Reference: {self.reference}.",
            _markdown_table(_TEST_COLUMNS, [[*cells, _verdict(test)] for test, cells in self._test_rows()]),
            _markdown_table(_CLASS_COLUMNS, classes),
            "Farthest from the reference:",
            "\n".join(f"- {_code(each.path)}, {each.distance:.1f} times the usual distance" for each in self.unusual),
        ]
        if self.bad:
            parts += ["Not readable:", "\n".join(f"- {_code(path)}: {why}" for path, why in self.bad.items())]
        return "\n\n".join(parts)

    def _test_rows(self) -> list[tuple[ShiftTest, list[str]]]:
        return [
            (each, [each.part, each.method, f"{each.difference:.3f}", f"{each.p_value:.2g}", f"{each.threshold:.2g}"])
            for each in self.tests
        ]

    def _class_rows(self) -> list[tuple[ClassShare, list[str]]]:
        return [(each, [f"{each.reference:.1%}", f"{each.new:.1%}"]) for each in self.classes[:_CLASSES]]


_TEST_COLUMNS = ("compared", "by", "difference", "p-value", "threshold", "")
_CLASS_COLUMNS = ("predicted class", "reference", "new")


def drift_table(report: DriftReport) -> "RenderableType":
    """The report for the terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def table(columns: Sequence[str]) -> Table:
        made = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            made.add_column(column, overflow="fold")
        return made

    tests = table(_TEST_COLUMNS)
    for test, cells in report._test_rows():
        tests.add_row(*cells, Text(_verdict(test), "red" if test.drift else "green"))
    classes = table(_CLASS_COLUMNS)
    for share, cells in report._class_rows():
        classes.add_row(Text(printable(share.name)), *cells)
    unusual = table(("farthest from the reference", "times the usual distance"))
    for image in report.unusual:
        unusual.add_row(Text(printable(image.path)), f"{image.distance:.1f}")
    heading = f"{report.model} version {report.version}; reference: {report.reference}"
    bad = [Text(f"Cannot be read: {printable(path)}: {reason}", "red") for path, reason in report.bad.items()]
    note = [Text(report.note, "yellow")] if report.note else []
    return Group(Text(printable(heading), "bold"), "", tests, "", classes, "", unusual, "", *bad, *note)


def _verdict(test: ShiftTest) -> str:
    return "drift" if test.drift else "no drift found"


def _enumerated(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _code(text: str) -> str:
    """As Markdown shows it unchanged, in a table too."""
    return f"`{printable(text).replace('`', ' ').replace('|', ' ')}`"


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows))
