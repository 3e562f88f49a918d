"""The page: it shows the result of the study, loads nothing, and takes no name for markup."""

import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsers import needs_browser, open_browser

from thawline.backbones import DepthCost, short_name
from thawline.data import TextTable
from thawline.reports import (
    FileProblem,
    LabelDoctor,
    Promotion,
    StudyReport,
    SuspectLabel,
    TrialPoint,
    render,
    report_figures,
    report_surfaces,
    surface_mesh,
    worst_mistakes,
)
from thawline.tracking.media import Figure, Predictions

pytestmark = pytest.mark.xdist_group("report-page")

ODD = "<script>alert(1)</script>"
LONG_BACKBONE = "hf:/models/a/long/way/down/in-a-folder-whose-name-breaks-tables"
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
    assert f"{best.value:.4f} validation accuracy in trial {best.number}. " in text
    assert re.search(r"head only\d", text)
    assert re.search(r"full fine-tuning\d", text)
    assert "Frozen: stem, layer1. Trained: layer2, layer3, layer4 and the head." in text
    assert "On 300 validation images" in text
    assert "Calibration, fitted on validation," in text


def test_the_configuration_is_on_the_screen_and_not_on_paper(html: str) -> None:
    assert re.search(r'<details class="screen"><summary>The whole configuration', html)
    assert re.search(r"@media print \{.*details\.screen \{ display: none; \}", html, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (0.89, "Freeze depths 1 and 3 cannot be told apart on 300 validation images."),
        (0.70, "It leads all other freeze depths by 0.2000, more than chance explains."),
    ],
)
def test_freeze_depths_that_chance_can_explain_are_called_indistinguishable(
    make_report: Callable[..., StudyReport], figures: dict[str, Figure | None], other: float, said: str
) -> None:
    def trial(number: int, depth: int, value: float) -> TrialPoint:
        return TrialPoint(
            number=number, state="complete", freeze_depth=depth, learning_rate=1e-3, value=value, backbone="resnet18"
        )

    report = make_report(trials=(trial(0, 3, 0.9), trial(1, 1, other)))
    text = words(Page(render(report, figures)).text)
    assert said in text
    losses = report.model_copy(update={"metric": "loss"})
    assert "cannot be told apart" not in words(Page(render(losses, figures)).text), (
        "nothing is known of a loss's chance"
    )


def test_how_to_serve_the_model_stands_beside_the_result(
    make_report: Callable[..., StudyReport], figures: dict[str, Figure | None]
) -> None:
    report = make_report()
    assert report.promotion is not None

    def served(outcome: str) -> str:
        promotion = report.promotion.model_copy(update={"outcome": outcome})  # type: ignore[union-attr]
        return words(Page(render(report.model_copy(update={"promotion": promotion}), figures)).text)

    name, version = report.promotion.model, report.promotion.version
    assert f"Serve it with thawline serve {name} " in served("promote")
    assert f"Serve it with thawline serve {name}/{version} " in served("hold")
    assert "thawline serve" not in served("reject").partition("Reproduce")[0]


def test_why_trials_ended_is_a_column_only_where_one_has_a_reason(
    make_report: Callable[..., StudyReport], trials: tuple[TrialPoint, ...], figures: dict[str, Figure | None]
) -> None:
    without = tuple(trial.model_copy(update={"reason": ""}) for trial in trials)
    assert "why it ended" not in words(Page(render(make_report(trials=without), figures)).text)
    reasons = (*without[1:], without[0].model_copy(update={"reason": "pruned after epoch 2"}))
    assert "why it ended" in words(Page(render(make_report(trials=reasons), figures)).text)


def test_the_result_stands_beside_the_linear_probe_and_the_majority_class(
    make_report: Callable[..., StudyReport],
    make_probe: Callable[..., TrialPoint],
    trials: tuple[TrialPoint, ...],
    figures: dict[str, Figure | None],
    page: Page,
) -> None:
    text = words(page.text)
    assert re.search(r"the majority class---0\.33330\.5\d+", text)
    assert "; majority class 0.3417" in text
    assert "linear probe" not in text
    probe = make_probe(0.8, number=18)
    text = words(Page(render(make_report(trials=(*trials, probe)), figures)).text)
    assert re.search(r"Linear probe ?0\.8000 ?validation accuracy ?Test accuracy", text), "among the first numbers"
    assert re.search(r"the linear probe185probe0\.80000\.\d+ ?the majority class", text)
    best = probe.model_copy(update={"value": 0.99})
    text = words(Page(render(make_report(trials=(*trials, best)), figures)).text)
    assert "The linear probe of resnet18 is best: 0.9900 validation accuracy in trial 18. " in text
    assert re.search(r"head only\d.*full fine-tuning\d", text)
    assert "All layer groups are frozen, and a linear head on their features is fitted to convergence." in text
    assert "Headlinear probetrial 18" in re.sub(r"(?<=\w) (?=Head)", "", text)
    assert "with learning rate" not in text


