"""What a person reads about a data folder."""

import json
from pathlib import Path

import pytest
from rendered import rendered

from thawline.cli.tables.data import data_report
from thawline.config import DataConfig
from thawline.data import Manifest, Problem, Row, report_json, scan


@pytest.fixture
def manifest() -> Manifest:
    rows = tuple(
        Row(f"{name}/{number}.png", label, split, f"{number:032x}", None)
        for split in ("test", "train", "validation")
        for label, name in enumerate(("cat", "[red]dog"))
        for number in range({"test": 2, "train": 1500, "validation": 3}[split])
    )
    problems = (
        *(Problem(f"cat/bad{number:02}.png", "the file is empty", "bad") for number in range(12)),
        *(Problem(f"cat/note{number:02}.txt", "not an image by its extension", "stray") for number in range(12)),
        Problem("cat/\x1b[31m\n\udcff.png", "the same image as cat/1.png", "duplicate"),
    )
    return Manifest(Path("/photos"), ("cat", "[red]dog"), rows, problems, "d" * 32, "one folder per class")


def test_the_text_names_classes_counts_problems_and_digest(manifest: Manifest) -> None:
    text = rendered(data_report(manifest))

    lines = [line.split() for line in text.splitlines()]
    assert ["cat", "1,500", "3", "2", "1,505", "50.0%"] in lines
    assert ["all", "3,000", "6", "4", "3,010"] in lines
    assert "[red]dog" in text  # a file name is not markup
    assert "Cannot be decoded, skipped: 12" in text
    assert all(f"cat/bad{number:02}.png: the file is empty" in text for number in range(12))
    assert "Not read: 12" in text
    assert "cat/note09.txt" in text
    assert "cat/note10.txt" not in text
    assert "and 2 more" in text
    assert "d" * 32 in text
    assert max(map(len, text.splitlines())) <= 100


def test_file_names_cannot_steer_the_terminal(manifest: Manifest) -> None:
    text = rendered(data_report(manifest))

    assert "\x1b" not in text
    assert r"cat/\x1b[31m\n\udcff.png" in text


def test_the_json_holds_everything_in_plain_types(manifest: Manifest) -> None:
    content = json.loads(json.dumps(report_json(manifest)))

    assert content["splits"] == {"train": 3000, "validation": 6, "test": 4}
    assert content["classes"]["cat"] == {"train": 1500, "validation": 3, "test": 2}
    assert content["digest"] == "d" * 32
    assert len(content["problems"]["stray"]) == 12
    assert content["problems"]["leak"] == []
    assert content["problems"]["bad"][0] == {"path": "cat/bad00.png", "reason": "the file is empty"}


def test_real_photographs_are_read_in_other_processes(shared: Path) -> None:
    manifest = scan(DataConfig(path=shared / "data" / "clothing" / "validation"))

    assert len(manifest.rows) == 341
    assert len(manifest.classes) == 10
    assert not [problem for problem in manifest.problems if problem.kind != "class"]
    assert manifest.counts()["t-shirt"]["train"] > 40
    assert "t-shirt" in rendered(data_report(manifest))
