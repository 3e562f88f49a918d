"""What a user sees of a study of real photographs, looked at in a real browser.

``pytest tests/integration/test_looking.py`` keeps the pictures in ``build/screenshots``.
"""

import json
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browsers import Browser, needs_browser, open_browser
from commands import Forks
from said import Said
from servers import ask_prefect, free_port, prefect_server

from thawline.tracking import connect

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("looking"), needs_browser]

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
POINTS = [
    {"freeze_depth": depth, "learning_rate": rate}
    for depth, rates in ((4, (0.0002, 0.002)), (3, (0.0002, 0.0006, 0.002)), (0, (0.0006,)))
    for rate in rates
]
"""What is tried after the linear probe: as many points as a surface needs. Only the last trains for long, which is much
longer than the time without pictures."""
TRIALS = 1 + len(POINTS)


@dataclass(frozen=True)
class Looked:
    """A study that was concluded, and the servers that show it."""

    home: Path
    outcome: dict[str, Any]
    shown: str
    """The page of MLflow that `thawline ui` names."""
    tensorboard: str
    prefect: dict[str, str]

    @property
    def client(self) -> Any:
        """MLflow's, of the study's store."""
        return connect(f"sqlite:///{self.home}/mlflow.db", home=self.home, experiment="thawline").client

    @property
    def mlflow(self) -> str:
        """MLflow's address."""
        return self.shown.partition("/#/")[0]

    def page(self, place: str, more: str = "") -> str:
        """Address of a place of the experiment in MLflow's UI."""
        experiment = self.client.get_run(self.outcome["run_id"]).info.experiment_id
        return f"{self.mlflow}/#/experiments/{experiment}/{place}?workflowType=machine_learning{more}"

    @property
    def deepest(self) -> dict[str, Any]:
        """The row of the trial that trained longest, and more than the head."""
        return dict(max(self.outcome["trials"], key=lambda row: row["seconds"]))

    @property
    def best(self) -> dict[str, Any]:
        """The best trial's row."""
        (row,) = [row for row in self.outcome["trials"] if row["trial"] == self.outcome["best_trial"]]
        return dict(row)

    def tensorboard_has(self, path: str) -> Any:
        """The answer of TensorBoard's HTTP API."""
        with urllib.request.urlopen(f"{self.tensorboard.rstrip('/')}/data/{path}", timeout=120) as response:
            return json.load(response)