def test_the_leaderboard_names_the_probe_where_others_have_a_learning_rate(
    make_report: Callable[..., StudyReport],
    probed: tuple[TrialPoint, ...],
    figures: dict[str, Figure | None],
) -> None:
    html = render(make_report(trials=probed), figures)
    (row,) = re.findall(r'<tr><th scope="row" class="number">0</th>.*</tr>', html)
    assert re.findall(r"<td[^>]*>(.*?)</td>", row) == ["complete", "0.8000", "5", "probe", "-", "1", "3.0", ""]
    leaderboard = html[html.index('id="leaderboard"') :]
    header = re.findall(r"<th scope=\"col\"[^>]*>(.*?)</th>", leaderboard)
    assert "optimizer" in header
    assert not {"policy", "weight decay"} & set(header), "no two trials that are trained differ in them"


def test_the_captions_say_what_the_probe_and_its_line_are(
    make_report: Callable[..., StudyReport],
    make_probe: Callable[..., TrialPoint],
    probed: tuple[TrialPoint, ...],
    page: Page,
    figures: dict[str, Figure | None],
) -> None:
    def caption(**parts: Any) -> str:
        return words(Page(render(make_report(**parts), figures)).text)

    line = "the value of a linear classifier on the frozen features at each depth."
    left_out = "Linear probes have no learning rate and are not shown."
    drawn = caption(trials=probed, probe_curves={"resnet18": {3: 0.7, 5: 0.8}})
    assert line in drawn
    assert left_out in drawn
    for curves in ({}, {"resnet18": {5: 0.8}}):
        alone = caption(trials=probed, probe_curves=curves)
        assert line not in alone
        assert "The diamond is the linear probe, a linear" in alone
    assert "The star is the linear probe, a linear" in caption(trials=(make_probe(0.99), *probed[1:]))
    assert line not in words(page.text)
    assert left_out not in words(page.text)
    assert "is the linear probe, a linear" not in words(page.text)


def test_a_study_of_nothing_but_the_probe_has_a_page_and_no_figure_that_needs_learning_rates(
    make_probe: Callable[..., TrialPoint],
) -> None:
    groups = {"resnet18": ("stem", "layer1", "layer2", "layer3", "layer4")}
    for curves in ({}, {"resnet18": {2: 0.5, 5: 0.8}}):
        report = StudyReport(
            study="pets", metric="accuracy", trials=(make_probe(),), layer_groups=groups, probe_curves=curves
        )
        figures = report_figures(report)
        assert {name for name, figure in figures.items() if figure} == {"thaw_line", "history"}
        assert report_surfaces(report) == {}
        page = Page(render(report, figures))
        assert len(page.of("svg")) == 2
        text = words(page.text)
        assert "The linear probe of resnet18 is best: 0.8000 validation accuracy in trial 0. All layer" in text
        assert "No trial is complete" not in text
        assert "epoch 1 of 1" not in text


def test_the_response_surface_is_that_of_the_trials_with_a_learning_rate(
    make_report: Callable[..., StudyReport], make_probe: Callable[..., TrialPoint], probed: tuple[TrialPoint, ...]
) -> None:
    plain = report_surfaces(make_report(trials=probed[1:]))["surface"]
    with_probe = report_surfaces(make_report(trials=(make_probe(0.1), *probed[1:])))["surface"]
    np.testing.assert_array_equal(with_probe.values, plain.values)
    assert len(surface_mesh(with_probe).vertices) == len(surface_mesh(plain).vertices)


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
        "Cannot be decoded, skipped: 1",
        "train/cat/3.jpg: truncated",
        "thawline search --data /data/pets",
        "with uncommitted changes",
        "1.jpg: cat, 91 %, Grad-CAM",
        "2.11.0",
    ):
        assert part in text, part
    assert "optimizer" in text
    assert "weight decay" not in text  # the same in all trials
    assert len(page.of("img")) > 2


@pytest.fixture
def doctor(report: StudyReport) -> LabelDoctor:
    suspect = SuspectLabel(
        picture=report.explanations[0].picture,
        file="train/cat/9.jpg",
        split="train",
        label="cat",
        suggested="owl",
        label_probability=0.02,
        suggested_probability=0.93,
    )
    return LabelDoctor(
        examples=300,
        listed=31,
        noise=0.114,
        accuracy=0.8,
        is_doubtful=False,
        file="suspects.csv",
        suspects=(suspect,),
    )


