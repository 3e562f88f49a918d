"""The values of a report: there and back as JSON, and filled from what the other parts of Thawline give."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from thawline.config import DataConfig
from thawline.data import Manifest, Problem, Row, report_json, scan
from thawline.exceptions import StudyError
from thawline.registry import PromotionOutcome, Verdict, calibrate
from thawline.registry.gate import Criterion, Outcome
from thawline.registry.scores import Scores
from thawline.reports import DataSummary, Promotion, StudyReport, TrialPoint


def test_a_report_comes_back_from_json_with_its_arrays_and_pictures(report: StudyReport) -> None:
    text = report.to_json()
    again = StudyReport.from_json(text)
    assert again.to_json() == text
    assert again.test is not None
    assert report.test is not None
    assert np.array_equal(again.test.probabilities, report.test.probabilities)
    assert again.test.labels.dtype == np.int64
    assert again.mistakes == report.mistakes
    assert again.trials == report.trials
    assert json.loads(text)["test"]["classes"] == ["cat", "dog", "owl"]


def test_a_study_of_which_nothing_else_is_known_is_a_report_too() -> None:
    report = StudyReport(study="pets", metric="loss", trials=())
    assert StudyReport.from_json(report.to_json()) == report


@pytest.mark.parametrize(
    "text", ["", "{}", '{"study": "x"}', '{"study": "x", "metric": "accuracy", "trials": [], "test": {}}']
)
def test_what_is_no_report_is_refused_with_a_word_of_why(text: str) -> None:
    with pytest.raises(StudyError, match=r"This version of Thawline cannot read the report.*run the search again"):
        StudyReport.from_json(text)


def test_a_value_that_is_not_finite_is_no_value() -> None:
    trial = TrialPoint(number=0, state="pruned", freeze_depth=0, learning_rate=1e-3, value=float("nan"))
    assert trial.value is None
    assert trial.model_copy(update={"value": 0.0}).value == 0.0
    assert TrialPoint(number=0, state="pruned", freeze_depth=0, learning_rate=1e-3, value=0.0).value == 0.0


def test_a_linear_probe_has_no_learning_rate_and_any_other_trial_has_one(make_probe: Callable[..., TrialPoint]) -> None:
    report = StudyReport(study="pets", metric="loss", trials=(make_probe(),))
    text = report.to_json()
    assert json.loads(text)["trials"][0]["learning_rate"] is None
    assert StudyReport.from_json(text) == report
    for rate, policy in ((None, "static"), (1e-3, "probe"), (0.0, "probe")):
        with pytest.raises(ValidationError, match=r"learning_rate|a learning rate, unless it is a linear probe"):
            make_probe(learning_rate=rate, others={"policy": policy})


def test_a_probe_curve_comes_back_from_json_by_freeze_depth() -> None:
    curves = {"resnet18": {2: 0.4, 5: 0.8}}
    report = StudyReport(study="pets", metric="accuracy", trials=(), probe_curves=curves)
    assert StudyReport.from_json(report.to_json()).probe_curves == curves


def test_a_report_of_before_there_were_probes_still_loads(report: StudyReport) -> None:
    old = json.loads(report.to_json())
    del old["probe_curves"]
    loaded = StudyReport.from_json(json.dumps(old))
    assert loaded == report.model_copy(update={"test": loaded.test})
    assert loaded.probe_curves == {}


@pytest.mark.parametrize("link", ["javascript:alert(1)", "file:///etc/passwd", "data:text/html,x"])
def test_a_link_leads_to_a_web_address_or_is_refused(link: str) -> None:
    with pytest.raises(ValidationError, match="link"):
        TrialPoint(number=0, state="complete", freeze_depth=0, learning_rate=1e-3, value=1.0, link=link)
    with pytest.raises(ValidationError, match="links"):
        StudyReport(study="pets", metric="loss", trials=(), links={"there": link})


def test_the_data_is_filled_from_the_report_of_a_scan() -> None:
    rows = (Row("cat/1.jpg", 0, "train", "a", None), Row("dog/1.jpg", 1, "test", "b", None))
    problems = (Problem("cat/2.jpg", "truncated", "bad"),)
    manifest = Manifest(Path("/data/pets"), ("cat", "dog"), rows, problems, "0123", "one folder of images per class")
    data = DataSummary.model_validate(report_json(manifest))
    assert (data.size("train"), data.size("validation"), data.size("test")) == (1, 0, 1)
    assert [(each.path, each.reason) for each in data.problems["bad"]] == [("cat/2.jpg", "truncated")]
    assert (data.kind, data.table) == ("images", None)


def test_the_data_of_a_table_of_texts_has_its_lengths_and_the_lines_of_its_problems(tmp_path: Path) -> None:
    lines = [f"{('ham', 'spam')[n % 2]}\tmessage number {n}" for n in range(60)]
    (tmp_path / "sms.tsv").write_text("\n".join(["label\ttext", *lines, "ham\t"]) + "\n", encoding="utf-8")
    manifest = scan(DataConfig(path=tmp_path / "sms.tsv", max_bad_fraction=0.5))
    summary = DataSummary.model_validate(report_json(manifest))
    data = DataSummary.model_validate_json(summary.model_dump_json())
    assert data.kind == "texts"
    assert sum(data.size(split) for split in ("train", "validation", "test")) == 60
    assert data.table is not None
    assert (data.table.median_length, data.table.longest) == (17, 17)
    assert [each.path for each in data.problems["bad"]] == ["sms.tsv:62"]


def test_the_promotion_is_filled_from_the_recorded_verdict() -> None:
    calibration = calibrate(np.array([[4.0, 0.0], [3.0, 0.0], [0.0, 5.0]]), np.array([0, 1, 1])).as_dict()
    scores = Scores({"accuracy": 0.9}, {}, (), (), np.empty(0), np.empty(0), ())
    verdict = Verdict(
        Outcome.HOLD, "nothing shows that it is better", (Criterion("gain", False, "-0.01", "more than 0"),)
    )
    outcome = PromotionOutcome("pets", "4", verdict, scores, "3", scores, calibration=calibration)
    promotion = Promotion.model_validate(json.loads(json.dumps(outcome.as_dict())))
    assert (promotion.model, promotion.version, promotion.outcome, promotion.judged_against) == (
        "pets",
        "4",
        "hold",
        "3",
    )
    assert not promotion.criteria[0].passed
    assert promotion.calibration is not None
    assert promotion.calibration.temperature == calibration["temperature"]