@pytest.fixture(scope="module")
def photographs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty photographs of each class to train on, ten to validate and ten to test on, and one that is none."""
    folder = tmp_path_factory.mktemp("looking") / "clothing"
    for split, count in (("train", 20), ("validation", 10), ("test", 10)):
        for source in sorted((shared / "data" / "clothing" / split).iterdir()):
            target = folder / split / source.name
            target.mkdir(parents=True)
            for file in sorted(source.iterdir())[:count]:
                shutil.copy(file, target)
    (folder / "train" / "dress" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really a photograph")
    return folder


@pytest.fixture(scope="module")
def looked(
    photographs: Path,
    shared: Path,
    prepared: Callable[[Path], Path],
    forked: Callable[..., Any],
    environment_of: Callable[[Path], dict[str, str]],
    first_process: Forks,
) -> Iterator[Looked]:
    home = prepared(photographs.parent / "home")
    weights = shared / "weights" / "squeezenet1_0_imagenet.safetensors"
    # A server of its own: all its pages are looked at.
    with prefect_server(photographs.parent / "prefect", environment_of(home)) as client:
        ended = forked(
            *("search", photographs, "--backbone", "squeezenet1_0", "--weights", weights, "--image-size", "128"),
            *("--trials", str(TRIALS), "--epochs", "8", "--study", "clothing", "--model", "clothing", "--json"),
            *("--set", f"study.enqueue={POINTS}", "--set", "study.pruner=NopPruner", "--set", "train.batch_size=16"),
            *("--set", "train.precision=fp32", "--set", "train.channels_last=true"),  # instead of measuring it
            *("--set", "data.workers=1", "--set", "train.device=cpu", "--set", "promotion.exports=[]"),
            home=home,
            **client,
        )
        assert ended.code == 0, ended.err
        with _ui(home, environment_of(home), first_process) as (mlflow, tensorboard):
            yield Looked(home, ended.json, mlflow, tensorboard, client)


@contextmanager
def _ui(home: Path, environment: dict[str, str], first: Forks) -> Iterator[tuple[str, str]]:
    """`thawline ui`, up and answering; gives the addresses that it says."""
    ports = ("--mlflow-port", str(free_port()), "--tensorboard-port", str(free_port()))
    process = first.start(["ui", *ports], environment, home.parent)
    said, _ = Said(process.stdout), Said(process.stderr)
    try:
        said.wait_for("Ctrl-C")
        mlflow, tensorboard, _prefect = re.findall(r"http://\S+", said.text.partition("Ctrl-C")[0])
        yield mlflow, tensorboard
    finally:
        process.terminate()
        process.wait(60)
        process.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser"), SCREENSHOTS, width=1600) as opened:
        yield opened


# ------------------------------------------------------------------------------------------------------------ MLflow


def test_the_experiment_has_the_study_and_its_charts_are_in_groups(looked: Looked, browser: Browser) -> None:
    browser.open(looked.shown)
    browser.wait_for_text("clothing", "matching runs", "Model registry", "Model training")
    browser.keep("mlflow-experiment")
    browser.open(looked.page("runs", "&compareRunsMode=CHART"))
    browser.wait_for_text("best (", "test (")
    browser.keep("mlflow-charts")


def test_the_study_tells_how_it_ended_where_the_thaw_line_lies_and_where_to_look(
    looked: Looked, browser: Browser
) -> None:
    browser.open(looked.page(f"runs/{looked.outcome['run_id']}"))
    browser.wait_for_text("Study clothing", f"Best trial: {looked.best['trial']}")
    browser.click_text("Show more")
    text = browser.wait_for_text("freeze depth and the best val/accuracy there", "rank", "Skipped 1 unreadable")
    assert "broken.jpg" in text
    browser.keep("mlflow-study")
    links = {link.get_attribute("href") for link in browser.find("a")}
    assert any(f"/runs/{looked.best['run_id']}" in str(href) for href in links), "the best trial is a click away"
    assert any("/artifacts/report/report.html" in str(href) for href in links)


def test_the_report_can_be_read_within_mlflow(looked: Looked, browser: Browser) -> None:
    browser.open(looked.page(f"runs/{looked.outcome['run_id']}/artifacts/report/report.html"))
    browser.wait(lambda _: browser.find("iframe"))
    browser.driver.switch_to.frame(browser.find("iframe")[0])
    browser.wait_for_text("Freeze depth and learning rate", "Serve it with")
    browser.driver.switch_to.default_content()
    browser.keep("mlflow-report")


def test_a_trial_shows_its_curves_and_its_pictures_step_by_step(looked: Looked, browser: Browser) -> None:
    trial = looked.deepest["run_id"]
    browser.open(looked.page(f"runs/{trial}/model-metrics"))
    browser.wait_for_text("train (", "val (", "gradient (")
    browser.keep("mlflow-trial")
    pictures = [file.path for file in looked.client.list_artifacts(trial, "images") if file.path.endswith(".png")]
    assert pictures
    browser.open(looked.page(f"runs/{trial}/artifacts/{pictures[-1]}"))
    browser.wait(lambda _: browser.find("img[src^='blob:'], .js-plotly-plot image, canvas"))
    browser.keep("mlflow-pictures")


def test_trials_can_be_compared_in_parallel_coordinates_scatter_and_contour(looked: Looked, browser: Browser) -> None:
    runs = json.dumps([row["run_id"] for row in looked.outcome["trials"]])
    experiment = looked.client.get_run(looked.outcome["run_id"]).info.experiment_id
    browser.open(f"{looked.mlflow}/#/compare-runs?runs={runs}&experiments={json.dumps([experiment])}")
    text = browser.wait_for_text(f"Comparing {TRIALS} Runs", "freeze_depth", "learning_rate")
    assert "Parallel Coordinates Plot" in text
    browser.wait(lambda _: browser.find(".js-plotly-plot .parcoords, .js-plotly-plot svg"))
    browser.keep("mlflow-compare-parallel")
    for tab in ("Scatter Plot", "Contour Plot"):
        browser.click_text(tab)
        browser.wait(lambda _: browser.find("[role=tabpanel][data-state=active] .js-plotly-plot svg"))
        browser.keep(f"mlflow-compare-{tab.split()[0]}")


def test_models_can_be_compared_with_their_metrics_on_the_data(looked: Looked, browser: Browser) -> None:
    browser.open(looked.page("models"))
    text = browser.wait_for_text("clothing-trial-000", f"clothing-trial-{looked.best['trial']:03d}")
    assert text.count("clothing-trial-") >= TRIALS
    browser.keep("mlflow-models")
    browser.open(f"{looked.mlflow}/#/models/clothing/versions/1")
    browser.wait_for_text("Version 1", "champion", "thawline.verdict")
    browser.keep("mlflow-model-version")


# ------------------------------------------------------------------------------------------------------- TensorBoard


def test_every_tab_of_tensorboard_has_something_to_say(looked: Looked, browser: Browser) -> None:
    study = "clothing/study"
    deep = f"clothing/trial-{looked.deepest['trial']:02d} depth={looked.deepest['freeze_depth']} "
    tabs = ("scalars", "custom_scalars", "images", "graphs", "histograms", "pr_curves", "hparams", "mesh", "text")
    has = looked.tensorboard_has

    def names(plugin: str, beginning: str) -> set[str]:
        """Tags of the runs whose names begin so."""
        tags = has(f"plugin/{plugin}/tags")
        return {name for run, found in tags.items() if run.startswith(beginning) for name in found}

    # TensorBoard reads what there is in the background, also after it has begun to answer.
    for holds in (
        lambda _: names("scalars", deep) >= {"train/loss", "val/loss", "val/accuracy"},
        lambda _: "val/pictures" in names("images", deep),
        lambda _: any(name.startswith("weights/") for name in names("histograms", deep)),
        lambda _: any(name.startswith("gradients/") for name in names("histograms", deep)),
        lambda _: {name.partition("/")[0] for name in names("mesh", study)} >= {"response_surface", "features"},
        lambda _: len([name for name in names("pr_curves", study) if name.startswith("test")]) == 10,
        lambda _: has("plugin/graphs/info")[study]["run_graph"],
        lambda _: (
            {name for name, plugin in has("plugins_listing").items() if plugin["enabled"]} >= {*tabs, "projector"}
        ),
    ):
        browser.wait(holds)
    for tab in (*tabs, "projector"):
        browser.open(f"{looked.tensorboard.rstrip('/')}/#{tab}")
        browser.wait_for_text(*_SHOWN[tab], *(["frozen"] if tab == "graphs" and looked.best["freeze_depth"] else []))
        if tab in ("mesh", "projector"):
            browser.wait(lambda _: _has_canvas(browser))
        browser.keep(f"tensorboard-{tab}")


_SHOWN = {
    "scalars": ("train", "val"),
    "custom_scalars": ("loss",),
    "images": ("val/pictures",),
    "graphs": ("trainable",),
    "histograms": ("weights",),
    "pr_curves": ("test/",),
    "hparams": ("freeze_depth", "learning_rate"),
    "mesh": ("Point of view",),
    "text": ("thawline",),
    "projector": ("Points: 100", "Dimension: 512"),
}
"""Words of each tab."""


def _has_canvas(browser: Browser) -> bool:
    """Whether there is a canvas that something can be drawn on."""
    return bool(browser.driver.execute_script(_CANVASES))


_CANVASES = """
const found = [];
const walk = (root) => {
  for (const element of root.querySelectorAll('*')) {
    if (element.tagName === 'CANVAS' && element.width > 100) found.push(element);
    if (element.shadowRoot) walk(element.shadowRoot);
    if (element.tagName === 'IFRAME' && element.contentDocument) walk(element.contentDocument);
  }
};
walk(document);
return found.length > 0;
"""


# -------------------------------------------------------------------------------------------------------- the report


def test_the_report_is_one_page_that_reads_well_on_a_desk_and_on_a_phone(looked: Looked, browser: Browser) -> None:
    page = Path(looked.outcome["report"])
    for name, width in (("desk", 1200), ("phone", 390)):
        browser.resize(width, 900)
        browser.open(page.as_uri())
        text = browser.wait_for_text("Freeze depth and learning rate", "Serve it with", "Reproduce")
        height = browser.driver.execute_script("return document.documentElement.scrollHeight")
        wide = browser.driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, "nothing is wider than the screen"
        browser.resize(width, min(int(height), 12000))
        browser.keep(f"report-{name}")
    browser.resize(1600, 1000)
    named = "The linear probe" if looked.best["policy"] == "probe" else f"Freeze depth {looked.best['freeze_depth']}"
    assert named in text
    for section in ("Leaderboard", "Test results", "Mistakes", "Explanations", "Promotion", "Data"):
        assert section in text
    assert "broken.jpg" in text
    assert "thawline search" in text, "how to reproduce it"
    assert all(figure.get_attribute("aria-label") for figure in browser.find("[role=img]"))


# ----------------------------------------------------------------------------------------------------------- Prefect


def test_prefect_shows_the_tasks_by_name_the_progress_the_leaderboard_and_where_to_look(
    looked: Looked, browser: Browser
) -> None:
    (run,) = ask_prefect(looked.prefect, "flow_runs/filter", {"flows": {"name": {"any_": ["search"]}}})
    tasks = {each["name"] for each in ask_prefect(looked.prefect, "task_runs/filter", {"limit": 100})}
    assert any(re.match(r"trial-\d\d depth=\d lr=\S+", name) or "heads together" in name for name in tasks), tasks
    assert {name for name in tasks if name.startswith("write report")}
    artifacts = {
        each["key"]: each for each in ask_prefect(looked.prefect, "artifacts/filter", {"limit": 100}) if each["key"]
    }
    assert float(artifacts["trials"]["data"]) == 100
    assert looked.outcome["run_id"] in artifacts["outcome"]["data"]
    ui = looked.prefect["PREFECT_API_URL"].removesuffix("/api")
    browser.open(f"{ui}/runs/flow-run/{run['id']}")
    browser.wait_for_text(run["name"], "Artifacts")
    browser.keep("prefect-flow-run")
    browser.open(f"{ui}/artifacts")
    browser.wait_for_text("leaderboard", "decision", "outcome", "trials")
    browser.keep("prefect-artifacts")
    browser.open(f"{ui}/artifacts/artifact/{artifacts['outcome']['id']}")
    browser.wait_for_text("clothing version 1", "See more", looked.outcome["run_id"])
    browser.keep("prefect-outcome")