def test_labels_that_the_features_contradict_are_shown_with_both_classes(
    report: StudyReport, figures: dict[str, Figure | None], doctor: LabelDoctor
) -> None:
    html = render(StudyReport.from_json(report.model_copy(update={"labels": doctor}).to_json()), figures)
    text = words(Page(html).text)
    assert "The labels of 31 of 300 images contradict the pretrained network's features" in text
    assert "an estimated 11% of all labels are wrong. All are in suspects.csv beside this page." in text
    assert "(2%), or" in text
    assert "train/cat/9.jpg, train" in text
    assert "train/cat/9.jpg: cat or owl?" in {image["alt"] for image in Page(html).of("img")}
    assert "#labels" in html
    assert "most of those listed may be right" not in text
    assert "#labels" not in render(report, figures)


def test_a_report_says_when_features_hardly_tell_the_classes_and_when_no_label_is_contradicted(
    report: StudyReport, figures: dict[str, Figure | None], doctor: LabelDoctor
) -> None:
    doubtful = doctor.model_copy(update={"is_doubtful": True, "accuracy": 0.4})
    text = words(Page(render(report.model_copy(update={"labels": doubtful}), figures)).text)
    assert "These features predict only 40% of the labels: most of those listed may be right." in text
    none = doctor.model_copy(update={"listed": 0, "suspects": (), "file": ""})
    text = words(Page(render(report.model_copy(update={"labels": none}), figures)).text)
    assert "The labels of 0 of 300 images" in text
    assert "suspects.csv" not in text


