"""`thawline predict`: files of images, or texts on the command line and in files."""

import io
import json
from pathlib import Path

import pytest
from colours import picture, register
from rich.console import Console
from typer.testing import CliRunner, Result

from thawline.cli import app
from thawline.cli.tables.models import predictions_table
from thawline.exceptions import DataError
from thawline.predict import predict_items
from thawline.registry import MlflowRegistry
from thawline.tracking import MlflowStore


@pytest.fixture
def store_of_texts(store: MlflowStore, text_folder: Path) -> MlflowStore:
    MlflowRegistry(store).set_alias("notes", "champion", register(store, text_folder, "notes"))
    return store


def test_an_argument_is_a_text_unless_it_names_a_file_whose_texts_are_then_classified(
    store_of_texts: MlflowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.txt").write_text("see you at lunch\n\nclaim your free phone\n")
    (tmp_path / "table.csv").write_text('text\n"are you at home now"\n')
    items = ["win a free prize now", "more.txt", "table.csv", "", "no\0file " + "x" * 5000]
    rows = predict_items("notes", items, tracking_uri=store_of_texts.uri, home=store_of_texts.home)
    assert [row["text"] for row in rows[:4]] == [
        "win a free prize now",
        "see you at lunch",
        "claim your free phone",
        "are you at home now",
    ]
    assert [row["class"] for row in rows[:4]] == ["spam", "ham", "spam", "ham"]
    assert rows[4] == {"text": "", "error": "the text is empty"}
    assert rows[0]["probability"] == max(rows[0]["probabilities"].values())


def test_the_table_shows_the_beginning_of_a_text_and_what_a_terminal_or_markup_would_take_literally() -> None:
    probabilities = {"ham": 0.9, "[spam]": 0.1}
    shown = {"class": "ham", "probability": 0.9, "probabilities": probabilities}
    terminal = io.StringIO()
    table = predictions_table([{"text": "[red]see\n you\x1b " + "and so on " * 20, **shown}])
    Console(width=200, file=terminal).print(table)
    text = terminal.getvalue()
    assert "[red]see you\\x1b and so on" in text
    assert "…" in text
    assert "[spam] 0.100" in text
    assert text.split()[:3] == ["text", "class", "probability"]


def test_a_model_of_images_takes_files_and_names_the_one_that_is_missing(
    store: MlflowStore, folder: Path, tmp_path: Path
) -> None:
    MlflowRegistry(store).set_alias("birds", "champion", register(store, folder))
    (tmp_path / "a.png").write_bytes(picture("green"))
    rows = predict_items("birds", [str(tmp_path)], tracking_uri=store.uri, home=store.home)
    assert [(row["path"], row["class"]) for row in rows] == [(str(tmp_path / "a.png"), "green")]
    with pytest.raises(DataError, match="nowhere"):
        predict_items("birds", [str(tmp_path / "nowhere")], tracking_uri=store.uri, home=store.home)


def test_a_column_of_a_table_is_named_on_the_command_line_and_a_folder_is_no_text(
    store_of_texts: MlflowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THAWLINE_HOME", str(store_of_texts.home))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mails").mkdir()
    (tmp_path / "mails" / "table.csv").write_text("message,content\nwin a prize now,see you at lunch\n")

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["predict", "notes", *arguments, "--json", "--tracking-uri", store_of_texts.uri])

    asked = invoke("mails/table.csv")
    assert isinstance(asked.exception, DataError)
    assert str(asked.exception).endswith("Set it: --text-column=NAME")
    answers = [invoke("mails/table.csv", f"--text-column={name}") for name in ("message", "content", "2")]
    assert [json.loads(answer.stdout)[0]["class"] for answer in answers] == ["spam", "ham", "ham"]
    refused = {"mails": "mails is a folder: give a table", "see you": "needs a table, but none was given"}
    for item, reason in refused.items():
        assert reason in str(invoke(item, "--text-column=message").exception)
    assert [row["class"] for row in json.loads(invoke("see you at lunch").stdout)] == ["ham"]


def test_a_file_that_holds_no_text_is_named(store_of_texts: MlflowStore, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"There is no text in .*empty\.txt"):
        predict_items("notes", [str(tmp_path / "empty.txt")], tracking_uri=store_of_texts.uri, home=store_of_texts.home)
