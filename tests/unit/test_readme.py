"""README is short, its pictures are light and come from a run, and no page links to what is not there."""

import re
from pathlib import Path
from types import ModuleType

import pytest
from browsers import needs_browser
from project_tools import load_tool

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "docker").glob("*.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("pictures")


def test_readme_has_at_most_700_words_with_its_code_tables_and_links() -> None:
    assert 300 < len(README.read_text(encoding="utf-8").split()) <= 700


def test_the_environment_is_activated_before_the_first_command() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("thawline "))
    assert lines.index("source .venv/bin/activate") < first


def missing(page: Path, text: str) -> list[str]:
    """The links of a page to files, and to headings in them, that are not there."""
    broken = []
    for link in LINK.findall(re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)):
        path, _, heading = link.partition("#")
        target = (page.parent / path) if path else page
        if re.match(r"[a-z]+:", link):
            continue
        if not target.exists() or (heading and heading not in headings(target)):
            broken.append(link)
    return broken


def headings(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert missing(page, page.read_text(encoding="utf-8")) == []


def test_a_link_to_a_file_or_a_heading_that_is_not_there_is_found() -> None:
    """The positive control of the test above."""
    text = "[a](docs/none.md) [b](docs/data.md#none) [c](docs/data.md#wrong-labels) [d](https://example.org/none)"
    assert missing(README, text) == ["docs/none.md", "docs/data.md#none"]


def test_the_pictures_of_readme_are_light(tool: ModuleType) -> None:
    shown = set(re.findall(r"!\[[^]]+\]\(docs/images/([^)]+)\)", README.read_text(encoding="utf-8")))
    assert shown == set(tool.LARGEST)
    for name, most in tool.LARGEST.items():
        assert 1_000 < (tool.IMAGES / name).stat().st_size <= most


def test_the_recording_ends_with_a_promoted_model_and_loads_nothing() -> None:
    drawn = (ROOT / "docs" / "images" / "demo.svg").read_text(encoding="utf-8")
    assert "promoted" in drawn
    assert set(re.findall(r"https?://[^\s\"]+", drawn)) <= {"http://www.w3.org/2000/svg", "https://www.textualize.io"}


def test_a_screen_keeps_what_was_written_last(tool: ModuleType) -> None:
    screen = tool.Screen()
    screen.write("\x1b[?25lloading\r\x1b[2K\x1b[36mreading\x1b[0m\r\n", 1.0)
    screen.write("trial 1\r\n    running\r\x1b[2K\x1b[1A\x1b[2Ktrial 1 done\r\n\r\n", 2.5)
    assert screen.lines == [tool.Line("\x1b[36mreading\x1b[0m", 1.0), tool.Line("trial 1 done", 2.5)]


def test_a_command_is_recorded_as_it_looks_in_a_terminal(tool: ModuleType, tmp_path: Path) -> None:
    program = "import sys; print('a terminal' if sys.stdout.isatty() else 'a pipe'); print('\\x1b[32mgreen <&>')"
    lines = tool.record(["python3", "-c", program], tmp_path)
    assert [line.text for line in lines] == ["a terminal", "\x1b[32mgreen <&>"]
    drawn = tool.svg(["python3"], lines)
    assert "a&#160;terminal" in drawn
    assert "&lt;&amp;&gt;" in drawn
    assert drawn.count("animation:appear") >= 2


def test_a_command_that_fails_is_not_recorded(tool: ModuleType, tmp_path: Path) -> None:
    import subprocess

    with pytest.raises(subprocess.CalledProcessError):
        tool.record(["python3", "-c", "raise SystemExit(3)"], tmp_path)


@needs_browser
def test_a_page_is_photographed_light_dark_and_printed(tool: ModuleType, tmp_path: Path) -> None:
    from PIL import Image

    page = tmp_path / "page.html"
    dark = "@media (prefers-color-scheme: dark) { body { background: rgb(0, 0, 90) } }"
    page.write_text(f"<!doctype html><style>body {{ background: rgb(250, 250, 250) }} {dark}</style>")
    for name, (window, is_dark) in {"a.png": ("600,400", False), "b.png": ("600,400", True)}.items():
        tool.photograph(page.as_uri(), tmp_path / name, window=window, dark=is_dark)
    light, night = (Image.open(tmp_path / name).convert("RGB") for name in ("a.png", "b.png"))
    assert light.size == (600, 400)
    assert [light.getpixel((300, 200)), night.getpixel((300, 200))] == [(250, 250, 250), (0, 0, 90)]
    tool.photograph(page.as_uri(), tmp_path / "c.pdf")
    assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF")


def test_screenshots_need_a_study_with_a_report(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THAWLINE_HOME", str(tmp_path / "home"))
    with pytest.raises(RuntimeError, match="no study with a report: run `thawline demo` first"):
        tool.photograph_pages(tmp_path / "pages")
