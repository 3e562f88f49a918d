"""What ships: the wheel holds flows, recipes and weights; the commands that README and the docs show exist."""

import email
import re
import subprocess
import zipfile
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from project_tools import load_tool
from typer.testing import CliRunner, Result

from thawline.cli import app

ROOT = Path(__file__).parents[2]


REPOSITORY = "https://example.org/thawline/thawline"
TAG = f"v{metadata.version('thawline')}"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("package")


@pytest.fixture(scope="module")
def wheel(tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The project, built for a package index."""
    folder = tmp_path_factory.mktemp("dist")
    tool.build(REPOSITORY, folder)
    assert {path.suffix for path in folder.iterdir()} == {".whl", ".gz"}
    return zipfile.ZipFile(next(folder.glob("*.whl")))


@pytest.mark.slow
@pytest.mark.xdist_group("wheel")
def test_the_wheel_holds_every_module_recipe_and_weight(wheel: zipfile.ZipFile) -> None:
    shipped = set(wheel.namelist())
    source = {
        f"thawline/{path.relative_to(ROOT / 'src' / 'thawline').as_posix()}"
        for path in (ROOT / "src" / "thawline").rglob("*")
        if path.suffix in {".py", ".yaml", ".json", ".safetensors", ".md", ".html", ".typed"} or path.name == "py.typed"
    }
    source |= {f"thawline/flows/{path.name}" for path in (ROOT / "flows").glob("*.py")}
    assert source <= shipped
    assert any(name.endswith("LICENSE") for name in shipped)


@pytest.mark.slow
@pytest.mark.xdist_group("wheel")
def test_the_page_of_a_package_index_links_to_files_that_exist_in_the_repository(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    page = email.message_from_bytes(wheel.read(name))
    addresses = dict(line.split(", ") for line in page.get_all("Project-URL", []))
    assert addresses["Repository"] == REPOSITORY
    assert set(addresses) == {"Repository", "Documentation", "Changelog", "Issues"}
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]*)\)", str(page.get_payload()))
    assert len(links) > 30, "a control: README has links"
    for picture, link in links:
        if link.startswith(REPOSITORY):
            kind, tag, path = link.removeprefix(f"{REPOSITORY}/").split("/", 2)
            assert (kind, tag) == ("raw" if picture else "blob", TAG)
            assert (ROOT / path.partition("#")[0]).exists(), link
        else:
            assert link.startswith("https://"), link


@pytest.mark.parametrize("address", ["thawline", "http://example.org/thawline", "https://example.org", "https://a b/c"])
def test_an_address_that_is_none_of_a_repository_is_refused_before_anything_is_built(
    tool: ModuleType, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        tool.main([address])
    assert f"must be https://HOST/PATH, but got {address!r}" in capsys.readouterr().err


def test_only_relative_links_become_absolute(tool: ModuleType) -> None:
    text = "![a](i.png) [b\n  c](d/e.md#f) [g](https://h.org/i) [j](#k)"
    made = tool.with_absolute_links(text, "https://o.org/p", "v1")
    assert made.startswith("![a](https://o.org/p/raw/v1/i.png) [b\n  c](https://o.org/p/blob/v1/d/e.md#f) ")
    assert "[g](https://h.org/i) [j](#k)" in made


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
