"""A flow whose pages, or whose end, cannot be reported still has its outcome."""

from contextlib import nullcontext
from types import SimpleNamespace

import httpx
import pytest

from thawline.config import SearchConfig
from thawline.flows import retrain as module
from thawline.orchestration import reach
from thawline.search.retraining import RetrainOutcome


def test_a_retraining_whose_page_cannot_be_published_has_not_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost(**options: object) -> None:
        raise httpx.ReadTimeout("the server does not respond")

    monkeypatch.setattr(reach._Reach, "lost", False)
    monkeypatch.setattr("thawline.flows.retrain.create_markdown_artifact", lost)
    module.publish(RetrainOutcome("birds", "the challenger is better", None))
    assert reach._Reach.lost
    assert len(caplog.records) == 1


def test_a_retraining_whose_final_state_cannot_be_reported_has_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = RetrainOutcome("birds", "nothing has changed", None)
    for step in ("check_config", "check_blocks", "data_task", "model_of", "publish", "tell"):
        monkeypatch.setattr(f"thawline.flows.retrain.{step}", lambda *_: None)
    for block in ("alone", "already_checked"):
        monkeypatch.setattr(f"thawline.flows.retrain.{block}", lambda *_: nullcontext())
    monkeypatch.setattr("thawline.flows.retrain.plan_task", lambda *_: SimpleNamespace(reason="none", config=None))
    monkeypatch.setattr("thawline.flows.retrain.conclude_task", lambda *_: outcome)
    monkeypatch.setattr(reach._Reach, "lost", False)

    def run(*, completed: bool) -> RetrainOutcome:
        if completed:
            module.retrain.fn(SearchConfig.build({"data": {"path": "birds"}}))
        raise httpx.ConnectError("connection refused")

    assert reach.value_of(lambda: run(completed=True)) is outcome
    with pytest.raises(httpx.ConnectError):
        reach.value_of(lambda: run(completed=False))  # a control
