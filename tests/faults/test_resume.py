"""Killed with -9 in the middle of a trial, a user's first search resumes: same study, same trial, same epoch, same run.

It begins in an empty home and without a Prefect server.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import Forks
from faults import OPTIONS, TRIALS, Life, Search, facts
from servers import clean_environment

from thawline.prefect_server import shut_down

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("resume")]


@pytest.fixture
def first_search(shapes: Path, tmp_path: Path) -> Iterator[Search]:
    """The one that ``reference`` is the outcome of; every life of it is a process that loads its libraries itself."""
    home = tmp_path / "home"
    settings = {"THAWLINE_HOME": str(home), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    search = Search(shapes, home, clean_environment() | settings, [*OPTIONS, *TRIALS])
    yield search
    for life in search.lives:
        life.kill_everything()
    shut_down(home)


def has_said_at_once(life: Life, line: str) -> bool:
    """Wait for a line, before which the result of the linear probe must have been said."""
    assert life.says(line), life.lines
    said = "\n".join(life.lines)
    return "linear probe: val/accuracy" in said.partition(line)[0]


def test_a_killed_search_resumes_and_ends_like_one_that_was_never_killed(
    first_search: Search, first_process: Forks, reference: dict[str, Any]
) -> None:
    first_search.forks = first_process
    life = first_search.start()
    assert has_said_at_once(life, " trial-02 epoch 2/4")
    life.kill_everything()
    begun = runs_by_trial(first_search)

    first_search.forks = None
    resumed = first_search.finish()
    assert facts(resumed) == facts(reference)
    assert resumed["test"] == reference["test"]
    runs = runs_by_trial(first_search)
    assert begun.items() <= runs.items(), "the same MLflow runs continue"
    assert len(first_search.runs()) == 5, "a parent and four trials, none doubled"
    for number, epochs in {"0": [1], "1": [1, 2, 3, 4], "2": [1, 2, 3, 4], "3": [1, 2, 3, 4]}.items():
        history = first_search.store.client.get_metric_history(runs[number], "val/accuracy")
        assert [metric.step for metric in history] == epochs, "no epoch lost, and none trained twice"


def test_a_search_that_is_asked_to_stop_leaves_at_once_closes_its_run_and_leaves_no_process_behind(
    first_search: Search,
) -> None:
    life = first_search.start()
    assert has_said_at_once(life, " trial-02 epoch 1/4")
    family = psutil.Process(life.process.pid).children(recursive=True)
    assert any("forkserver" in " ".join(child.cmdline()) for child in family)
    family = [child for child in family if "prefect_server" not in " ".join(child.cmdline())]  # meant to stay
    life.process.terminate()
    code, _ = life.end(60)
    assert code == 143
    assert life.lines[-2:] == ["Stopped.", "The same command resumes where it stopped."]
    assert "Traceback" not in "\n".join(life.lines)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    assert shut_down(first_search.home), "Prefect's server waits for the next command"
    statuses = {run.data.tags.get("thawline.trial", "study"): run.info.status for run in first_search.runs()}
    assert statuses["study"] == "KILLED"
    assert statuses["0"] == "FINISHED", "the linear probe"
    # The trial records itself from a thread of its own, which may not have reached the store before the end came.
    assert statuses.get("2", "RUNNING") == "RUNNING", "the trial is not over: it resumes later"


def runs_by_trial(search: Search) -> dict[str | None, str]:
    """Their ids by the numbers of their trials; that of the study by ``None``."""
    return {run.data.tags.get("thawline.trial"): run.info.run_id for run in search.runs()}
