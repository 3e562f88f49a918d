"""What ships: the wheel holds flows, recipes and weights; the commands that README and the docs show exist."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from thawline.cli import app

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_wheel_holds_every_module_recipe_and_weight(tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-c",
            "from setuptools.build_meta import build_wheel; import sys; build_wheel(sys.argv[1])",
            tmp_path,
        ],
        cwd=_copy(tmp_path / "source"),
        check=True,
        capture_output=True,
    )
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
    source = {
        f"thawline/{path.relative_to(ROOT / 'src' / 'thawline').as_posix()}"
        for path in (ROOT / "src" / "thawline").rglob("*")
        if path.suffix in {".py", ".yaml", ".json", ".safetensors", ".md", ".html", ".typed"} or path.name == "py.typed"
    }
    source |= {f"thawline/flows/{path.name}" for path in (ROOT / "flows").glob("*.py")}
    assert source <= shipped
    assert any(name.endswith("LICENSE") for name in shipped)


def _copy(target: Path) -> Path:
    """The sources without what a build leaves behind, so that no stale file is shipped or found."""
    import shutil

    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    target.mkdir()
    for name in ("src", "flows"):
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)
    return target


def shown_commands() -> list[str]:
    folders = [ROOT / "docs" / name for name in ("tutorials", "how-to", "explanation")]
    pages = [ROOT / "README.md", *(page for folder in folders for page in folder.glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M)
    lines = [line.split("  #")[0].strip() for kind, block in blocks if not kind for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith("thawline ")})


@pytest.mark.parametrize("line", shown_commands())
def test_every_command_that_is_shown_is_one_that_the_command_line_takes(line: str) -> None:
    assert _parsed(line.split()[1:]).exit_code == 0


def test_commands_are_shown_and_a_made_up_option_is_refused() -> None:
    """The positive control of the test above."""
    assert len(shown_commands()) > 15
    assert "thawline search photos/ --preset fast" in shown_commands()
    refused = _parsed(["search", "photos/", "--no-such-option"])
    assert refused.exit_code == 2
    assert "No such option" in refused.output


def _parsed(arguments: list[str]) -> Result:
    """Parse as the command line would, without running it: help is shown only if everything before it is known."""
    return CliRunner().invoke(app, [*arguments, "--help"])


def test_make_help_lists_the_two_commands_that_do_everything() -> None:
    text = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(r"make demo\b.*", text)
    assert re.search(r"make test\b.*", text)


def test_the_lock_names_versions_and_hashes_and_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"https?://", lock)
    packages = re.findall(r"^[a-z0-9._-]+==", lock, re.M)
    assert len(packages) > 100
    assert lock.count("--hash=sha256:") >= len(packages)
