"""A home may have any name that a folder may have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from colours import picture, register

from thawline.cleaning import parse_kinds, survey
from thawline.config import TrackingConfig
from thawline.databases import PREFECT, Condition
from thawline.exceptions import TrackingError
from thawline.registry import MlflowRegistry, ModelName
from thawline.tracking import MlflowStore, connect, open_store, resolve_uri


def store_in(home: Path) -> MlflowStore:
    return connect(resolve_uri(TrackingConfig(), home), home=home, experiment="thawline")


@pytest.mark.parametrize("name", ["what?", "no. #1", "50% off", "ä; b & c=1"])
def test_everything_lies_in_the_home_and_is_found_again(
    name: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "homes" / name / "cache"))
    homes = [tmp_path / "homes" / name, tmp_path / "homes" / f"{name}2"]
    stores = [store_in(home) for home in homes]
    register(stores[0], folder, "birds")
    assert MlflowRegistry(stores[1]).names() == [], "homes share nothing"
    registry = MlflowRegistry(open_store(None, homes[0]))
    (answer,) = registry.load(ModelName("birds", None, "1")).predict([picture("green")])
    assert not isinstance(answer, str)
    assert answer.class_name == "green"
    assert sorted(path.name for path in (tmp_path / "homes").iterdir()) == [name, f"{name}2"]
    assert sorted(path.name for path in homes[0].iterdir() if not path.name.startswith((".", "mlflow.db-"))) == [
        "artifacts",
        "cache",
        "mlflow.db",
    ]
    assert list((tmp_path / "here").iterdir()) == []


def test_a_name_that_mlflow_would_unescape_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"50%25 off has %25 in its name, .* Set THAWLINE_HOME"):
        store_in(tmp_path / "50%25 off")
    assert list(tmp_path.iterdir()) == []


def test_clean_knows_the_size_of_what_lies_in_a_home_with_a_space(tmp_path: Path) -> None:
    store = store_in(tmp_path / "my home")
    tags = {"thawline.role": "trial", "thawline.study": "gone", "thawline.trial": "0", "thawline.state": "failed"}
    run_id = store.client.create_run(store.experiment_id, tags=tags).info.run_id
    store.client.log_text(run_id, "x" * 1000, "log.txt")
    store.client.set_terminated(run_id, "FAILED", 1000)
    (store.home / "optuna.journal").write_text("")
    (item,) = survey(store.home, older_than=60.0, kinds=parse_kinds(["runs"])).items
    assert item.bytes == 1000


def test_prefect_opens_its_database_in_a_home_with_a_question_mark(tmp_path: Path) -> None:
    home = tmp_path / "homes" / "what?"
    code = (
        "from thawline import environment; environment.prepare_flows(); "
        "import asyncio; from prefect.server.database import provide_database_interface; "
        "database = provide_database_interface(); print(asyncio.run(database.is_db_connectable())); "
        "asyncio.run(database.create_db())"
    )
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**variables, "THAWLINE_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout.strip()) == (0, "True"), ended.stderr
    assert [path.name for path in (tmp_path / "homes").iterdir()] == ["what?"]
    assert PREFECT.condition(home / "prefect" / "prefect.db") is Condition.WHOLE
