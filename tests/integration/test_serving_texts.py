"""`thawline serve` with a model of texts, as a process: over HTTP, by the commands, and on its page."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from browsers import needs_browser, open_browser
from colours import register
from commands import Forks
from notes import ADVERTISEMENTS, FRIENDLY, make_text_package
from servers import forked_server

from thawline.registry import MlflowRegistry
from thawline.tracking import connect

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("serving_texts")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, prepared: Callable[[Path], Path]) -> Path:
    """With a champion that tells advertisements from notes among friends."""
    home = prepared(tmp_path_factory.mktemp("texts") / "home")
    store = connect(f"sqlite:///{home}/mlflow.db", home=home, experiment="thawline")
    MlflowRegistry(store).set_alias("notes", "champion", register(store, make_text_package(home / "package"), "notes"))
    return home


@pytest.fixture(scope="module")
def port(home: Path, environment_of: Callable[[Path], dict[str, str]], first_process: Forks) -> Iterator[int]:
    with forked_server("notes", environment_of(home), first_process, home.parent) as port:
        yield port


def post(port: int, path: str, body: bytes, content_type: str) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": content_type})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def test_a_text_is_answered_over_http_in_every_form(port: int) -> None:
    texts = [FRIENDLY[0], ADVERTISEMENTS[0]]
    answer = post(port, "/predict", json.dumps({"texts": texts}).encode(), "application/json")
    assert [each["label"] for each in answer["predictions"]] == ["ham", "spam"]
    plain = post(port, "/predict", texts[1].encode(), "text/plain")
    (alone,), together = plain["predictions"], answer["predictions"][1]
    assert alone["label"] == "spam"
    assert [each["label"] for each in alone["top"]] == [each["label"] for each in together["top"]]
    for key in ("probability", "probabilities"):
        assert alone[key] == pytest.approx(together[key])
    records = json.dumps({"dataframe_records": [{"text": text} for text in texts]}).encode()
    rows = post(port, "/invocations", records, "application/json")["predictions"]
    assert [row["class"] for row in rows] == ["ham", "spam"]


def test_the_commands_classify_texts_given_in_words_and_in_a_table(
    home: Path, thawline: Callable[..., Any], forked: Callable[..., Any], tmp_path: Path
) -> None:
    answer = thawline("predict", "notes", ADVERTISEMENTS[1], home=home)
    assert answer.code == 0, answer.err
    assert [word for word in ("text", "spam", ADVERTISEMENTS[1]) if word not in answer.out] == []
    table = tmp_path / "texts.tsv"
    table.write_text("text\n" + "\n".join([*FRIENDLY, *ADVERTISEMENTS]) + "\n")
    scored = forked("score", "notes", table, "--out", tmp_path / "out.parquet", home=home)
    assert scored.code == 0, scored.err
    assert list(pd.read_parquet(tmp_path / "out.parquet")["class"]) == ["ham"] * 3 + ["spam"] * 3


@needs_browser
def test_the_page_of_a_model_of_texts_has_a_field_to_write_in(port: int, tmp_path: Path) -> None:
    with open_browser(tmp_path / "browser", width=900) as browser:
        browser.open(f"http://127.0.0.1:{port}/")
        browser.wait_for_text("notes, version 1")
        assert "Drop images here" not in browser.text
        (field,) = browser.find("textarea")
        field.send_keys(ADVERTISEMENTS[0])
        browser.click_text("Classify", within="button")
        browser.wait(lambda _: [each.text for each in browser.find("h2")] == ["spam"])
        assert [quote.text for quote in browser.find("blockquote")] == [ADVERTISEMENTS[0]]
        assert {row.text.split("\n")[0] for row in browser.find(".row")} == {"ham", "spam"}
