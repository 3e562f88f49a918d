"""``thawline doctor`` opens every store, makes nothing, and ends with findings whatever it meets."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from thawline import doctor
from thawline.cli import app
from thawline.databases import prefect_database
from thawline.doctor import Finding, diagnose
from thawline.tracking import MlflowStore


@pytest.fixture
def of(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Finding]:
    """The finding on a subject."""
    monkeypatch.setenv("PREFECT_HOME", str(own_home / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return lambda subject: next(finding for finding in diagnose(own_home) if finding.subject == subject)


def newer(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        connection.commit()


def test_a_home_that_is_not_there_is_not_made(own_home: Path, of: Callable[[str], Finding]) -> None:
    found = {finding.subject: finding for finding in diagnose(own_home)}
    assert {found[name].status for name in ("home", "MLflow's store", "studies", "Prefect's database")} == {"ok"}
    assert "not created yet" in found["home"].detail
    assert not own_home.exists()


def test_every_store_is_opened(store: MlflowStore, own_home: Path, of: Callable[[str], Finding]) -> None:
    (own_home / "optuna.journal").write_text("")
    prefect_database(own_home / "prefect", home=own_home)
    found = {finding.subject: finding for finding in diagnose(own_home)}
    assert {finding.subject for finding in found.values() if finding.status == "wrong"} == set()
    assert found["MLflow's store"].detail == f"{store.name} opens"
    assert found["registry"].detail == f"{store.name}: 0 models"
    assert found["studies"].detail == f"{own_home}/optuna.journal: 0"
    assert found["Prefect's database"].detail == f"{own_home}/prefect/prefect.db opens"


def test_stores_that_do_not_open_are_findings_with_what_to_do(
    store: MlflowStore, own_home: Path, of: Callable[[str], Finding], monkeypatch: pytest.MonkeyPatch
) -> None:
    newer(own_home / "mlflow.db")
    newer(prefect_database(own_home / "prefect", home=own_home))
    monkeypatch.setenv("THAWLINE_STORAGE", "postgresql://me:secret@127.0.0.1:1/studies")
    found = {finding.subject: finding for finding in diagnose(own_home)}
    for subject in ("MLflow's store", "Prefect's database"):
        assert found[subject].status == "wrong"
        assert "was made by a newer version of" in found[subject].detail
        assert "pip install --upgrade" in found[subject].advice
    assert found["studies"].status == "wrong"
    assert "cannot be opened" in found["studies"].detail
    assert "secret" not in str(found["studies"])


def test_a_named_server_that_does_not_answer_is_a_finding(
    of: Callable[[str], Finding], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    found = of("Prefect's server")
    assert found.status == "wrong"
    assert "http://127.0.0.1:1/api does not respond: " in found.detail
    assert "PREFECT_API_URL" in found.advice


def test_a_look_that_fails_is_a_finding_and_the_others_are_made(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> Finding:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(doctor, "_weights_cache", nobody)
    answer = CliRunner().invoke(app, ["doctor", "--json"])
    assert answer.exit_code == 1
    found = {row["subject"]: row for row in json.loads(answer.output)}
    assert found["weights cache"]["status"] == "wrong"
    assert "KeyError: 'getpwuid(): uid not found: 12345'" in found["weights cache"]["detail"]
    assert found["starter weights"]["status"] == "ok"
