"""What a flow says of a server that is gone."""

import logging
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.logging.handlers import APILogWorker
from prefect.settings import get_current_settings

from thawline.orchestration.server import connected


@pytest.fixture
def gone() -> Any:
    """A server that no longer answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    address = SimpleNamespace(api=f"http://127.0.0.1:{port}/api", password=None)
    return SimpleNamespace(wait=lambda: None, address=address)


@pytest.mark.parametrize("within", [True, False], ids=["within a flow", "positive control"])
def test_log_records_that_cannot_be_sent_leave_the_terminal_alone(
    gone: Any, within: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(gone):
        monkeypatch.setattr(get_current_settings().client, "max_retries", 0)  # as after Ctrl-C
        if not within:
            monkeypatch.setattr(logging, "raiseExceptions", True)
        APILogWorker.instance().send({"message": "trial 1: epoch 3 of 20"})
    shown = capfd.readouterr().err
    assert ("Error logging to API" in shown) is not within, shown
    assert logging.raiseExceptions, "other programs' logging is as before"
