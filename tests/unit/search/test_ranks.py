"""A trial on several devices is one trial, whatever happens to one of its processes."""

import dataclasses
from collections.abc import Callable
from multiprocessing import active_children
from typing import Any

import pytest
import torch
from stored import with_activations

from thawline.exceptions import ThawlineError
from thawline.search import conduct as conduct_module
from thawline.search.conduct import conduct
from thawline.search.ranks import RankFailed, RankOutOfMemory, told_as_of_rank
from thawline.search.spec import TrialSpec
from thawline.search.study import Study
from thawline.search.trial_result import TrialResult
from thawline.tracking import MlflowStore
from thawline.training import Decision, EpochResult, Interrupted

pytestmark = [pytest.mark.usefixtures("probe_once"), pytest.mark.xdist_group("processes")]

Make = Callable[..., TrialSpec]


def opened(spec: TrialSpec) -> Study:
    """The study of trials that were drawn before."""
    study = Study.open(spec.home, spec.study, spec.config, {spec.hyperparameters.backbone: 6}, "f")
    for _ in range(spec.number + 1):
        study.draw(1, trials=100)
    return study


def test_a_trial_whose_second_process_is_killed_resumes_and_ends_as_if_it_had_not_been(
    make_spec: Make, store: MlflowStore, caplog: pytest.LogCaptureFixture
) -> None:
    hurt, whole = (with_activations(make_spec(number=i, depth=5, devices_per_trial=2)) for i in (1, 2))
    study, killed = opened(whole), list[int]()
    report = study.report

    def report_and_kill(number: int, result: EpochResult) -> Decision:
        if number == 1 and not killed:
            workers = [each for each in active_children() if each.name == "thawline-worker"]
            assert len(workers) == 2
            victim = max(workers, key=lambda each: int(each.pid or 0))
            killed.append(int(victim.pid or 0))
            victim.kill()
        return report(number, result)

    study.report = report_and_kill  # type: ignore[method-assign]
    with caplog.at_level("WARNING", "thawline"):
        results = [*conduct([hurt], study, deadline=None), *conduct([whole], study, deadline=None)]
    assert "trial-01: its process was killed by signal 9; retrying from its last checkpoint" in caplog.text
    assert "trial-02" not in caplog.text
    histories = []
    for result in results:
        assert (result.state, result.epochs, result.value) == ("complete", 2, results[1].value)
        run = store.client.get_run(str(result.run_id))
        assert run.info.status == "FINISHED"
        histories.append(store.client.get_metric_history(run.info.run_id, "train/loss"))
    assert [metric.step for metric in histories[0]] == [1, 2], "no epoch is missing, and none is there twice"
    assert [metric.value for metric in histories[0]] == [metric.value for metric in histories[1]]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Lets the processes of trials answer so; what is returned fills with what they were called with."""

    def answer(*given: Any) -> list[Any]:
        seen, left = list[Any](), list(given)

        def call(calls: Any, **options: Any) -> Any:
            seen.append(calls)
            value = left.pop(0)
            if isinstance(value, Exception):
                raise value
            return value

        monkeypatch.setattr(conduct_module, "call_in_workers", call)
        return seen

    return answer


def test_out_of_memory_on_one_device_tries_all_again_with_smaller_parts_until_there_are_none(
    make_spec: Make, answers: Callable[..., list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    spec = make_spec(number=1, devices_per_trial=2)
    done = TrialResult.without_result(1, reason="", epochs=2, seconds=1.0)
    seen = answers(RankOutOfMemory("out of memory"), (done,))
    assert conduct([spec], opened(spec), deadline=None) == [done]
    assert [[args[0].accumulation for _, args in calls] for calls in seen] == [[1, 1], [2, 2]]
    assert "trial-01: out of memory; retrying with batches in 2 parts on each device" in caplog.text
    seen = answers(*[RankOutOfMemory("out of memory, even with two images at a time")] * 2)
    (result,) = conduct([spec], opened(spec), deadline=None)
    assert len(seen) == 2, "of eight images two processes have two parts of two each"
    assert (result.state, result.reason) == ("failed", "out of memory, even with two images at a time")


def test_what_fails_in_one_process_fails_the_trial_with_its_reason(
    make_spec: Make, answers: Callable[..., list[Any]]
) -> None:
    spec = make_spec(number=1, devices_per_trial=2)
    answers(RankFailed("OSError: the disk is gone"))
    (result,) = conduct([spec], opened(spec), deadline=None)
    assert (result.state, result.reason) == ("failed", "OSError: the disk is gone")


def test_heads_together_and_the_probe_take_one_process(
    make_spec: Make, answers: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(conduct_module, "call_in_worker", lambda function, specs, **more: calls.append(specs) or [])
    together = answers(())
    specs = [make_spec(number=i, devices_per_trial=2) for i in (1, 2)]
    study = opened(specs[1])
    probe = dataclasses.replace(specs[0], hyperparameters=dataclasses.replace(specs[0].hyperparameters, policy="probe"))
    conduct(specs, study, deadline=None)
    conduct([probe], study, deadline=None)
    assert (len(calls), together) == (2, [])
    conduct(specs[:1], study, deadline=None)
    assert (len(calls), len(together)) == (2, 1), "a control"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), RankOutOfMemory),
        (ThawlineError("a rule"), RankFailed),
        (OSError("the disk is gone"), RankFailed),
        (RuntimeError("CUDA error: device-side assert triggered"), RuntimeError),
        (Interrupted(), Interrupted),
    ],
    ids=str,
)
def test_the_driver_is_told_what_failed_in_a_process(error: Exception, expected: type[Exception]) -> None:
    with pytest.raises(Exception) as told, told_as_of_rank():  # noqa: PT011  the type is what is tested
        raise error
    assert type(told.value) is expected
