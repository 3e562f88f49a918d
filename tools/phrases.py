"""Find phrases that the field expresses differently: a lint of comments, messages, documentation and test names.

    python tools/phrases.py [PATH ...]    # exit code 1 if one is found; by default all of the project's texts

A phrase is found across line breaks, and in the names of tests, but not in other names. A new one is a line in
:data:`PHRASES`.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PHRASES = {
    "goes on|go on|going on|gone on|went on": "resumes (or continues, if nothing was interrupted)",
    "head alone": "head only, linear probing",
    "can be had|could be had|cannot be had|could not be had|to be had": "is (not) available, could not be downloaded",
    "anew": "again",
    "hangs on|hang on|hung on": "depends on",
    "dear|dearer|dearest": "expensive",
    "by heart": "overfits",
    "came of": "result",
    "make it again": "reproduce",
    "for ever": "forever, indefinitely",
    "boundary behind|boundaries behind|border behind|borders behind": "after layer group X",
    "behind all layer groups|behind the last layer group|behind the layer groups|behind each layer group": "after",
    "behind the frozen|behind the last stored|behind each stored|behind every stored|behind the stored": "after",
    "layers make of|layers made of|groups make of|groups made of": "frozen activations",
    "too modest": "underconfident",
    "too sure": "overconfident",
    "share that is right": "accuracy",
    "going backwards": "backward pass",
    "whoever becomes": "the next",
    "has a say|have a say": "decisions do not depend on",
    "by its ending": "unsupported file extension",
    "speaks for the class|speaks for a class|speak for the class|speak for a class": "evidence for the class",
    "what speaks for|speaks for it|speak for it|speaks for one|speak for one": "evidence for",
    "no table of texts": "not a table of texts, unsupported file extension",
    "name the class of images|name the class of an image": "classify images",
    "in pixels of what": "input image size (pixels)",
    "share of the class|share of each class": "recall",
    "nought": "zero",
    "mend|mends|mended|mending": "fix, repair",
    "lets go of|let go of": "releases",
}
"""Phrases, alternatives separated by ``|``, and what to write instead."""

_FOLDERS = ("src", "flows", "docs", "tests", "benchmarks", "tools", "docker")
_TEXTS = (
    *_FOLDERS,
    "docker/Dockerfile",
    "README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "Makefile",
    "pyproject.toml",
    "prefect.yaml",
)
_SUFFIXES = {".py", ".md", ".html", ".yaml", ".yml", ".toml", ".ini", ".sql"}
_OWN = ("tools/phrases.py", "tests/unit/test_phrases.py")
_GAP = r"\s+(?:#\s+|>\s+)?"
"""Whitespace between two words, including a line break within a comment or a quotation."""
_TEST_NAME = re.compile(r"def test_\w+")


class Found(NamedTuple):
    """A phrase in a text."""

    line: int
    """Counted from 1."""
    phrase: str
    instead: str


def find(text: str) -> list[Found]:
    """All phrases of :data:`PHRASES` in a text, in the order of lines."""
    text = _TEST_NAME.sub(lambda name: name[0].replace("_", " "), text)
    return sorted(
        Found(text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), instead)
        for pattern, instead in _PATTERNS
        for match in pattern.finditer(text)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every phrase found with its location and the words to use; returns the exit code."""
    named = sys.argv[1:] if arguments is None else arguments
    count = 0
    for path in sorted(_files([Path(each) for each in named] or [ROOT / each for each in _TEXTS])):
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        for line, phrase, instead in find(path.read_text(encoding="utf-8")):
            count += 1
            print(f"{shown}:{line}: {phrase!r}: write {instead!r}")
    return 1 if count else 0


def _files(places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        for path in [place] if place.is_file() else place.rglob("*"):
            name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
            is_text = path == place or (path.suffix in _SUFFIXES and path.is_file())
            if is_text and name not in _OWN:
                yield path


def _pattern(phrases: str) -> re.Pattern[str]:
    alternatives = "|".join(_GAP.join(map(re.escape, phrase.split())) for phrase in phrases.split("|"))
    return re.compile(rf"\b(?:{alternatives})\b", re.IGNORECASE)


_PATTERNS = [(_pattern(phrases), instead) for phrases, instead in PHRASES.items()]


if __name__ == "__main__":
    sys.exit(main())
