"""In a folder without a home, verbs that only look say so, name the nearest home, and make nothing."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from thawline.cli import app
from thawline.exceptions import ThawlineError

LOOKING = [
    ["leaderboard"],
    ["leaderboard", "pets"],
    ["report", "pets"],
    ["history", "pets"],
    ["rollback", "pets"],
    ["predict", "pets", "photo.png"],
    ["explain", "pets", "photo.png", "--out", "explained"],
    ["score", "pets", "photo.png", "--out", "scores.parquet"],
    ["promote", "pets"],
    ["promote", "pets", "--force", "--reason", "because"],
    ["serve", "pets", "--port", "0"],
    ["ui"],
]


@pytest.fixture
def wrong_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder below one in which a search was run."""
    monkeypatch.delenv("THAWLINE_HOME")
    (tmp_path / "project" / ".thawline").mkdir(parents=True)
    folder = tmp_path / "project" / "notebooks" / "first"
    folder.mkdir(parents=True)
    (folder / "photo.png").write_bytes(b"")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("arguments", LOOKING, ids=" ".join)
def test_a_verb_that_looks_names_the_nearest_home(arguments: list[str], wrong_folder: Path) -> None:
    ended = CliRunner().invoke(app, arguments)
    assert isinstance(ended.exception, ThawlineError), ended.output
    nearest = wrong_folder.parents[1] / ".thawline"
    assert str(ended.exception) == (
        f"No Thawline home here: {wrong_folder / '.thawline'} does not exist. The nearest is {nearest}: change to "
        f"{nearest.parent}, or set THAWLINE_HOME={nearest}."
    )
    assert [path.name for path in wrong_folder.iterdir()] == ["photo.png"]


def test_clean_says_so_too_and_has_nothing_to_remove(wrong_folder: Path) -> None:
    ended = CliRunner().invoke(app, ["clean", "--yes"])
    assert ended.exit_code == 0
    assert ended.output.startswith("No Thawline home here")
    assert ended.output.rstrip().endswith("There is nothing to remove.")
    assert [path.name for path in wrong_folder.iterdir()] == ["photo.png"]


def test_without_any_home_the_next_step_is_named(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, ["history", "pets"])
    assert "set THAWLINE_HOME to the home that it created; `thawline search DATA` creates one here." in str(
        ended.exception
    )
    assert not own_home.exists()
