"""Tables as spreadsheets, R and pandas write them: the same rows whatever separates their fields."""

from collections.abc import Callable
from pathlib import Path

import pytest

from thawline.config import DataConfig
from thawline.data import Manifest, given_texts, scan, texts_of
from thawline.exceptions import DataError

TEXTS = [(f"message number {n} of many", ("ham", "spam")[n % 2]) for n in range(40)]


def lines(separator: str, header: str | None = None) -> list[str]:
    first = f"text{separator}label" if header is None else header
    return [first, *(f"{text}{separator}{label}" for text, label in TEXTS)]


def read(path: Path) -> Manifest:
    return scan(DataConfig(path=path))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(content: list[str], name: str = "a.csv") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(content), encoding="utf-8")
        return path

    return make


Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("content", "said", "first_line"),
    [
        (lines(","), "", 2),
        (lines(";"), "fields are separated by semicolons", 2),
        (lines("\t"), "fields are separated by tabs", 2),
        (lines("|"), "fields are separated by vertical bars", 2),
        (["sep=;", *lines(";")], "the first line, sep=, is Excel's", 3),
        (['"sep=|"', *lines("|")], "the first line, sep=, is Excel's", 3),
        (["# exported, today, again", "# by hand", *lines(",")], "2 comment lines at the beginning skipped", 4),
        (["sep=;", "# by hand", *lines(";")], "1 comment line at the beginning skipped", 4),
        (["text, label", *(f'"{text}", {label}' for text, label in TEXTS)], "", 2),
        (["label, text", *(f'{y}, "{text}"' for text, y in TEXTS)], "spaces after them are removed", 2),
        (['"text","label"', *(f'"{n}","{t}","{y}"' for n, (t, y) in enumerate(TEXTS, 1))], "is named 1", 2),
    ],
)
def test_the_same_rows_are_read_whatever_separates_them(
    write: Write, content: list[str], said: str, first_line: int
) -> None:
    manifest = read(write(content))

    assert manifest.classes == ("ham", "spam")
    assert sorted(texts_of(manifest, manifest.rows)) == sorted(text for text, _ in TEXTS)
    assert min(int(row.path.split(":")[1]) for row in manifest.rows) == first_line
    assert said in manifest.layout
    assert manifest.problems == ()


def test_a_comma_in_the_header_of_a_file_with_tabs_separates_nothing(write: Write) -> None:
    content = ["the text, as it was sent\tlabel", *(f"{text}, and more\t{label}" for text, label in TEXTS)]
    manifest = read(write(content))

    assert manifest.classes == ("ham", "spam")
    assert manifest.table is not None
    assert manifest.table.text_column == "the text, as it was sent"


def test_a_quoted_text_behind_a_space_may_hold_the_separator(write: Write) -> None:
    content = ["label, text", *(f'{label}, "{text}, and more"' for text, label in TEXTS)]
    manifest = read(write(content))

    assert sorted(texts_of(manifest, manifest.rows)) == sorted(f"{text}, and more" for text, _ in TEXTS)
    assert manifest.bad == ()


def test_a_first_text_that_begins_with_a_hash_is_no_comment(write: Write) -> None:
    content = ["#fun at the party,ham", *(f"{text},{label}" for text, label in TEXTS)]

    assert len(read(write(content)).rows) == 41
    assert len(read(write(["#,text,label", *(f"{n},{t},{y}" for n, (t, y) in enumerate(TEXTS))])).rows) == 40


def test_one_short_header_among_few_rows_is_a_mistake_as_before(write: Write) -> None:
    with pytest.raises(DataError, match="1 of 1 text cannot be read"):
        read(write(["text,label", "a,b,ham"]))


def test_the_answers_for_a_table_of_excel_stand_beside_its_rows(write: Write) -> None:
    """They stood one row too low: ``sep=;`` was the first text."""
    assert given_texts(write(["sep=;", "text;label", "one;ham", "two;spam", "three;ham"])) == ["one", "two", "three"]
    assert given_texts(write(["sep=,", "message", "one", "two"], "b.csv")) == ["one", "two"]


def test_texts_with_commas_in_a_table_without_separators_are_one_column(write: Write) -> None:
    content = ["message", *(f"number {n}" + ", and so on" * (n % 4) for n in range(40))]

    assert len(given_texts(write(['"message"', *(f'"{text}"' for text in content[1:])]))) == 40
