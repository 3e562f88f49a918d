"""The description of a version says what it is, how good it is, on what, and where to read more."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from thawline.registry import card as cards
from thawline.registry.gate import Outcome, Verdict
from thawline.registry.promotion_outcome import PromotionOutcome
from thawline.registry.scores import Scores
from thawline.tracking import MlflowStore

STORE = MlflowStore("sqlite:///mlflow.db", "sqlite:///mlflow.db", "3", Path("home"))
TRAINED = {"thawline.backbone": "resnet_18", "thawline.freeze_depth": "2", "thawline.learning_rate": "0.001"}


def outcome() -> PromotionOutcome:
    labels, said = ("cat",) * 8 + ("dog",) * 8, ("cat",) * 8 + ("dog",) * 4 + ("cat",) * 4
    scores = Scores({"accuracy": 0.75}, {}, labels, said, np.zeros(16), np.ones(16), ("cat", "dog"))
    return PromotionOutcome("pets", "2", Verdict(Outcome.HOLD, "not better"), scores, "1", None, run_id="abc")


def test_a_card_has_the_accuracy_with_its_interval_the_data_and_links() -> None:
    card = cards.version_card(STORE, outcome(), TRAINED | {"thawline.data_digest": "13695b"}, "parent")
    assert "2 classes: `resnet_18`, fine-tuned with freeze depth 2 and learning rate 0.001." in card
    assert "**Test accuracy 0.750** (95 % interval 0.505 to 0.898, 16 images)." in card, "Wilson's"
    assert "Verdict: hold, not better." in card
    assert "Data digest: `13695b`." in card
    assert "(#/experiments/3/runs/abc?workflowType=machine_learning)" in card
    assert "(#/experiments/3/runs/parent/artifacts/report/report.html?workflowType=machine_learning)" in card


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({**TRAINED, "thawline.policy": "probe"}, "a linear probe on `resnet_18`."),
        ({**TRAINED, "thawline.quantised_from": "1"}, "learning rate 0.001, in int8, quantised from version 1."),
    ],
)
def test_a_card_says_what_is_special_about_a_version(tags: dict[str, str], said: str) -> None:
    card = cards.version_card(STORE, outcome(), tags, None)
    assert said in card
    assert "report.html" not in card, "it has no study"


def test_a_long_reason_is_cut_and_the_links_stay() -> None:
    """MLflow limits a description to 5,000 characters, and PostgreSQL refuses a longer one."""
    verdict = Verdict(Outcome.HOLD, "the champion could not be scored (" + "_" * 20_000)
    card = cards.version_card(STORE, replace(outcome(), verdict=verdict), TRAINED, "parent")
    assert len(card) < 5000
    assert "could not be scored" in card
    assert "\\_…." in card
    assert "(#/experiments/3/runs/abc?" in card


def test_an_accuracy_is_known_of_a_version_that_was_judged() -> None:
    assert cards.tested_of({"thawline.study": "s"}) is None
    assert cards.tested_of({"test/accuracy": "0.5"}) == {"accuracy": 0.5, "on": "the test split"}
    assert cards.tested_of({"test/accuracy": "0.5", "thawline.tested_on": "8 test texts"}) == {
        "accuracy": 0.5,
        "on": "8 test texts",
    }
