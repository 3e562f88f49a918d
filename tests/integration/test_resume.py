"""Killed with -9 in the middle of a trial, the same command resumes: same study, same trial, same epoch, same run."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from said import Said

from thawline.prefect_server import shut_down
from thawline.tracking import connect

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("resume")]

OPTIONS = [
    *("--backbone", "mobilenet_v3_small", "--weights", "starter", "--image-size", "32", "--trials", "4"),
    *("--epochs", "3", "--batch-size", "16", "--study", "shapes", "--set", "data.workers=1"),
    *("--exact", "--set", "study.pruner=NopPruner", "--set", "train.device=cpu", "--json"),
]


@contextmanager
def search_until(
    line_start: str, data: Path, environment: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[str], Said]]:
    """Run the search, in a process group of its own, until a log line begins like this."""
    command = [sys.executable, "-m", "thawline", "search", str(data), *OPTIONS]
    command.remove("--json")
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        said = Said(process.stderr)
        try:
            said.wait_for(f"^.{{9}}{re.escape(line_start)}")
            assert "linear probe: val/accuracy" in said.text.partition(line_start)[0], "the first result, said at once"
            yield process, said
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_killed_search_resumes_and_ends_like_one_that_was_never_killed(
    tmp_path: Path,
    thawline: Callable[..., Any],
    forked: Callable[..., Any],
    prepared: Callable[[Path], Path],
    prefect: dict[str, str],
    draw_pictures: Any,
    environment_of: Any,
) -> None:
    data = draw_pictures(tmp_path / "shapes", count=16)
    killed_home = tmp_path / "killed"
    whole = forked("search", data, *OPTIONS, home=prepared(tmp_path / "whole"), **prefect).json

    with search_until("trial-02 epoch 2/3", data, environment_of(killed_home)):
        pass  # and kill everything that belongs to it
    client = connect(f"sqlite:///{killed_home}/mlflow.db", home=killed_home, experiment="thawline").client
    begun = {run.data.tags.get("thawline.trial"): run.info.run_id for run in _runs(client)}
    resumed = thawline("search", data, *OPTIONS, home=killed_home)

    def facts(outcome: dict[str, Any]) -> list[Any]:
        keys = ("trial", "state", "value", "freeze_depth", "learning_rate", "best_epoch", "epochs")
        return [[row[key] for key in keys] for row in outcome["trials"]]

    assert facts(resumed.json) == facts(whole)
    assert resumed.json["test"] == whole["test"]
    runs = {run.data.tags.get("thawline.trial"): run.info.run_id for run in _runs(client)}
    assert begun.items() <= runs.items(), "the same MLflow runs continue"
    assert len(_runs(client)) == 5, "a parent and four trials, none doubled"
    for number, epochs in {"0": [1], "1": [1, 2, 3], "2": [1, 2, 3], "3": [1, 2, 3]}.items():
        history = client.get_metric_history(runs[number], "val/accuracy")
        assert [metric.step for metric in history] == epochs, "no epoch lost, and none trained twice"


def test_a_search_that_is_asked_to_stop_leaves_at_once_closes_its_run_and_leaves_no_process_behind(
    tmp_path: Path, draw_pictures: Any, environment_of: Any
) -> None:
    data, home = draw_pictures(tmp_path / "shapes", count=16), tmp_path / "home"
    with search_until("trial-02 epoch 1/3", data, environment_of(home)) as (process, stderr):
        family = psutil.Process(process.pid).children(recursive=True)
        assert any("forkserver" in " ".join(child.cmdline()) for child in family)
        family = [child for child in family if "prefect_server" not in " ".join(child.cmdline())]  # meant to stay
        process.terminate()
        assert process.wait(60) == 143
        said = stderr.all()
    assert said.endswith("Stopped.\nThe same command resumes where it stopped.\n")
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    assert shut_down(home), "Prefect's server waits for the next command"
    client = connect(f"sqlite:///{home}/mlflow.db", home=home, experiment="thawline").client
    statuses = {run.data.tags.get("thawline.trial", "study"): run.info.status for run in _runs(client)}
    assert statuses["study"] == "KILLED"
    assert statuses["0"] == "FINISHED", "the linear probe"
    # The trial records itself from a thread of its own, which may not have reached the store before the end came.
    assert statuses.get("2", "RUNNING") == "RUNNING", "the trial is not over: it resumes later"


def _runs(client: Any) -> list[Any]:
    experiment = client.get_experiment_by_name("thawline")
    return list(client.search_runs([experiment.experiment_id]))
