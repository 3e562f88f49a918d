"""The verbs that need no search, and what the command line does with mistakes."""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interruptions import STOPPED, stop
from terminals import terminal

from thawline.config import TrackingConfig
from thawline.prefect_server import shut_down
from thawline.tracking import connect, resolve_uri

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("commands")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, draw_pictures: Callable[..., Path]) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("commands") / "shapes", count=12)


def test_help_and_version_load_no_heavy_library() -> None:
    code = (
        "import sys, thawline.cli; from typer.main import get_command; get_command(thawline.cli.app); "
        "heavy = ('torch', 'mlflow', 'optuna', 'prefect', 'torchvision', 'pandas'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_module_and_the_command_are_the_same(thawline: Callable[..., Any], tmp_path: Path) -> None:
    answer = thawline("--version", home=tmp_path / "home")
    script = Path(sys.executable).with_name("thawline")
    assert answer.out == subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
    assert answer.out.startswith("thawline ")


def test_check_reports_classes_splits_and_digest(data: Path, forked: Callable[..., Any], tmp_path: Path) -> None:
    report = forked("check", data, "--json", home=tmp_path / "home").json
    text = json.dumps(report)
    assert {"circle", "square", "stripes"} <= set(report["classes"])
    assert "digest" in text
    assert "circle" in forked("check", data, home=tmp_path / "home").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "nowhere"], "nowhere"),
        (["search", "DATA", "--recipe", "none.yaml"], "Cannot read the recipe none.yaml"),
        (["search", "DATA", "--set", "train.epoch=3"], "train.epoch: unknown key. Did you mean 'epochs'?"),
        (["search", "DATA", "--set", "study.sampler=Magic"], "study.sampler: Optuna has no 'Magic'"),
        (["search", "DATA", "--set", "train.device=cuda:7"], "train.device=cuda:7 cannot be used"),
        (["search", "DATA", "--tracking-uri", "./mlruns"], "is a folder, and MLflow no longer records in folders"),
        (["search", "DATA", "--backbone", "resnt50"], "Unknown backbone 'resnt50'. Did you mean 'resnet50'?"),
        (["search", "DATA", "--weights", "starter"], "Starter weights are shipped for 'mobilenet_v3_small' only"),
        (["search", "DATA", "--set", "space.freeze_depth=[0,9]"], "because resnet18 has 5 layer groups"),
        (
            ["search", "DATA", "--backbone", "resnet18", "--set", "space.backbone=[resnet34, resnet50]"],
            "--backbone resnet18 would be ignored, because space.backbone lists resnet34, resnet50. To search",
        ),
        (["search", "DATA", "--max-length", "64"], "settings are for texts: backbone.max_length=64. Leave them out."),
        (["search", "DATA", "--set", "data.header=true"], "data.header=True: only for tables, but"),
        (["search", "DATA", "--recipe", "thorough"], "The recipe 'thorough' is now 'best'"),
        (["search", "DATA", "--trials", "0"], "--trials (study.trials): Input should be greater than or equal to 1"),
        (["check", "nowhere"], "nowhere"),
        (["summary", "resnt50"], "Unknown backbone 'resnt50'. Did you mean 'resnet50'?"),
        (
            ["summary", "resnet18", "--freeze-depth", "7"],
            "--freeze-depth must be between 0 (train everything) and 5 (head only)",
        ),
        (["backbones", "nothing-like-it"], "hf:FOLDER or hf:ORG/NAME[@REVISION] loads a text encoder"),
        (["leaderboard"], "No Thawline home here"),
        (["predict", "a@b@c", "."], "A model must be given as NAME, NAME@ALIAS or NAME/VERSION"),
        (["recipes", "copy", "balancd"], "Did you mean 'balanced'?"),
        (["recipes", "copy", "quick"], "The recipe 'quick' is now 'fast': `thawline recipes copy fast`."),
        (["search", "DATA", "--preset", "fastest"], "--preset must be one of fast, balanced, best, but got 'fastest'."),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_clear_message_and_exit_code_two(
    arguments: list[str],
    message: str,
    data: Path,
    forked: Callable[..., Any],
    prefect: dict[str, str],
    tmp_path: Path,
) -> None:
    # With the worker's server: where none is named, a search starts one before it looks at more than its options.
    answer = forked(*(data if word == "DATA" else word for word in arguments), home=tmp_path / "home", **prefect)
    assert answer.code == 2
    assert answer.out == ""
    assert message in answer.err
    assert "Traceback" not in answer.err
    told = re.sub(r"^\d\d:\d\d:\d\d loading PyTorch, MLflow and Prefect\n", "", answer.err)
    assert told.startswith("Error: ")


def test_debug_shows_the_traceback(forked: Callable[..., Any], tmp_path: Path) -> None:
    answer = forked("--debug", "check", "nowhere", home=tmp_path / "home")
    assert answer.code == 1
    assert "Traceback" in answer.err


