"""MLflow's database is made whole, and one that cannot be opened is called what it is."""

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from thawline.databases import Condition
from thawline.exceptions import TrackingError
from thawline.tracking import MlflowStore, connect
from thawline.tracking.database import MLFLOW, unknown_revision
from thawline.tracking.mlflow import store as store_module


def change(database: Path, *statements: str) -> None:
    with closing(sqlite3.connect(database)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


@pytest.fixture(autouse=True)
def no_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """What will not get better by itself is said at once."""

    def sleep(seconds: float) -> None:
        raise AssertionError("it tries again")

    monkeypatch.setattr(store_module, "time", SimpleNamespace(sleep=sleep, time_ns=time.time_ns))


@pytest.fixture
def database(own_home: Path) -> Path:
    """One that holds an experiment: a copy, because MLflow remembers what it has opened."""
    opened(own_home / "used.db")
    with (
        closing(sqlite3.connect(own_home / "used.db")) as used,
        closing(sqlite3.connect(own_home / "mlflow.db")) as copy,
    ):
        used.backup(copy)
    return own_home / "mlflow.db"


def opened(database: Path) -> MlflowStore:
    return connect(f"sqlite:///{database}", home=database.parent, experiment="thawline")


def test_a_new_home_has_a_database_that_is_whole_and_holds_what_is_recorded(own_home: Path) -> None:
    store = opened(own_home / "mlflow.db")
    assert MLFLOW.condition(own_home / "mlflow.db") is Condition.WHOLE
    run = store.client.create_run(store.experiment_id)
    assert store.client.get_run(run.info.run_id).info.experiment_id == store.experiment_id
    default = store.client.get_experiment("0")
    assert default.name == "Default"


def test_a_database_whose_first_migration_was_killed_is_made_again(own_home: Path) -> None:
    own_home.mkdir()
    database = own_home / "mlflow.db"
    from mlflow.store.tracking.dbmodels.initial_models import Base
    from sqlalchemy import create_engine

    engine = create_engine(f"sqlite:///{database}")
    Base.metadata.create_all(engine)  # MLflow's first step
    engine.dispose()
    change(database, "CREATE TABLE _alembic_tmp_trace_tags (key)")
    os.utime(database, (0, 0))  # nobody is making it any more
    store = opened(database)
    assert store.client.create_run(store.experiment_id).info.status == "RUNNING"


def test_a_newer_database_is_called_newer_at_once(database: Path) -> None:
    change(database, "UPDATE alembic_version SET version_num = '0123456789ab'")
    with pytest.raises(TrackingError) as raised:
        opened(database)
    said = str(raised.value)
    assert f"was made by a newer version of MLflow than the installed {MLFLOW.version}" in said
    assert "revision 0123456789ab" in said
    assert "pip install --upgrade thawline mlflow" in said
    assert "db upgrade" not in said
    assert "--tracking-uri" not in said


def test_an_older_database_is_called_older_with_the_command_that_migrates_it(database: Path) -> None:
    older = next(revision for revision in sorted(MLFLOW.revisions) if revision != MLFLOW.head)
    change(database, f"UPDATE alembic_version SET version_num = '{older}'")  # noqa: S608
    with pytest.raises(TrackingError, match=rf"older version of MLflow .* mlflow db upgrade 'sqlite:///{database}'"):
        opened(database)


def test_a_registry_of_its_own_is_made_whole_too(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{own_home}/models.db")
    opened(own_home / "mlflow.db")
    assert MLFLOW.condition(own_home / "models.db") is Condition.WHOLE


@pytest.mark.parametrize(
    ("reason", "revision"),
    [
        ("Detected out-of-date database schema (found version ffffffffffff, but expected a). Take", "ffffffffffff"),
        ("Can't locate revision identified by 'ffffffffffff'", "ffffffffffff"),
        (f"Detected out-of-date database schema (found version {MLFLOW.head}, but expected a). Take", None),
        ("Detected out-of-date database schema (found version None, but expected a). Take", None),
        ("table runs already exists", None),
    ],
)
def test_what_mlflow_says_of_a_newer_server_side_database_is_told_from_one_that_is_being_made(
    reason: str, revision: str | None
) -> None:
    assert unknown_revision(reason) == revision
