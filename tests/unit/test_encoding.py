"""A terminal that cannot show a character is shown something like it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHOWN = """
import sys
from thawline.cli._encoding import show_what_can_be_shown
from thawline.cli.tables.studies import leaderboard_table
from rich.console import Console
show_what_can_be_shown()
print("2 … 3 · a → b ● ≤ 4 é 図")
print("2 … 3", file=sys.stderr)
Console(width=60).print(leaderboard_table([], "accuracy", title="Study pets …"))
"""


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", "2 ... 3 * a -> b * <= 4 ? ?"),
        ("latin-1", "2 ... 3 · a -> b * <= 4 é ?"),
        ("utf-8", "2 … 3 · a → b ● ≤ 4 é 図"),
    ],
)
def test_what_an_encoding_lacks_is_replaced_and_the_rest_is_as_it_is(encoding: str, expected: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SHOWN],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        encoding=encoding,
        check=True,
    )
    assert ended.stdout.splitlines()[0] == expected
    assert ended.stderr == expected[: expected.index("3") + 1] + "\n"


@pytest.mark.parametrize(
    "locale", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_a_file_whose_name_cannot_be_shown_is_named_as_far_as_it_can(locale: dict[str, str], tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "thawline", "check", os.fsencode(tmp_path / "図 …")],
        env={**os.environ, **locale},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert f"{tmp_path}/" in ended.stderr.replace("\n", "")