def test_what_is_missing_is_reported_in_a_sentence() -> None:
    trial = TrialPoint(number=0, state="complete", freeze_depth=3, learning_rate=1e-3, value=0.4)
    page = Page(render(StudyReport(study="pets", metric="loss", trials=(trial,))))
    text = words(page.text)
    for sentence in (
        "No trial has recorded its time yet.",
        "No test results yet: the study is not finished.",
        "No verdict yet",
        "No explanations yet",
        "No learning curves",
        "No data report is available",
        "The command and the library versions are unknown.",
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
    assert "No trial is complete, so there is no result yet. 3 trials failed: out of memory." in text
    assert "There are no trials yet." in Page(render(StudyReport(study="pets", metric="accuracy", trials=()))).text


@pytest.fixture(scope="module")
def two_backbones(report: StudyReport) -> StudyReport:
    """The best trial is of resnet18; the other has a name that is too long for a table, and deeper depths."""
    others = tuple(
        trial.model_copy(
            update={
                "number": 50 + trial.number,
                "backbone": LONG_BACKBONE,
                "freeze_depth": trial.freeze_depth + 2,
                "value": None if trial.value is None else trial.value - 0.1,
            }
        )
        for trial in report.trials[:9]
    )
    costs = tuple(DepthCost(depth, 1, 1, 1, 7 * 10**9, 1, 7 * 10**9) for depth in range(10))
    return report.model_copy(
        update={
            "trials": (*report.trials, *others),
            "layer_groups": report.layer_groups | {LONG_BACKBONE: ("embeddings", *(f"block{i}" for i in range(8)))},
            "costs": report.costs | {LONG_BACKBONE: costs},
        }
    )


@pytest.fixture(scope="module")
def figures_of_two(two_backbones: StudyReport) -> dict[str, Figure | None]:
    return report_figures(two_backbones)


@pytest.fixture(scope="module")
def page_of_two(two_backbones: StudyReport, figures_of_two: dict[str, Figure | None]) -> Page:
    return Page(render(two_backbones, figures_of_two))


def test_every_backbone_has_its_own_thaw_line_surface_costs_and_layer_groups(
    two_backbones: StudyReport, figures_of_two: dict[str, Figure | None], page_of_two: Page
) -> None:
    figures = figures_of_two
    short = short_name(LONG_BACKBONE)
    for kind in ("surface", "thaw_line", "time", "memory"):
        assert {name for name in figures if name.startswith(kind)} == {f"{kind}/resnet18", f"{kind}/{short}"}
    alone, other = figures["thaw_line/resnet18"], figures[f"thaw_line/{short}"]
    assert alone is not None
    assert other is not None
    assert "18 trials" in alone.alt
    assert "9 trials" in other.alt
    assert f"of {short} at each freeze depth" in other.alt
    assert "depth 2:" in other.alt
    assert "depth 0:" in alone.alt
    assert "depth 0:" not in other.alt
    memory = figures[f"memory/{short}"]
    assert memory is not None
    assert "7 at depth 9" in memory.alt
    assert set(report_surfaces(two_backbones)) == {"surface/resnet18", f"surface/{short}"}

    page = page_of_two
    text = words(page.text)
    assert "Layer groups, from the input on: embeddings, block0," in text
    assert text.index("Layer groups, from the input on: stem") < text.index("Layer groups, from the input on: emb")
    assert "other backbones" in text
    assert "Freeze depth is left out" in text
    labels = [each["aria-label"] or "" for each in page.of("div") if each.get("role") == "img"]
    assert any("27 trials" in label for label in labels), "the history has all"
    assert len(labels) == 15


def test_a_long_name_of_a_backbone_is_short_in_tables_and_stands_once_in_full(page_of_two: Page) -> None:
    text = words(page_of_two.text)
    assert text.count(LONG_BACKBONE) == 1
    assert f"{short_name(LONG_BACKBONE)} is {LONG_BACKBONE}." in text
    assert text.count(short_name(LONG_BACKBONE)) > 10
    assert "resnet18 is" not in text


def test_names_inside_the_page_are_given_once_with_several_backbones_too(page_of_two: Page) -> None:
    ids = Counter(attributes["id"] for _, attributes in page_of_two.tags if attributes.get("id"))
    assert max(ids.values()) == 1


def test_the_names_of_figures_of_a_single_backbone_are_plain(figures: dict[str, Figure | None]) -> None:
    assert {"surface", "thaw_line", "time", "memory"} <= set(figures)
    assert not [name for name in figures if "/" in name]


@pytest.fixture(scope="module")
def text_report(make_report: Callable[..., StudyReport], make_predictions: Callable[..., Predictions]) -> StudyReport:
    """A study of texts: each mistaken one is odd in its own way."""
    made = make_report(("ham", "spam"), test=make_predictions(120, ("ham", "spam"), skill=1.0))
    assert made.test is not None
    assert made.data is not None
    texts = [ODD, "word " * 200, "Win\n\n£1000\tnow", "مرحبا بالعالم"]
    files = [f"sms.tsv:{number + 1}" for number in range(len(made.test.labels))]
    problems = {
        "bad": (FileProblem(path="sms.tsv:17", reason="has no label"),),
        "duplicate": (FileProblem(path="sms.tsv:30", reason="the same as sms.tsv:4"),),
    }
    table = TextTable("message", "class", None, None, header=True, median_length=61, longest=1910)
    return made.model_copy(
        update={
            "mistakes": worst_mistakes(made.test, files, lambda number: texts[number % 4]),
            "explanations": (),
            "data": made.data.model_copy(
                update={"kind": "texts", "path": "/data/sms.tsv", "table": table, "problems": problems}
            ),
        }
    )


def test_the_page_of_a_study_of_texts_quotes_its_mistakes_and_speaks_of_texts(text_report: StudyReport) -> None:
    html = render(StudyReport.from_json(text_report.to_json()))
    page = Page(html)
    text = words(page.text)
    quotes = page.of("blockquote")
    assert len(quotes) == len(text_report.mistakes) > 3
    assert {quote["dir"] for quote in quotes} == {"auto"}
    assert not page.of("img")
    assert not page.of("script")
    assert ODD in page.text
    assert "Win £1000 now" in text
    assert "Misclassified test texts" in text
    assert f"({text_report.mistakes[0].label_probability:.0%}), predicted as" in text
    assert "Texts per class" in text
    assert "sms.tsv:17: has no label" in text
    assert "Length of a text in characters: 61 (median), 1,910 (longest)." in text
    assert "Cannot be read, skipped: 1" in text
    assert "Copies of another text, kept in the same split: 1" in text
    assert "On 200 validation texts" in text
    assert "image" not in text.lower().replace("thawline search --data /data/pets", "")
    assert "What the model looks at" not in text
    assert "#explanations" not in html


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


@pytest.mark.parametrize(
    ("calibration", "sentence"),
    [
        ({"temperature": 1.3, "items": 60, "helps": True, "error_before": 0.06, "error_after": 0.02},
         "Calibration: logits are divided by 1.300, fitted on 60 validation examples. Calibration error on their "
         "held-out folds: 0.0600 without a temperature, 0.0200 with one."),
        ({"temperature": 1.0, "items": 60, "helps": False, "error_before": 0.06, "error_after": 0.08},
         "Not calibrated: a temperature fitted on the 60 validation examples does not help. Calibration error on "
         "their held-out folds: 0.0600 without a temperature, 0.0800 with one."),
        ({"temperature": 1.0, "items": 5, "helps": False, "error_before": 0.06, "error_after": 0.06},
         "Not calibrated: 5 validation examples are too few to fit a temperature."),
    ],
    ids=["it helps", "it does not", "too few"],
)  # fmt: skip
def test_the_page_says_whether_the_model_is_calibrated_and_the_diagram_shows_no_before_where_it_is_not(
    make_report: Callable[..., StudyReport], report: StudyReport, calibration: dict[str, Any], sentence: str
) -> None:
    assert report.promotion is not None
    judged = report.promotion.model_dump() | {"calibration": calibration}
    made = make_report(promotion=Promotion.model_validate(judged))
    figures = report_figures(made)
    assert sentence in " ".join(Page(render(made, figures)).text.split())
    diagram = figures["reliability"]
    assert diagram is not None
    assert ("before calibration" in diagram.alt) == calibration["helps"]
