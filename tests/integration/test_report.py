"""The report of a study that was concluded, of one that was not, and of one that another machine concluded."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thawline.config import SearchConfig
from thawline.exceptions import StudyError
from thawline.reports import StudyReport
from thawline.search.study import Study
from thawline.search.trial_result import TrialResult
from thawline.study_report import write_report
from thawline.study_report.making import _part
from thawline.tracking import connect
from thawline.training import EpochResult

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("search")]


@pytest.fixture(scope="module")
def client(searched: Any) -> Any:
    return connect(searched.uri, home=searched.home, experiment="thawline").client


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<style.*?</style>|<[^>]+>", " ", page, flags=re.S).split())


def paths(client: Any, run_id: str, folder: str | None = None) -> set[str]:
    found: set[str] = set()
    for file in client.list_artifacts(run_id, folder):
        found |= paths(client, run_id, file.path) if file.is_dir else {file.path}
    return found


def test_a_concluded_study_has_its_report_beside_it_and_in_mlflow_with_figures_and_tables(
    searched: Any, client: Any
) -> None:
    outcome = searched.result.json
    html = Path(outcome["report"]).read_text(encoding="utf-8")
    shown = text_of(html)
    for run_id in (outcome["run_id"], *(row["run_id"] for row in outcome["trials"])):
        assert re.search(rf'href="http://127\.0\.0\.1:5000/#/experiments/\d+/runs/{run_id}\?', html)
    best = next(row for row in outcome["trials"] if row["trial"] == outcome["best_trial"])
    named = "The linear probe" if best["policy"] == "probe" else f"Freeze depth {best['freeze_depth']}"
    assert f"{named} of mobilenet_v3_small" in shown
    assert "circle/broken.jpg" in shown
    assert "thawline search" in shown
    files = paths(client, outcome["run_id"])
    assert {"report/report.html", "report/report.json"} <= files
    assert {"figures/thaw_line.svg", "figures/confusion.svg", "figures/roc.svg", "figures/reliability.svg"} <= files
    assert {"tables/test/classes.json", "tables/test/predictions.json"} <= files
    mistaken = outcome["test"]["accuracy"] < 1
    assert any(file.startswith("images/test~mistakes") and file.endswith(".png") for file in files) == mistaken
    note = client.get_run(outcome["run_id"]).data.tags["mlflow.note.content"]
    assert "freeze depth and the best val/accuracy there" in note
    assert f"/runs/{best['run_id']}?" in note


def test_every_trial_says_what_ran_and_keeps_its_history_and_its_best_checkpoint_as_a_model(
    searched: Any, client: Any
) -> None:
    outcome = searched.result.json
    parent = client.get_run(outcome["run_id"])
    for row in outcome["trials"]:
        run = client.get_run(row["run_id"])
        assert run.data.tags["thawline.command"] == parent.data.tags["thawline.command"]
        assert run.data.tags["thawline.command"].startswith("thawline search ")
        assert "history.csv" in paths(client, row["run_id"])
        if row["state"] == "complete":
            assert "tables/validation/confusion.json" in paths(client, row["run_id"])
    checkpoints = client.search_logged_models(
        [parent.info.experiment_id], filter_string="model_type = 'checkpoint'", max_results=50
    )
    assert {model.source_run_id for model in checkpoints} == {row["run_id"] for row in outcome["trials"]}
    measured = {metric.key: metric for model in checkpoints for metric in model.metrics}
    digest = parent.data.tags["thawline.data_digest"][:36]
    assert measured["val/accuracy"].dataset_digest == digest
    (packaged,) = client.search_logged_models(
        [parent.info.experiment_id], filter_string="model_type = 'image-classifier'"
    )
    tested = {metric.key: metric for metric in packaged.metrics}
    assert tested["test/accuracy"].value == pytest.approx(outcome["test"]["accuracy"])
    assert tested["test/accuracy"].dataset_digest == digest


def test_the_command_writes_the_page_again(
    searched: Any, thawline: Callable[..., Any], forked: Callable[..., Any], tmp_path: Path
) -> None:
    written = thawline("report", "shapes", "--out", tmp_path / "new" / "page.html", home=searched.home)
    assert written.code == 0, written.err
    assert "page.html" in written.out
    pages = [
        page.read_text(encoding="utf-8")
        for page in (tmp_path / "new" / "page.html", Path(searched.result.json["report"]))
    ]
    again, first = map(text_of, pages)
    assert again.partition("UTC")[2] == first.partition("UTC")[2], "all but the time"
    addresses = [set(re.findall('href="(http[^"]+/runs/[^"]+)"', page)) for page in pages]
    assert addresses[0] == addresses[1]
    unknown = forked("report", "shape", home=searched.home)
    assert unknown.code == 2
    assert "There is no study 'shape'" in unknown.err
    assert "shapes" in unknown.err


def test_what_another_machine_concluded_comes_from_mlflow(searched: Any, tmp_path: Path) -> None:
    here = Path(searched.result.json["report"]).with_name("report.json")
    aside = here.rename(tmp_path / "report.json")
    try:
        page = write_report(
            "shapes", tmp_path / "page.html", home=searched.home, storage=None, tracking_uri=searched.uri
        )
    finally:
        aside.rename(here)
    assert "Worst mistakes" in text_of(page.read_text(encoding="utf-8"))


def test_a_study_that_was_not_concluded_has_a_page_of_its_trials_and_says_what_is_missing(
    own_home: Path, tmp_path: Path
) -> None:
    config = SearchConfig.build({"data": {"path": "photos"}, "train": {"epochs": 1}})
    study = Study.open(own_home, "begun", config, {"resnet18": 5}, "f")
    (asked,) = study.draw(1, trials=5)
    study.report(asked.number, EpochResult(1, {"val/accuracy": 0.75, "val/loss": 1.0, "train/loss": 1.0}, 0))
    study.tell(TrialResult(asked.number, "complete", 0.75, 1, 1, 1.0, "", "run", "file"))
    shown = text_of(
        write_report("begun", tmp_path / "page.html", home=own_home, storage=None, tracking_uri=None).read_text()
    )
    assert "0.7500" in shown
    assert "is not finished" in shown
    with pytest.raises(StudyError, match="There is no study 'begin'"):
        write_report("begin", tmp_path / "page.html", home=own_home, storage=None, tracking_uri=None)


def test_a_report_that_an_earlier_version_left_is_ignored_but_the_trials_are_shown(
    own_home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = SearchConfig.build({"data": {"path": "photos"}, "train": {"epochs": 1}})
    study = Study.open(own_home, "old", config, {"resnet18": 5}, "f")
    (asked,) = study.draw(1, trials=5)
    study.tell(TrialResult(asked.number, "complete", 0.75, 1, 1, 1.0, "", "run", "file"))
    report = StudyReport(study="old", metric="accuracy", trials=(), created="long ago", importance={"freeze_depth": 1})
    here = own_home / "studies" / "old" / "report" / "report.json"
    here.parent.mkdir(parents=True)

    def shown() -> str:
        page = write_report("old", tmp_path / "page.html", home=own_home, storage=None, tracking_uri=None)
        return text_of(page.read_text(encoding="utf-8"))

    here.write_text(json.dumps(json.loads(report.to_json()) | {"costs": []}))
    assert "0.7500" in shown()
    expected = "the page shows only the trials: This version of Thawline cannot read the report: costs"
    assert expected in caplog.text
    caplog.clear()
    here.write_text(report.to_json())
    assert "0.7500" in shown()
    assert not caplog.text


def test_a_part_that_cannot_be_made_is_named_and_what_stands_for_it_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> int:
        raise RuntimeError("no memory")

    assert _part("explanations", fail, 7) == 7
    assert "the report lacks its explanations: no memory" in caplog.text
    assert _part("explanations", lambda: 3, 7) == 3


def test_a_study_of_two_backbones_shows_and_records_the_thaw_line_of_each(
    forked: Callable[..., Any],
    tmp_path: Path,
    draw_pictures: Callable[..., Path],
    prepared: Callable[[Path], Path],
    prefect: dict[str, str],
) -> None:
    (tmp_path / "two.yaml").write_text(
        "backbone: {weights: {mobilenet_v3_small: starter, squeezenet1_1: none}, image_size: 32}\n"
        "space: {backbone: {mobilenet_v3_small: [6, 6], squeezenet1_1: [4, 4]}}\n"
        "data: {workers: 1}\n"
        "train: {epochs: 1, device: cpu}\n"
        "tracking: {observe: false, system_metrics: false}\n"
        "promotion: {exports: []}\n"
    )
    ended = forked(
        *("search", draw_pictures(tmp_path / "shapes", 12), "--recipe", tmp_path / "two.yaml"),
        *("--trials", "6", "--study", "two", "--json"),
        home=prepared(tmp_path / "home"),
        **prefect,
    )
    assert ended.code == 0, ended.err
    assert "the report lacks" not in ended.err
    outcome = ended.json
    assert {row["backbone"] for row in outcome["trials"]} == {"mobilenet_v3_small", "squeezenet1_1"}
    shown = text_of(Path(outcome["report"]).read_text(encoding="utf-8"))
    assert "The best trial of each backbone, on validation" in shown
    assert shown.count("Layer groups, from the input on: features.0") == 2
    store = connect(f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}", home=tmp_path / "home", experiment="thawline")
    files = paths(store.client, outcome["run_id"])
    for name in ("mobilenet_v3_small", "squeezenet1_1"):
        assert {f"figures/{kind}/{name}.svg" for kind in ("thaw_line", "surface", "time", "memory")} <= files
