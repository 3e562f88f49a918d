"""A flow whose pages cannot be published still has its outcome."""

import httpx
import pytest

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
