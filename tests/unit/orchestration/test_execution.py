"""Where trials run."""

from typing import Any

import pytest

from thawline.config import SearchConfig
from thawline.orchestration.execution import trial_runner


@pytest.mark.parametrize(("at_once", "cores", "workers"), [(1, 64, 1), (3, 64, 3), (8, 2, 2)])
def test_a_dask_cluster_of_one_s_own_has_a_worker_for_each_trial_that_runs_at_once_but_no_more_than_cores(
    at_once: int, cores: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect_dask.task_runners import DaskTaskRunner  # after Thawline has made Prefect's folder

    started: list[dict[str, Any]] = []
    monkeypatch.setattr("dask.system.CPU_COUNT", cores)
    monkeypatch.setattr(DaskTaskRunner, "__enter__", lambda runner: started.append(runner.cluster_kwargs))
    monkeypatch.setattr(DaskTaskRunner, "__exit__", lambda *_: None)
    given = {"data": {"path": "photos"}, "execution": {"kind": "dask"}, "study": {"workers": at_once}}
    with trial_runner(SearchConfig.build(given)):
        assert [each["n_workers"] for each in started] == [workers]


@pytest.mark.parametrize(("gpus", "of_a_trial", "warned"), [(2.0, 0.0, True), (2.0, 0.5, False), (0.0, 0.0, False)])
def test_gpus_of_a_ray_cluster_that_trials_do_not_ask_for_are_named(
    gpus: float, of_a_trial: float, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from prefect_ray import RayTaskRunner  # after Thawline has made Prefect's folder

    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0, "GPU": gpus})
    monkeypatch.setattr(RayTaskRunner, "__enter__", lambda runner: runner)
    monkeypatch.setattr(RayTaskRunner, "__exit__", lambda *_: None)
    given = {"data": {"path": "photos"}, "execution": {"kind": "ray", "gpus": of_a_trial}}
    with caplog.at_level("WARNING", "thawline.search"), trial_runner(SearchConfig.build(given)):
        pass
    said = "the Ray cluster has 2 GPUs, but execution.gpus is 0: all trials run on CPUs. Set execution.gpus=1"
    assert (said in caplog.text) is warned
