"""The study's own record."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from thawline.config import SearchConfig
from thawline.exceptions import StudyError
from thawline.search import Recorder
from thawline.search.recorder import check_store
from thawline.search.study import Study
from thawline.search.trial import TrialResult
from thawline.tracking import MlflowStore, connect, start_study_run
from thawline.training import EpochResult


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (
            "https://me:secret@mlflow.example:8443/",
            "[The study in MLflow](https://mlflow.example:8443/#/experiments/3/runs/abc?workflowType=",
        ),
        ("sqlite:////data/mlflow.db", "`thawline ui` starts MLflow; the study's run is abc"),
    ],
)
def test_where_to_look_is_a_link_to_a_server_and_else_the_command_that_starts_one(
    uri: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(MlflowStore(uri, uri, "3", tmp_path), SearchConfig.build({"data": {"path": "photos"}}))
    run: Any = SimpleNamespace(run_id="abc")
    monkeypatch.setattr(recorder, "_mlflow", run)
    shown = recorder.where_to_look()
    assert expected in shown
    assert "report/report.html" in shown
    assert "secret" not in shown


def study_with(home: Path, run_id: str | None) -> Study:
    """A study with one complete trial."""
    config = SearchConfig.build({"data": {"path": "photos"}, "study": {"name": "pets"}})
    study = Study.open(home, "pets", config, {"resnet18": 5}, "f")
    (asked,) = study.draw(1, trials=10)
    study.report(asked.number, EpochResult(1, {"val/accuracy": 0.5}, 0))
    study.tell(TrialResult(asked.number, "complete", 0.5, 1, 1, 1.0, "", run_id, "studies/pets/epoch-0001.safetensors"))
    return study


def other_store(store: MlflowStore, tmp_path: Path) -> MlflowStore:
    return connect(f"sqlite:///{tmp_path}/other.db", home=store.home, experiment="thawline")


def test_a_study_is_not_resumed_in_another_store_than_it_is_recorded_in(store: MlflowStore, tmp_path: Path) -> None:
    study = study_with(store.home, None)
    study.keep_recorded_in(store.name, start_study_run(store, study="pets", params={}, tags={}))
    check_store(store, study)  # a positive control
    with pytest.raises(StudyError, match=rf"'pets' is recorded in {store.name}, .*--tracking-uri {store.name}, or"):
        check_store(other_store(store, tmp_path), study)


def test_a_trial_whose_run_is_in_no_store_at_hand_is_reported_at_the_start(store: MlflowStore, tmp_path: Path) -> None:
    run_id = start_study_run(store, study="pets", params={}, tags={})
    check_store(store, study_with(store.home, run_id))
    with pytest.raises(StudyError, match=r"The runs of the study 'pets' are no longer in sqlite:.*other\.db"):
        check_store(other_store(store, tmp_path), study_with(store.home, run_id))


def test_a_study_that_is_new_or_was_never_recorded_may_begin_anywhere(store: MlflowStore) -> None:
    check_store(store, study_with(store.home, None))


def test_a_home_that_was_moved_keeps_its_database_in_the_new_place(store: MlflowStore, tmp_path: Path) -> None:
    study = study_with(store.home, None)
    run_id = start_study_run(store, study="pets", params={}, tags={})
    study.keep_recorded_in("sqlite:////once/here.db", run_id)
    check_store(store, study)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://me:secret@mlflow.example/", "http://mlflow.example/#/experiments/3/runs/abc?workflowType="),
        ("postgresql://me:secret@db/mlflow", "http://127.0.0.1:5000/#/experiments/3/runs/abc?workflowType="),
        ("databricks", None),
    ],
)
def test_a_run_has_an_address_on_its_server_or_where_the_ui_shows_its_database(
    uri: str, expected: str | None, tmp_path: Path
) -> None:
    address = MlflowStore(uri, uri, "3", tmp_path).address("/runs/abc")
    assert (address or "").startswith(expected or "")
    assert (address is None) == (expected is None)
