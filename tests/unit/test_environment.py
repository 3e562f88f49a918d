"""State lies in one place, and no telemetry leaves the machine unless the user says so."""

import getpass
import os
import pwd
from pathlib import Path

import pytest

from thawline import environment
from thawline.exceptions import ConfigError


def test_home_is_dot_thawline_in_the_working_directory_unless_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THAWLINE_HOME", str(tmp_path / "elsewhere"))
    assert environment.home() == tmp_path / "elsewhere"
    monkeypatch.delenv("THAWLINE_HOME")
    assert environment.home() == tmp_path / ".thawline"


def test_telemetry_is_off_and_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "PREFECT_SERVER_ANALYTICS_ENABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    environment.prepare()
    assert os.environ["DO_NOT_TRACK"] == "true"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"


def test_prefect_s_database_lies_in_home_unless_a_server_is_named(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    environment.prepare_flows()
    assert os.environ["PREFECT_HOME"] == str(own_home / "prefect")
    assert (own_home / "prefect" / "prefect.db").is_file(), "its server would make it table by table"
    monkeypatch.delenv("PREFECT_HOME")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    environment.prepare()
    assert "PREFECT_HOME" not in os.environ


def test_a_home_that_cannot_be_made_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "file" / "prefect"))
    with pytest.raises(ConfigError, match=r"Cannot create the folder .*: Not a directory\. Set THAWLINE_HOME"):
        environment.prepare_flows()


def test_a_user_without_a_name_or_a_home_directory_gets_both(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")  # so that what is set below is taken back
        monkeypatch.delenv(name)

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    environment.prepare()
    assert Path.home() == own_home / "user"
    assert getpass.getuser() == f"uid-{os.getuid()}"
    assert not own_home.exists()


def test_a_home_in_the_home_directory_of_nobody_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THAWLINE_HOME", "~nobody-of-that-name/thawline")
    with pytest.raises(ConfigError, match=r"THAWLINE_HOME is ~nobody-of-that-name/thawline, .* absolute path\."):
        environment.home()
