"""The lint of phrases finds them where they hide: across lines, in names of tests, in any case."""

from pathlib import Path
from types import ModuleType

import pytest
from project_tools import load_tool

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("phrases")


def test_the_texts_of_the_project_have_none(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([]) == 0, capsys.readouterr().out


def test_every_phrase_is_found(tool: ModuleType) -> None:
    for phrases, instead in tool.PHRASES.items():
        for phrase in phrases.split("|"):
            assert (2, phrase.capitalize(), instead) in tool.find(f"Before.\n{phrase.capitalize()}, after."), phrase


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = 1\nThe search goes\non from there.", 2),
        ("    # The search goes\n    # on from there.", 1),
        ("def test_a_search_goes_on_from_there() -> None:", 1),
        ("It GOES ON.", 1),
    ],
)
def test_it_is_found_across_lines_in_comments_in_names_of_tests_and_in_capitals(
    tool: ModuleType, text: str, line: int
) -> None:
    assert [found.line for found in tool.find(text)] == [line]


@pytest.mark.parametrize("text", ["The search resumes.", "goes_on = True", "a cargo once", "An endearing dearth"])
def test_other_words_and_other_names_are_not_found(tool: ModuleType, text: str) -> None:
    assert tool.find(text) == []


def test_a_finding_is_printed_with_its_place_and_what_to_write(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("Trials train the head alone.\n")
    (tmp_path / "weights.bin").write_bytes(b"\xff anew")
    assert tool.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"{page}:1: 'head alone': write 'head only, linear probing'\n"
    page.write_text("Trials train only the head.\n")
    assert tool.main([str(tmp_path)]) == 0
