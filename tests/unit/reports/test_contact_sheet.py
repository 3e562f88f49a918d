"""``check --html``: examples of each class and pictures of problems, on a page that loads nothing."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from thawline.cli import app
from thawline.config import DataConfig
from thawline.data import Manifest, scan
from thawline.exceptions import ConfigError
from thawline.reports.contact_sheet import contact_sheet

ODD = "<b onclick=alert(1)>"


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number in range(30):
        picture(folder / "cat" / f"{number:02}.png", number)
    for number in range(20):
        picture(folder / ODD / f"{number:02}.jpg", 100 + number, (80, 20))
    picture(folder / "cat" / "large.bmp", 200, (900, 300))
    (folder / "cat" / "copy.png").write_bytes((folder / "cat" / "00.png").read_bytes())
    (folder / ODD / "dog.png").write_bytes((folder / "cat" / "01.png").read_bytes())
    (folder / "cat" / "bad.png").write_bytes(b"no picture")
    return folder


def pictures_under(html: str, title: str) -> list[Image.Image]:
    """Those between a heading that begins so and the next heading."""
    (part,) = re.findall(rf"<h3>{re.escape(title)}.*?</h3>(.*?)(?=<h[23]|</main>)", html, flags=re.DOTALL)
    encoded = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', part)
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in encoded]


def test_the_sheet_shows_examples_of_each_class_and_the_problems_that_are_pictures(photos: Path) -> None:
    manifest = scan(DataConfig(path=photos, max_bad_fraction=0.1))
    html = contact_sheet(manifest)
    assert [each.size for each in pictures_under(html, "cat: 31")].count((40, 30)) >= 11, "twelve in all"
    assert len(pictures_under(html, "cat: 31")) == 12
    assert {each.size for each in pictures_under(html, "&lt;b onclick=alert(1)&gt;: 20")} == {(80, 20)}
    assert len(pictures_under(html, "The same image under two classes, skipped: 2")) == 2
    assert len(pictures_under(html, "Copies of another image")) == 1
    assert pictures_under(html, "Cannot be decoded, skipped: 1") == []
    assert "cat/bad.png: not an image of a known format" in html
    assert "Sizes in pixels: 40 x 30 (median), 40 x 30 to 900 x 300" in html


def test_an_image_that_the_scan_was_told_to_accept_is_on_the_sheet_however_large_it_is(tmp_path: Path) -> None:
    for number in range(12):
        picture(tmp_path / ("cat" if number % 2 else "dog") / f"{number:02}.png", number)
    Image.new("RGB", (9000, 8000)).save(tmp_path / "cat" / "poster.png")  # above 64 million pixels
    manifest = scan(DataConfig(path=tmp_path, max_pixels=100_000_000))
    assert len(pictures_under(contact_sheet(manifest), "cat: 7")) == 7


def test_names_are_text_on_the_sheet_and_it_loads_nothing(photos: Path) -> None:
    html = contact_sheet(scan(DataConfig(path=photos, max_bad_fraction=0.1)))
    assert ODD not in html
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html)


def test_a_sheet_of_very_many_classes_stays_small(tmp_path: Path) -> None:
    rows = [f"{number % 700:03},text {number} of class {number % 700}" for number in range(2100)]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["label,text", *rows]))
    html = contact_sheet(scan(DataConfig(path=table)))
    assert html.count("<blockquote") == 600
    assert "100 more classes are not shown" in html


def test_texts_are_shown_as_texts(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    lines = [f'{"ham" if number % 2 else "spam"},"<i>hello</i> number {number}"' for number in range(40)]
    table.write_text("\n".join(["label,text", *lines]))
    html = contact_sheet(scan(DataConfig(path=table)))
    assert html.count("<blockquote") == 24
    assert "&lt;i&gt;hello&lt;/i&gt; number" in html
    assert "Length of a text in characters" in html


def test_check_tells_formats_sizes_and_totals_first_and_writes_the_page(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THAWLINE_HOME", str(tmp_path / "home"))
    page = tmp_path / "new" / "sheet.html"
    command = ["check", str(photos), "--set", "data.max_bad_fraction=0.1"]
    done = CliRunner().invoke(app, [*command, "--html", str(page)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "Formats: PNG 32, JPEG 20, BMP 1" in done.output
    assert "Width divided by height: 1.33 (median), 1.33 to 4.00" in done.output
    totals = done.output.index("Problems, listed below")
    assert totals < done.output.index("Cannot be decoded, skipped: 1")
    assert re.search(r"2\s+The same image under two classes, skipped", done.output[totals:])
    assert f"Wrote {page}" in done.output.replace("\n", "")
    assert page.read_text().startswith("<!doctype html>")
    shapes = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)["shapes"]
    assert (shapes["formats"], shapes["largest"]) == ({"PNG": 32, "JPEG": 20, "BMP": 1}, [900, 300])


@pytest.mark.parametrize("where", ["file/x.html", "folder"])
def test_a_page_that_cannot_be_written_is_refused_before_the_data_are_read(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    done = CliRunner().invoke(app, ["check", str(tmp_path / "missing"), "--html", str(tmp_path / where)])
    assert isinstance(done.exception, ConfigError)
    assert re.search(r"--html .* cannot be written: .*\. Choose another file", str(done.exception))


def test_a_sheet_and_labels_are_not_asked_for_at_once(photos: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["check", str(photos), "--html", str(tmp_path / "x.html"), "--labels", "resnet18"])
    assert "leave one of them out" in str(done.exception)
    assert not (tmp_path / "x.html").exists()


def test_a_manifest_that_is_kept_remembers_formats_and_sizes(photos: Path, tmp_path: Path) -> None:
    manifest = scan(DataConfig(path=photos, max_bad_fraction=0.1))
    manifest.to_json(tmp_path / "manifest.json")
    assert Manifest.from_json(tmp_path / "manifest.json") == manifest
    content = json.loads((tmp_path / "manifest.json").read_text())
    del content["shapes"]
    (tmp_path / "older.json").write_text(json.dumps(content))
    assert Manifest.from_json(tmp_path / "older.json").shapes is None
