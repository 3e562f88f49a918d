"""The result of a drift check, for programs and as a page."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from thawline.data import printable
from thawline.drift.comparison import ShiftTest

__all__ = ["CLASS_COLUMNS", "TEST_COLUMNS", "ClassShare", "DriftReport", "Unusual"]

_CLASSES = 10  # shown in tables; JSON has all

TEST_COLUMNS = ("compared", "by", "difference", "p-value", "threshold", "")
CLASS_COLUMNS = ("predicted class", "reference", "new")


@dataclass(frozen=True)
class ClassShare:
    """The frequency of a predicted class, 0 to 1."""

    name: str
    reference: float
    new: float


@dataclass(frozen=True)
class Unusual:
    """A new image far from the reference."""

    path: str
    distance: float
    """Distance in feature space, as a multiple of the reference images' median."""


@dataclass(frozen=True)
class DriftReport:
    """The compared images and the result."""

    model: str
    version: str
    folder: str
    reference: str
    """Description of the reference images."""
    alpha: float
    """The false-alarm rate: maximum probability of reporting drift for images from the same source."""
    reference_images: int
    new_images: int
    tests: tuple[ShiftTest, ...]
    classes: tuple[ClassShare, ...]
    """Sorted by change in share, the largest first."""
    unusual: tuple[Unusual, ...]
    """A few images for inspection, the farthest first. Every folder has some: they are not evidence of drift."""
    copies: int
    """Number of new files ignored because another one has the same content."""
    bad: Mapping[str, str]
    """Unreadable files, new or of the reference, with the reason; they are not counted."""
    note: str = ""
    """A note for the user; usually empty."""

    @property
    def drift(self) -> bool:
        """Whether any of the tests found a shift."""
        return any(test.drift for test in self.tests)

    @property
    def event(self) -> str:
        """Name of the event that reports it."""
        return f"thawline.drift.{'detected' if self.drift else 'absent'}"

    def __str__(self) -> str:
        compared = f"{self.new_images} new images and {self.reference_images} reference images"
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
        classes = [[_code(each.name), *cells] for each, cells in self.class_rows()]
        parts = [
            f"# {self.model} version {self.version}: {'drift' if self.drift else 'no drift found'}",
            f"{self} {self.note}".rstrip(),
            f"New images: {_code(self.folder)}. Reference: {self.reference}.",
            _markdown_table(TEST_COLUMNS, [cells for _, cells in self.test_rows()]),
            _markdown_table(CLASS_COLUMNS, classes),
            "Farthest from the reference:",
            "\n".join(f"- {_code(each.path)}, {each.distance:.1f} times the usual distance" for each in self.unusual),
        ]
        if self.bad:
            parts += ["Not readable:", "\n".join(f"- {_code(path)}: {why}" for path, why in self.bad.items())]
        return "\n\n".join(parts)

    def test_rows(self) -> list[tuple[ShiftTest, list[str]]]:
        """Each test with its cells below :data:`TEST_COLUMNS`."""
        return [
            (
                each,
                [
                    *(each.part, each.method, f"{each.difference:.3f}", f"{each.p_value:.2g}"),
                    *(f"{each.threshold:.2g}", "drift" if each.drift else "no drift found"),
                ],
            )
            for each in self.tests
        ]

    def class_rows(self) -> list[tuple[ClassShare, list[str]]]:
        """The classes to show, each with its cells below :data:`CLASS_COLUMNS`, except the first."""
        return [(each, [f"{each.reference:.1%}", f"{each.new:.1%}"]) for each in self.classes[:_CLASSES]]


def _enumerated(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _code(text: str) -> str:
    """Escape text as Markdown code, also for tables."""
    return f"`{printable(text).replace('`', ' ').replace('|', ' ')}`"


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows))
