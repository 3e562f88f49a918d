"""The documentation is a site that builds strictly, lists every decision, and has a section for every command."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
from project_tools import load_tool

import thawline

ROOT = Path(__file__).parents[2]
DECISIONS = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
SOURCES = ("docs", "docker", "src/thawline", "tools", "mkdocs.yml", "CHANGELOG.md", "SECURITY.md")


def built(test: Callable[..., None]) -> Callable[..., None]:
    """Of tests that look at the site, which one worker builds."""
    return pytest.mark.slow(pytest.mark.xdist_group("site")(test))


@pytest.fixture(scope="module")
def commands() -> ModuleType:
    return load_tool("commands")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the site is built from, in a folder of its own."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
        else:
            shutil.copyfile(source, target)
    return folder


def _build(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=folder,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(copy: Path) -> Path:
    built = _build(copy)
    assert built.returncode == 0, built.stderr
    return copy / "site"


class _Page(HTMLParser):
    """What a page loads, and the addresses of its parts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name == "id":
                self.ids.append(value)
            elif name == "src" or (tag == "link" and name == "href"):
                self.loads.append(value)
            elif name == "href":
                self.links.append(value)


def test_the_reference_of_commands_is_up_to_date(commands: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["--check"]) == 0, capsys.readouterr().out


def test_a_reference_that_is_out_of_date_is_named_and_rewritten(
    commands: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "cli.md"
    page.write_text(commands.page().replace("--preset", "--presets"), encoding="utf-8")
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    monkeypatch.setattr(commands, "PAGE", page)
    assert commands.main(["--check"]) == 1
    assert capsys.readouterr().out == "cli.md is out of date: run `make reference`\n"
    assert commands.main([]) == 0
    assert commands.main(["--check"]) == 0


def test_every_command_has_a_section_with_its_options(commands: ModuleType) -> None:
    sections = dict(re.findall(r"^## `thawline ([a-z ]+)`\n(.*?)(?=^## |\Z)", commands.page(), re.S | re.M))
    assert {"search", "serve", "recipes copy"} <= sections.keys()
    for name, command in commands.commands():
        for parameter in command.params:
            assert f"`{parameter.opts[0]}`" in sections[name] or parameter.param_type_name == "argument", name


def test_options_say_what_they_take(commands: ModuleType) -> None:
    page = commands.page()
    assert "\n| `--workers` | whole number ≥ 1, ≤ 64 | `1` | Processes, each with the model in memory. |\n" in page
    assert "\n| `--log-format` | `text`, `json` | `text` | Format of standard error" in page
    assert "\nthawline drift MODEL[@ALIAS] FOLDER [OPTIONS]\n" in page
    assert "\nthawline backbones [PATTERN] [OPTIONS]\n" in page


def test_every_command_is_shown_in_use(commands: ModuleType) -> None:
    page = (ROOT / "docs" / "how-to" / "verbs.md").read_text(encoding="utf-8")
    for name, command in commands.commands():
        assert hasattr(command, "commands") or re.search(rf"^thawline {name}\b", page, re.M), name


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_every_decision_has_a_line_in_the_index(path: Path) -> None:
    index = (ROOT / "docs" / "adr" / "README.md").read_text(encoding="utf-8")
    number = int(path.name[:4])
    assert re.search(rf"^\| \[{number}\]\({re.escape(path.name)}\) \| \S.+\. \|$", index, re.M)


def test_an_entry_for_a_folder_stands_for_its_pages_that_are_listed_nowhere_else() -> None:
    nav = ["index.md", {"Guide": "guide/*"}, {"Empty": "none/*"}, {"More": ["a/first.md", "a/*"]}]
    pages = ["index.md", "guide/two.md", "guide/one.md", "a/second.md", "a/first.md", "a/below/third.md"]
    assert load_tool("navigation").expanded(nav, pages) == [
        "index.md",
        {"Guide": ["guide/one.md", "guide/two.md"]},
        {"More": ["a/first.md", "a/second.md"]},
    ]


@built
def test_the_site_builds_strictly_with_every_page(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    built = {path.relative_to(site) for path in site.rglob("*.html")}
    missing = {page for page in pages if page not in built and page.with_name("index.html") not in built}
    assert not missing


@built
def test_every_page_can_be_reached_from_the_first(site: Path) -> None:
    links = {link.partition("#")[0] for link in _Page(site / "index.html").links}
    for path in (ROOT / "docs").rglob("*.md"):
        page = path.relative_to(ROOT / "docs").as_posix().replace("README.md", "index.html").replace(".md", ".html")
        assert page in links or page.startswith("adr/0"), page
    decisions = {link.partition("#")[0] for link in _Page(site / "adr" / "index.html").links}
    assert {path.with_suffix(".html").name for path in DECISIONS} <= decisions


@built
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert not [each for each in _Page(path).loads if re.match(r"(https?:)?//", each)], path


@built
def test_every_name_of_the_python_api_is_described(site: Path) -> None:
    ids = _Page(site / "reference" / "python.html").ids
    for name in set(thawline.__all__) - {"__version__"}:
        assert any(each.endswith(f".{name}") for each in ids), name


@built
def test_roles_of_docstrings_are_not_shown(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert "<code>list_backbones</code>" in page
    assert not re.search(r":(func|class|attr):", page)


@built
def test_the_changelog_and_the_guide_to_containers_are_pages(site: Path) -> None:
    assert "0.2.0" in (site / "upgrading.html").read_text(encoding="utf-8")
    assert "docker compose up" in (site / "how-to" / "docker.html").read_text(encoding="utf-8")


@built
def test_a_link_to_a_page_that_does_not_exist_fails_the_build(copy: Path, site: Path) -> None:
    page = copy / "docs" / "glossary.md"
    before = page.read_text(encoding="utf-8")
    page.write_text(before + "\n[gone](no-such-page.md)\n", encoding="utf-8")
    try:
        built = _build(copy)
    finally:
        page.write_text(before, encoding="utf-8")
    assert built.returncode != 0
    assert "no-such-page.md" in built.stderr
