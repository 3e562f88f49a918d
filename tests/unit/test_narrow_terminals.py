"""What the verbs print on a terminal of 80 columns, as people like to read it."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console
from rich.table import Table

from thawline import backbones
from thawline.cli import _shared
from thawline.cli._shared import next_steps, show, show_table
from thawline.cli.tables.backbones import backbones_table
from thawline.cli.tables.home import findings_table
from thawline.doctor import Finding

WIDTH = 80
PATH = "/home/somebody/projects/photographs/.thawline/studies/birds-mobilenet_v3_small-0f74ae/report/report.html"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The lines that a terminal was told to show."""
    out = io.StringIO()
    monkeypatch.setattr(_shared, "console", lambda: Console(file=out, width=WIDTH, force_terminal=True, no_color=True))
    monkeypatch.setattr(_shared, "program", lambda: "thawline")
    return lambda: [line.rstrip() for line in out.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()]


def table(*rows: tuple[str, ...]) -> Table:
    made = Table(box=None, pad_edge=False)
    for name in ("subject", "found", "what to do"):
        made.add_column(name, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def words(lines: list[str]) -> set[str]:
    return {word for line in lines for word in line.split()}


def test_a_sentence_is_broken_between_words_and_a_path_never(shown: Callable[[], list[str]]) -> None:
    sentence = f"There is no champion yet, but the challenger does not beat the majority class {PATH} tells"
    show(sentence)
    lines = shown()
    assert len(lines) > 2
    assert words(lines) == set(sentence.split())
    assert all(len(line) <= WIDTH or line == PATH for line in lines)


def test_what_looks_like_markup_is_shown_as_it_is(shown: Callable[[], list[str]]) -> None:
    show("photos [red]/a[/red].png")
    assert shown() == ["photos [red]/a[/red].png"]


def test_columns_give_way_to_each_other_before_a_word_is_broken(shown: Callable[[], list[str]]) -> None:
    rows = [("Kolmogorov-Smirnov, 32 principal components", "/var/lib/optuna.journal", "a word or two " * 5)]
    show_table(table(*rows))
    lines = shown()
    assert max(map(len, lines)) <= WIDTH
    assert words(lines) >= {word for row in rows for cell in row for word in cell.split()}


def test_where_words_do_not_fit_the_longest_alone_is_broken(shown: Callable[[], list[str]]) -> None:
    show_table(table(("activations", PATH, "extraordinarily")))
    lines = shown()
    assert max(map(len, lines)) <= WIDTH
    assert {"activations", "extraordinarily"} <= words(lines)
    assert PATH in "".join(line[13:].split(" ")[0] for line in lines[1:])


def test_a_table_that_fits_is_as_wide_as_it_needs(shown: Callable[[], list[str]]) -> None:
    show_table(table(("torch", "2.15.0", "")))
    assert shown() == ["subject  found   what to do", "torch    2.15.0"]


def test_next_steps_stand_beside_their_commands_or_below_where_that_is_too_wide(
    shown: Callable[[], list[str]],
) -> None:
    next_steps({"serve photos": "answer requests over HTTP", "ui": "compare the trials"})
    next_steps({f"report {'long' * 10}": "the study as one page that needs no network"})
    assert shown() == [
        "",
        "Next",
        "  thawline serve photos  answer requests over HTTP",
        "  thawline ui            compare the trials",
        "",
        "Next",
        f"  thawline report {'long' * 10}",
        "      the study as one page that needs no network",
    ]


def test_a_backbone_takes_one_line_and_its_layer_groups_stand_where_there_is_room(
    shown: Callable[[], list[str]],
) -> None:
    infos = [backbones.describe(name) for name in ("resnet18", "resnet152")]
    show_table(backbones_table(infos, WIDTH))
    assert [line.split()[1] for line in shown() if "resnet" in line] == ["resnet18", "resnet152"]
    assert not any("layer1" in line for line in shown())
    assert len(shown()) == 7, "title, head and frame beside the two"
    show_table(backbones_table(infos, 160))
    assert any("layer1" in line for line in shown())


def test_the_doctor_begins_with_what_is_wrong(shown: Callable[[], list[str]]) -> None:
    show_table(findings_table([Finding("a", "ok", "x"), Finding("b", "warning", "x"), Finding("c", "wrong", "x")]))
    assert [line.split()[1] for line in shown()[1:]] == ["c", "b", "a"]
