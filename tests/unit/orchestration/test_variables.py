"""Runs elsewhere use the same servers, caches and switches; credentials are told to a cluster of one's own alone."""

import pytest

from thawline.orchestration.variables import places, places_and_credentials

PLACES = {
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
    "THAWLINE_STORAGE": "sqlite:///studies.db",
    "TORCH_HOME": "/weights/torch",
    "HF_HOME": "/weights/hub",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "true",
}
CREDENTIALS = {"AWS_SECRET_ACCESS_KEY": "secret", "HF_TOKEN": "secret", "MLFLOW_TRACKING_PASSWORD": "secret"}


def test_places_are_passed_on_and_credentials_only_to_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**PLACES, **CREDENTIALS, "HOME_SWEET_HOME": "no"}.items():
        monkeypatch.setenv(name, value)
    assert places().items() >= PLACES.items()
    assert not places().keys() & CREDENTIALS.keys()
    assert places_and_credentials().items() >= {**PLACES, **CREDENTIALS}.items()
    assert "HOME_SWEET_HOME" not in places_and_credentials()


def test_what_is_not_set_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", "")
    assert not places().keys() & PLACES.keys()
