"""``mlflow run mlproject`` runs the same search, and the study adopts the run that MLflow made."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from thawline.tracking import connect

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("commands")]

PROJECT = Path(__file__).parents[2] / "mlproject"


def test_mlflow_run_searches_and_the_study_is_the_run_that_mlflow_made(
    tmp_path: Path, draw_pictures: Any, environment_of: Any, prepared: Any, prefect: dict[str, str]
) -> None:
    data, home = draw_pictures(tmp_path / "shapes", count=12), prepared(tmp_path / "home")
    uri = f"sqlite:///{home}/mlflow.db"
    client = connect(uri, home=home, experiment="projects").client
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "backbone: {name: mobilenet_v3_small, weights: starter}\n"
        "train: {epochs: 1}\n"
        "tracking: {report: false, observe: false}\n"
        "promotion: {exports: []}\n"
    )
    parameters = {
        "data": data,
        # Not listed in MLproject: MLflow passes them on as options.
        "recipe": recipe,
        "trials": "1",
        "image-size": "32",
        "model": "shapes",
        "set": "data.workers=1",
    }
    command = [sys.executable, "-m", "mlflow", "run", str(PROJECT), "-e", "search", "--env-manager", "local"]
    command += ["--experiment-name", "projects"]
    for name, value in parameters.items():
        command += ["-P", f"{name}={value}"]
    # The entry point's `thawline` is the one of this environment.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        command,
        env={**environment_of(home), **prefect, "MLFLOW_TRACKING_URI": uri, "PATH": path},
        capture_output=True,
        text=True,
        timeout=500,
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr
    experiment = client.get_experiment_by_name("projects")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1, "the run that MLflow made is the study's own"
    assert parents[0].data.tags["mlflow.project.entryPoint"] == "search"
    assert [parents[0].data.params[name] for name in ("study.trials", "train.epochs")] == ["1", "1"]
    assert parents[0].data.params["backbone.name"] == "mobilenet_v3_small", "nothing wins over the recipe unasked"
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(children) == 1
    assert str(client.get_model_version_by_alias("shapes", "challenger").version) == "1"
