"""From a folder of images to a registered champion, by the command line, looked at as a user would."""

import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thawline.tracking import connect

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("search")]


@pytest.fixture(scope="module")
def client(searched: Any) -> Any:
    return connect(searched.uri, home=searched.home, experiment="thawline").client


def trials(searched: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = searched.result.json["trials"]
    return rows


def test_the_search_ends_well_with_the_trials_that_were_asked_for(searched: Any) -> None:
    assert searched.result.code == 0, searched.result.err
    rows = trials(searched)
    assert sorted(row["trial"] for row in rows) == [0, 1, 2, 3, 4, 5]
    assert {row["freeze_depth"] for row in rows} == {4, 6}
    assert rows[0]["rank"] == 1


def test_the_first_trial_is_a_linear_probe_that_no_trial_has_to_beat_for_the_search_to_end_with_a_good_model(
    searched: Any, client: Any
) -> None:
    probe = next(row for row in trials(searched) if row["trial"] == 0)
    assert (probe["policy"], probe["freeze_depth"], probe["learning_rate"]) == ("probe", 6, None)
    assert (probe["state"], probe["epochs"]) == ("complete", 1)
    assert trials(searched)[0]["value"] >= probe["value"] > 0.5
    run = client.get_run(probe["run_id"])
    assert run.data.params["policy"] == "probe"
    assert "learning_rate" not in run.data.params
    assert run.data.metrics["best/accuracy"] == pytest.approx(probe["value"])


def test_probes_after_the_stored_layer_groups_are_in_mlflow_with_the_freeze_depth_as_the_step(
    searched: Any, client: Any
) -> None:
    curve = client.get_metric_history(searched.result.json["run_id"], "probe/accuracy")
    assert [point.step for point in curve] == sorted({point.step for point in curve})
    assert curve[-1].step == 6
    assert len(curve) > 1


def test_a_bad_trial_was_pruned_before_its_last_epoch_and_none_failed(searched: Any) -> None:
    pruned = [row for row in trials(searched) if row["state"] == "pruned"]
    assert pruned
    assert all(row["epochs"] < 3 for row in pruned)
    assert {row["state"] for row in trials(searched)} == {"complete", "pruned"}


def test_a_champion_stands_in_the_registry_with_its_test_metrics(searched: Any, client: Any) -> None:
    outcome = searched.result.json
    assert (outcome["model"], outcome["version"], outcome["promoted"]) == ("shapes", "1", True)
    assert outcome["test"]["accuracy"] >= 0.6
    version = client.get_model_version_by_alias("shapes", "champion")
    assert str(version.version) == "1"
    best = next(row for row in trials(searched) if row["trial"] == outcome["best_trial"])
    assert version.run_id == best["run_id"]
    run = client.get_run(version.run_id)
    assert run.data.metrics["test/accuracy"] == pytest.approx(outcome["test"]["accuracy"])
    assert version.tags["thawline.freeze_depth"] == str(best["freeze_depth"])
    accuracy = outcome["test"]["accuracy"]
    assert f"Test accuracy {accuracy:.3f}** (95 % interval 0." in version.description
    for said in ("3 classes", "`mobilenet_v3_small`", outcome["run_id"], "report/report.html"):
        assert said in version.description
    assert version.tags["thawline.data_digest"] in version.description
    assert "champion" in client.get_registered_model("shapes").description
    assert re.fullmatch(r"\d+ test images", version.tags["thawline.tested_on"])


def test_every_trial_is_a_child_run_and_pruned_ones_are_killed(searched: Any, client: Any) -> None:
    parent = client.get_run(searched.result.json["run_id"])
    assert parent.info.status == "FINISHED"
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    statuses = {child.info.run_id: child.info.status for child in children}
    expected = {"complete": "FINISHED", "pruned": "KILLED"}
    assert statuses == {row["run_id"]: expected[row["state"]] for row in trials(searched)}
    keys = {frozenset(child.data.params) for child in children if child.data.params["policy"] != "probe"}
    assert len(keys) == 1, "the same keys, or charts cannot compare"


def test_the_parent_run_tells_what_would_reproduce_the_study(searched: Any, client: Any) -> None:
    parent = client.get_run(searched.result.json["run_id"])
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    expected = {"config.yaml", "environment.yaml", "data.yaml", "leaderboard.csv", "outcome.json"}
    assert expected <= files
    assert any(name.startswith("summary-") for name in files)
    assert "## Study shapes" in parent.data.tags["mlflow.note.content"]
    assert "| 1 |" in parent.data.tags["mlflow.note.content"]
    assert "once the study is concluded" not in parent.data.tags["mlflow.note.content"], "it is"
    params = parent.data.params
    assert (params["study.seed"], params["study.trials"]) == ("0", "6")
    assert params["backbone.name"] == "mobilenet_v3_small"
    assert len(params) < 25, f"those that were chosen: {sorted(params)}"
    assert "None" not in params.values()
    datasets = parent.inputs.dataset_inputs
    assert {dataset.dataset.digest for dataset in datasets} == {parent.data.tags["thawline.data_digest"]}


def test_the_bad_file_is_named_with_its_reason_wherever_one_looks(searched: Any, client: Any) -> None:
    bad = searched.result.json["bad_files"]
    assert list(bad) == ["circle/broken.jpg"]
    assert bad["circle/broken.jpg"]
    run_id = searched.result.json["run_id"]
    assert client.get_run(run_id).data.tags["thawline.bad_files"] == "1"
    data = Path(client.download_artifacts(run_id, "data.yaml")).read_text()
    assert "circle/broken.jpg" in data
    assert "warning: circle/broken.jpg" in searched.result.err


def test_prefect_holds_a_task_run_for_each_trial_and_both_artifacts(searched: Any) -> None:
    with sqlite3.connect(searched.home / "prefect" / "prefect.db") as database:
        names = {name for (name,) in database.execute("select name from task_run")}
        keys = {key for (key,) in database.execute("select key from artifact")}
        states = dict(database.execute("select name, state_name from task_run").fetchall())
    steps = {name.rpartition("-")[0] for name in names}
    assert {"read data", "check backbones", "prepare inputs", "register and judge", "promote"} <= steps
    for row in trials(searched):
        what = "linear probe" if row["policy"] == "probe" else f"depth={row['freeze_depth']} lr="
        name = next(name for name in names if name.startswith(f"trial-{row['trial']:02d} {what}"))
        assert states[name] == ("Pruned" if row["state"] == "pruned" else "Complete")
    assert {"leaderboard", "decision"} <= keys


def test_the_same_command_again_trains_nothing_and_registers_nothing_new(
    searched: Any, client: Any, forked: Callable[..., Any]
) -> None:
    again = forked("search", searched.data, *searched.options, "--json", home=searched.home)
    assert again.code == 0, again.err
    assert [row["run_id"] for row in again.json["trials"]] == [row["run_id"] for row in trials(searched)]
    assert again.json["promoted"] is False
    assert "already the champion" in again.json["reason"]
    assert len(client.search_model_versions("name = 'shapes'")) == 1


def test_the_leaderboard_and_predict_answer_from_the_store(searched: Any, forked: Callable[..., Any]) -> None:
    board = forked("leaderboard", "--json", home=searched.home).json
    assert board["study"] == "shapes"
    assert [row["trial"] for row in board["trials"]] == [row["trial"] for row in trials(searched)]
    folder = searched.data / "stripes"
    predictions = forked("predict", "shapes", folder, "--json", home=searched.home).json
    assert len(predictions) == 24
    assert sum(prediction["class"] == "stripes" for prediction in predictions) >= 16
    assert all(abs(sum(prediction["probabilities"].values()) - 1) < 1e-3 for prediction in predictions)


def test_predicting_a_broken_file_names_it_and_exits_with_one(searched: Any, forked: Callable[..., Any]) -> None:
    broken, good = searched.data / "circle" / "broken.jpg", searched.data / "circle" / "circle-00.png"
    answer = forked("predict", "shapes@champion", broken, good, "--json", home=searched.home)
    assert answer.code == 1
    assert "error" in answer.json[0]
    assert answer.json[1]["class"] in ("circle", "square", "stripes")


def test_a_missing_model_or_alias_is_one_clear_message(searched: Any, forked: Callable[..., Any]) -> None:
    answer = forked("predict", "dogs", searched.data, home=searched.home)
    assert (answer.code, answer.out) == (2, "")
    assert "No model 'dogs'" in answer.err
    assert "Registered: shapes." in answer.err
    assert "Traceback" not in answer.err


def test_other_settings_under_the_same_study_name_are_refused(searched: Any, forked: Callable[..., Any]) -> None:
    answer = forked("search", searched.data, *searched.options, "--batch-size", "8", home=searched.home)
    assert answer.code == 2
    assert "train.batch_size=16" in answer.err
    assert "Traceback" not in answer.err


def test_outcome_on_the_parent_run_is_what_was_printed(searched: Any, client: Any) -> None:
    path = client.download_artifacts(searched.result.json["run_id"], "outcome.json")
    assert json.loads(Path(path).read_text())["version"] == "1"
