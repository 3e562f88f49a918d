"""The study's own record."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from thawline.config import SearchConfig
from thawline.search import Recorder
from thawline.tracking import MlflowStore


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
