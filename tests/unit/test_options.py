"""Options that are settings of a recipe are written once, and ``--help`` shows every word of them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from thawline.cli import app, main
from thawline.cli._settings import Setting, Settings, takes_settings
from thawline.cli.studies import OF_RETRAIN, OF_SEARCH
from thawline.config import SearchConfig
from thawline.config.fields import FIELDS, help_of


def plain(text: str) -> str:
    """Printed help without frames, or Markdown without the marks of code: words with one space between them."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text.replace("`", "")).split())


def printed(*verb: str, width: int = 120) -> str:
    """What the command itself prints."""
    kept = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "GITHUB_ACTIONS")}
    answer = subprocess.run(
        [sys.executable, "-m", "thawline", *verb, "--help"],
        env={**kept, "COLUMNS": str(width)},
        capture_output=True,
        text=True,
        check=True,
    )
    return answer.stdout


@pytest.mark.parametrize("width", [80, 200])
def test_help_keeps_the_place_of_a_class_in_a_path(width: int) -> None:
    shown = printed("search", width=width)
    assert "DATA/<class>/…" in shown
    assert "DATA//" not in shown


@pytest.mark.parametrize("verb", ["search", "retrain", "check", "deploy", "promote"])
def test_help_names_every_kind_of_data_wherever_data_are_given(verb: str) -> None:
    shown = plain(printed(verb, width=400))
    for kind in (
        "DATA/<class>/…",
        "table of labelled images or texts",
        ".json, .parquet, .xlsx",
        "Hub",
        "WebDataset",
        ".zip",
    ):
        assert kind in shown, f"{verb}: {kind}"
    assert ("s3://" in shown) == (verb != "promote")


@pytest.mark.parametrize(("verb", "settings"), [("search", OF_SEARCH), ("retrain", OF_RETRAIN)])
def test_help_says_of_an_option_what_its_field_says_and_its_default(verb: str, settings: tuple[Setting, ...]) -> None:
    lines = [plain(line) for line in printed(verb, width=400).splitlines()]
    for setting in settings:
        (line,) = [line for line in lines if line.startswith(f"{setting.option} ")]
        assert line.endswith(" " + plain(help_of(setting.key)))
        default = FIELDS[setting.key].default
        if default is not None and not isinstance(default, bool):
            assert line.endswith(f"; default: {default}.")


def _verbs(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from _verbs(command, (*path, name))


VERBS = dict(_verbs(get_command(app)))


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_shows_every_word_of_every_option(verb: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    shown = plain(CliRunner().invoke(app, [*verb, "--help"]).stdout)
    for parameter in VERBS[verb].params:
        help_text = getattr(parameter, "help", None)
        if help_text and not parameter.hidden:
            assert plain(help_text) in shown


def test_the_check_of_every_word_notices_what_markdown_eats(monkeypatch: pytest.MonkeyPatch) -> None:
    other = typer.Typer(rich_markup_mode="markdown")

    @other.command()
    def look(data: Annotated[str, typer.Option(help="Folder DATA/<class>/…")] = "") -> None:
        """Look at a folder."""

    shown = plain(CliRunner().invoke(other, ["--help"]).stdout)
    assert "Folder DATA//…" in shown


@pytest.fixture
def given() -> Any:
    """Calls a verb with options, and returns the settings that it gets."""
    seen: list[Settings] = []
    small = typer.Typer()

    @small.command()
    @takes_settings(*OF_SEARCH)
    def verb(data: str, *, settings: Settings, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
        """Do nothing."""
        seen.append(settings)

    def call(*options: str) -> Settings:
        answer = CliRunner().invoke(small, ["photos", *options])
        assert answer.exit_code == 0, answer.output
        return seen.pop()

    return call


def test_a_verb_gets_the_settings_that_were_given_and_no_others(given: Any) -> None:
    assert given() == {}
    assert given("--json", "--epochs", "3", "--exact", "--timeout", "1.5") == {
        "train.epochs": 3,
        "train.exact": True,
        "study.timeout_minutes": 1.5,
    }


@pytest.mark.parametrize(("text", "value"), [("2", 2), ("auto", "auto")])
def test_an_option_of_several_types_is_read_as_a_recipe_is(text: str, value: object, given: Any) -> None:
    settings = given("--workers", text)
    assert settings == {"study.workers": value}
    assert SearchConfig.build({"data": {"path": "photos"}, "study": {"workers": value}}).study.workers == value


def test_an_option_that_takes_text_keeps_it(given: Any) -> None:
    assert given("--model", "2024", "--weights", "none", "--study", "on") == {
        "promotion.model": "2024",
        "backbone.weights": "none",
        "study.name": "on",
    }


def test_a_number_that_is_none_is_refused_by_the_command_line() -> None:
    answer = CliRunner().invoke(app, ["search", "photos", "--epochs", "many"])
    assert answer.exit_code == 2
    assert "--epochs" in answer.output


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["--freeze-depth", "3"], "--freeze-depth. Did you mean --set 'space.freeze_depth=[3,3]'?"),
        (["--lr", "1e-3"], "--lr. Did you mean --set 'space.learning_rate=[1e-3,1e-3]'?"),
        (["--bs", "64"], "--bs. Did you mean --batch-size 64?"),
        (["--weight-decay"], "--weight-decay. Did you mean --set train.weight_decay=VALUE or"),
        (["--nonsense", "1"], "--nonsense (Possible options: --seed)"),
    ],
)
def test_an_option_that_is_a_setting_is_answered_with_how_to_set_it(
    typed: list[str], meant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["thawline", "search", "photos", *typed])
    monkeypatch.setattr("thawline.stopping.listen", lambda _: None)
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert meant in plain(capsys.readouterr().err)


def test_a_verb_without_settings_suggests_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["thawline", "history", "birds", "--freeze-depth", "3"])
    monkeypatch.setattr("thawline.stopping.listen", lambda _: None)
    with pytest.raises(SystemExit):
        main()
    assert "--set" not in capsys.readouterr().err
