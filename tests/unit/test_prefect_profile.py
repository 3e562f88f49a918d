"""Which server the user has named is found as Prefect finds it, without importing Prefect."""

from pathlib import Path

import pytest

from thawline.prefect_profile import named_server


@pytest.fixture(autouse=True)
def nothing_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.chdir(tmp_path)


def test_where_nothing_is_named_there_is_none() -> None:
    assert named_server() is None


def test_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("PREFECT_API_URL=http://file.example/api\n")
    monkeypatch.setenv("PREFECT_API_URL", "http://variable.example/api")
    assert named_server() == "http://variable.example/api"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (".env", "OTHER=1\nexport PREFECT_API_URL='http://named.example/api'\n"),
        ("prefect.toml", '[api]\nurl = "http://named.example/api"\n'),
        ("pyproject.toml", '[tool.prefect.api]\nurl = "http://named.example/api"\n'),
        (
            "prefect/profiles.toml",
            'active = "here"\n[profiles.here]\nPREFECT_API_URL = "http://named.example/api"\n'
            '[profiles.there]\nPREFECT_API_URL = "http://other.example/api"\n',
        ),
    ],
)
def test_files_of_prefect_name_one(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert named_server() == "http://named.example/api"


def test_another_profile_can_be_chosen_and_one_without_a_server_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "profiles.toml"
    file.write_text(
        'active = "here"\n[profiles.here]\n[profiles.there]\nPREFECT_API_URL = "http://there.example/api"\n'
    )
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(file))
    assert named_server() is None
    monkeypatch.setenv("PREFECT_PROFILE", "there")
    assert named_server() == "http://there.example/api"


@pytest.mark.parametrize("name", ["prefect.toml", "pyproject.toml", "prefect/profiles.toml", ".env"])
def test_a_broken_file_names_none(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"\xff[api\nurl")
    assert named_server() is None