def test_missing_weights_are_reported_before_anything_is_trained(
    data: Path, forked: Callable[..., Any], prefect: dict[str, str], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    answer = forked("search", data, "--weights", tmp_path / "none.safetensors", home=home, **prefect)
    assert answer.code == 2
    assert "none.safetensors" in answer.err
    assert "Traceback" not in answer.err
    assert not (home / "studies").exists()


def test_backbones_lists_layer_groups_parameters_and_weights(forked: Callable[..., Any], tmp_path: Path) -> None:
    listed = forked("backbones", "--json", home=tmp_path / "home").json
    assert len(listed) >= 80
    resnet = next(row for row in listed if row["name"] == "resnet18")
    assert resnet["layer_groups"]
    assert resnet["parameters"] == 11_689_512
    assert resnet["weights"] == ["default"]
    only = forked("backbones", "vit*", home=tmp_path / "home").out
    assert "vit_b_16" in only
    assert "resnet18" not in only


def test_summary_shows_what_is_frozen_and_trainable(forked: Callable[..., Any], tmp_path: Path) -> None:
    text = forked("summary", "mobilenet_v3_small", "--freeze-depth", "2", home=tmp_path / "home").out
    assert "frozen" in text
    assert "trainable" in text


def test_recipes_are_listed_and_copied(forked: Callable[..., Any], tmp_path: Path) -> None:
    home = tmp_path / "home"
    names = {row["name"] for row in forked("recipes", "--json", home=home).json}
    assert {"demo", "fast", "balanced", "best"} <= names
    answer = forked("recipes", "copy", "fast", home=home)
    assert answer.code == 0
    assert (tmp_path / "fast.yaml").is_file()
    assert forked("recipes", "copy", "fast", home=home).code == 2


@pytest.mark.timeout(900)
def test_a_preset_with_a_time_limit_is_a_whole_search_of_as_many_trials_as_there_are(
    data: Path, forked: Callable[..., Any], prefect: dict[str, str], tmp_path: Path
) -> None:
    # A grid has an end, which does not depend on how quick the machine is.
    grid = "study.sampler_options={search_space: {freeze_depth: [6], learning_rate: [0.001, 0.01]}}"
    options = ("--preset", "fast", "--weights", "starter", "--image-size", "32", "--timeout", "60", "--json")
    options = (*options, "--set", "study.sampler=GridSampler", "--set", grid, "--set", "data.workers=1")
    home = tmp_path / "home"
    searched = forked("search", data, *options, home=home, **prefect)
    assert searched.code == 0, searched.err
    outcome = searched.json
    assert sorted(trial["trial"] for trial in outcome["trials"]) == [0, 1, 2]
    trained = [trial for trial in outcome["trials"] if trial["trial"] > 0]
    assert {trial["epochs"] for trial in trained} == {4}, "the preset's"
    client = connect(f"sqlite:///{home}/mlflow.db", home=home, experiment="thawline").client
    params = client.get_run(outcome["run_id"]).data.params
    assert params["study.timeout_minutes"] == "60.0"
    assert "study.trials" not in params, "nobody chose it"


def test_doctor_finds_this_environment_well_and_a_home_that_cannot_be_written_wrong(
    forked: Callable[..., Any], tmp_path: Path
) -> None:
    well = forked("doctor", "--json", home=tmp_path / "home")
    assert well.code == 0
    assert {"fastapi", "sqlalchemy", "home", "device", "starter weights"} <= {row["subject"] for row in well.json}
    (tmp_path / "file").write_text("")
    ill = forked("doctor", "--json", home=tmp_path / "home", THAWLINE_HOME=str(tmp_path / "file" / "home"))
    assert ill.code == 1
    wrong = [row for row in ill.json if row["status"] == "wrong"]
    assert [row["subject"] for row in wrong] == ["home"]
    assert "THAWLINE_HOME" in wrong[0]["advice"]


def test_ui_shows_the_pages_of_mlflow_tensorboard_and_prefect_until_ctrl_c(environment_of: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    connect(resolve_uri(TrackingConfig(), home), home=home, experiment="thawline")
    (tmp_path / "browser").write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    (tmp_path / "browser").chmod(0o755)
    with terminal(
        "ui", "--open", env={**environment_of(home), "BROWSER": f"{tmp_path}/browser %s"}, cwd=tmp_path
    ) as process:
        assert process.says("Press Ctrl-C to stop them."), process.text
        addresses = dict(re.findall(r"(\w+) +(http://\S+)", process.text))
        assert set(addresses) == {"MLflow", "TensorBoard", "Prefect"}
        for address in addresses.values():
            assert address.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(address) as answer:
                assert answer.status == 200
        assert "workflowType=machine_learning" in addresses["MLflow"], (
            "the studies, and not the page on language models"
        )
        assert process.says("Opened MLflow"), process.text
        assert (tmp_path / "opened").read_text().strip() == addresses["MLflow"]
        assert stop(process, home, "ctrl-c").count(STOPPED) == 1
    assert shut_down(home), "Prefect's server is there for the next command"
    for address in addresses.values():
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(address, timeout=5)
