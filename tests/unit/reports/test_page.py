"""The page: it says what came of the study, loads nothing, and takes no name for markup."""

import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from browsers import needs_browser, open_browser

from thawline.reports import StudyReport, TrialPoint, render
from thawline.tracking.media import Figure

ODD = "<script>alert(1)</script>"
LONG = "a-very-long-name-of-a-class-that-nobody-would-want-to-type-in"


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def odd_html(make_report: Callable[..., StudyReport], trials: tuple[TrialPoint, ...]) -> str:
    """Names that are markup, long, or in another script; forty classes in all."""
    failed = TrialPoint(number=99, state="failed", freeze_depth=0, learning_rate=1e-3, reason="<img src=x onerror=y>")
    classes = (ODD, LONG, "帽子", *(f"kind {number}" for number in range(37)))
    return render(make_report(classes, study="<b>pets</b>", trials=(*trials, failed)))


@pytest.fixture(scope="module")
def html(report: StudyReport, figures: dict[str, Figure | None]) -> str:
    """Of a report that was stored."""
    return render(StudyReport.from_json(report.to_json()), figures)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_headline_says_what_won_and_by_how_much(report: StudyReport, page: Page) -> None:
    text = words(page.text)
    best = max((trial for trial in report.trials if trial.state == "complete"), key=lambda trial: trial.value or 0)
    assert f"Freeze depth {best.freeze_depth} of resnet18" in text
    assert f"{best.value:.4f} validation accuracy in trial {best.number}, ahead of all other trials by 0.0" in text
    assert "of the head alone by 0.0" in text
    assert "of full fine-tuning by 0.0" in text
    assert "Frozen: stem, layer1. Trained: layer2, layer3, layer4 and the head." in text
    assert "On 300 validation images" in text


def test_nothing_is_loaded_from_anywhere_and_only_links_lead_away(page: Page, html: str) -> None:
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form", "video"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in ("src", "xlink:href", "href", "srcset", "data", "poster", "action"):
                inside = (value or "").startswith(("#", "data:image/"))
                assert inside or (tag == "a" and (value or "").startswith("http://127.0.0.1:5000/")), (tag, value)
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    policy = [meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_it_can_be_read_by_those_who_do_not_see_it(page: Page) -> None:
    assert page.of("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    assert all(header.get("scope") in ("col", "row") for header in page.of("th"))
    assert all(picture.get("alt") for picture in page.of("img"))
    drawings = [each for each in page.of("div") if each.get("role") == "img"]
    assert len(drawings) == len(page.of("svg")) == 11
    assert all(len(each["aria-label"] or "") > 40 for each in drawings)
    assert len(page.of("caption")) == len(page.of("table"))


def test_every_name_inside_the_page_is_given_once_and_every_reference_finds_it(page: Page, html: str) -> None:
    ids = Counter(attributes["id"] for _, attributes in page.tags if attributes.get("id"))
    assert max(ids.values()) == 1
    local = {attributes[name] for _, attributes in page.tags for name in ("href", "xlink:href") if name in attributes}
    targets = {target for target in local if target and target.startswith("#")} | set(
        re.findall(r"url\((#[^)]*)\)", html)
    )
    assert {target[1:] for target in targets} <= set(ids)
    labelled = {attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes}
    assert labelled <= set(ids)


def test_names_from_outside_are_text(odd_html: str) -> None:
    page = Page(odd_html)
    assert not page.of("script")
    assert not page.of("b")
    assert not [picture for picture in page.of("img") if picture["src"] == "x"]
    assert all(text in page.text for text in (ODD, LONG, "帽子", "<b>pets</b>", "<img src=x onerror=y>"))


def test_every_part_is_there_and_the_leaderboard_shows_what_differs(page: Page) -> None:
    text = words(page.text)
    for part in (
        "18 trials (15 complete, 1 pruned, 1 running, 1 failed)",
        "out of memory: lower train.batch_size",
        "macro F1",
        "hold pets version 4 against version 3: nothing shows that it is better.",
        "more than 0",
        "logits are divided by 1.300",
        "Cannot be decoded, left out: 1",
        "train/cat/3.jpg: truncated",
        "thawline search --data /data/pets",
        "with changes that are not committed",
        "1.jpg: cat, 91 %, Grad-CAM",
        "2.11.0",
    ):
        assert part in text, part
    assert "optimizer" in text
    assert "weight decay" not in text  # the same in all trials
    assert len(page.of("img")) > 2


def test_what_is_missing_is_said_in_a_sentence() -> None:
    trial = TrialPoint(number=0, state="complete", freeze_depth=3, learning_rate=1e-3, value=0.4)
    page = Page(render(StudyReport(study="pets", metric="loss", trials=(trial,))))
    text = words(page.text)
    for sentence in (
        "No trial has recorded its time yet.",
        "No test results yet: the study has not been concluded.",
        "No verdict yet",
        "No explanations yet",
        "No learning curves",
        "No report of the data is at hand",
        "The command and the versions are not known.",
        "(lower is better)",
    ):
        assert sentence in text, sentence
    assert "0.4000 validation loss in trial 0." in text
    assert len(page.of("svg")) == 3


def test_a_study_in_which_every_trial_failed_says_why() -> None:
    failed = [
        TrialPoint(number=number, state="failed", freeze_depth=0, learning_rate=1e-3, reason="out of memory")
        for number in range(3)
    ]
    text = words(Page(render(StudyReport(study="pets", metric="accuracy", trials=tuple(failed)))).text)
    assert "No trial has been completed, so nothing is known yet. 3 trials failed: out of memory." in text
    assert "No trial has been drawn." in Page(render(StudyReport(study="pets", metric="accuracy", trials=()))).text


def test_depths_of_different_backbones_are_not_mixed(trials: tuple[TrialPoint, ...]) -> None:
    other = TrialPoint(number=50, state="complete", freeze_depth=9, learning_rate=1e-3, value=0.5, backbone="vgg11")
    page = Page(render(StudyReport(study="pets", metric="accuracy", trials=(*trials[:9], other))))
    text = words(page.text)
    assert "Backbones tried: resnet18, vgg11. Depths are shown of resnet18." in text
    assert "of other backbones by" in text
    labels = [each["aria-label"] or "" for each in page.of("div") if each.get("role") == "img"]
    assert "9 trials" in labels[0]
    assert any("10 trials" in label for label in labels)  # the history has all


@needs_browser
@pytest.mark.slow
def test_on_a_phone_there_is_one_column_and_nothing_is_wider_than_the_screen(odd_html: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(odd_html, encoding="utf-8")
    lefts = "return [...document.querySelectorAll('#thaw-line ~ .figures figure')].map((each) => each.offsetLeft)"
    widths = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    with open_browser(tmp_path / "browser") as browser:
        for width, columns in ((390, 1), (1200, 2)):
            browser.resize(width, 800)
            browser.open((tmp_path / "report.html").as_uri())
            needed, there = browser.driver.execute_script(widths)
            assert needed <= there
            assert len(set(browser.driver.execute_script(lefts))) == columns
        assert ODD in browser.text
