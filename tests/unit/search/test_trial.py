"""A trial returns what came of it, and its record says the same."""

import dataclasses
import os
import signal
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch

from thawline.search import trial as trial_module
from thawline.search.conduct import conduct
from thawline.search.study import Study
from thawline.search.trial import TrialSpec, run_trial, trial_folder
from thawline.search.worker import TrialCrashed, run_in_process
from thawline.tracking import MlflowStore
from thawline.training import Decision, EpochResult

Make = Callable[..., TrialSpec]


def go_on(result: EpochResult) -> Decision:
    return Decision.CONTINUE


def run_of(store: MlflowStore, run_id: str | None) -> Any:
    assert run_id is not None
    return store.client.get_run(run_id)


def test_a_complete_trial_is_finished_in_mlflow_with_its_metrics_and_best_checkpoint(
    make_spec: Make, store: MlflowStore, own_home: Path
) -> None:
    spec = make_spec()
    result = run_trial(spec, go_on)
    assert (result.state, result.epochs, result.reason, result.unsent) == ("complete", 2, "", 0)
    run = run_of(store, result.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "trial-00 depth=6 lr=1.0e-2"
    assert run.data.tags["mlflow.parentRunId"] == spec.parent_run_id
    assert run.data.params["freeze_depth"] == "6"
    assert set(run.data.metrics) >= {"train/loss", "val/macro_f1", "val_recall/bright", "best/accuracy", "time/seconds"}
    history = store.client.get_metric_history(run.info.run_id, "val/accuracy")
    assert [metric.step for metric in history] == [1, 2]
    assert result.value == max(metric.value for metric in history)
    stored = [file.path for file in store.client.list_artifacts(run.info.run_id, "checkpoints")]
    assert stored == [f"checkpoints/epoch-{result.best_epoch:04d}.safetensors"]
    assert list((own_home / "tensorboard" / "tests" / "trial-000").glob("events.*"))


def test_a_pruned_trial_is_killed_in_mlflow_and_says_after_which_epoch(make_spec: Make, store: MlflowStore) -> None:
    result = run_trial(make_spec(epochs=3), lambda epoch: Decision.PRUNE if epoch.epoch == 1 else Decision.CONTINUE)
    assert (result.state, result.epochs, result.reason) == ("pruned", 1, "pruned after epoch 1")
    assert run_of(store, result.run_id).info.status == "KILLED"


def test_a_trial_that_diverges_is_failed_with_the_reason(make_spec: Make, store: MlflowStore) -> None:
    result = run_trial(make_spec(learning_rate=1e30, gradient_clip=None), go_on)
    assert result.state == "failed"
    assert "loss became nan in epoch 1 at learning rate 1e+30" in result.reason
    run = run_of(store, result.run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["thawline.reason"] == result.reason


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_is_tried_once_more_at_half_the_batch_and_then_the_trial_is_whole(
    make_spec: Make, store: MlflowStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    parts: list[int] = []
    original = trial_module.fit

    def fit(*arguments: Any, accumulation: int, **more: Any) -> Any:
        parts.append(accumulation)
        if accumulation == 1:
            raise error
        return original(*arguments, accumulation=accumulation, **more)

    monkeypatch.setattr(trial_module, "fit", fit)
    result = run_trial(make_spec(), go_on)
    assert parts == [1, 2]
    assert result.state == "complete"
    assert "half the batch size" in run_of(store, result.run_id).data.tags["thawline.out_of_memory"]


def test_out_of_memory_at_half_the_batch_too_fails_the_trial_and_says_what_to_do(
    make_spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []

    def fit(*arguments: Any, accumulation: int, **more: Any) -> Any:
        attempts.append(accumulation)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trial_module, "fit", fit)
    result = run_trial(make_spec(), go_on)
    assert attempts == [1, 2]
    assert result.state == "failed"
    assert result.reason.startswith("out of memory, also at half the batch size. Lower train.batch_size")


def test_another_error_is_not_tried_again(make_spec: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []

    def fit(*arguments: Any, accumulation: int, **more: Any) -> Any:
        attempts.append(accumulation)
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(trial_module, "fit", fit)
    result = run_trial(make_spec(), go_on)
    assert attempts == [1]
    assert (result.state, result.reason) == ("failed", "RuntimeError: shapes do not match")


def test_a_tracking_server_that_is_down_stops_nothing_and_what_was_not_sent_is_kept(
    make_spec: Make, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec()
    nowhere = dataclasses.replace(spec.store, uri="http://127.0.0.1:9", registry_uri="http://127.0.0.1:9")
    from thawline.tracking import MlflowTracker

    original = MlflowTracker.for_trial
    monkeypatch.setattr(
        MlflowTracker, "for_trial", lambda *args, **kwargs: original(*args, grace_seconds=0.5, **kwargs)
    )
    result = run_trial(dataclasses.replace(spec, store=nowhere), go_on)
    assert result.state == "complete"
    assert result.unsent > 0
    assert result.run_id is None
    assert list((own_home / "unsent").glob("*.jsonl"))


@pytest.mark.xdist_group("processes")
def test_a_trial_in_a_process_of_its_own_returns_the_same_as_in_this_one(make_spec: Make, own_home: Path) -> None:
    here = run_trial(make_spec(number=0), go_on)
    told: list[int] = []
    there = run_in_process(make_spec(number=1), lambda epoch: (told.append(epoch.epoch), Decision.CONTINUE)[1])
    assert told == [1, 2]
    assert (there.state, there.value, there.best_epoch) == (here.state, here.value, here.best_epoch)


@pytest.mark.xdist_group("processes")
def test_a_killed_process_is_a_failed_trial_and_its_run_is_closed(
    make_spec: Make, store: MlflowStore, own_home: Path
) -> None:
    spec = make_spec()
    study = Study.open(own_home, spec.study, spec.config, {spec.hyperparameters.backbone: 6}, "f")
    study.ask()
    killed: list[int] = []
    report = study.report

    def report_and_kill(number: int, result: EpochResult) -> bool:
        child = next(process for process in active_children() if process.name == "trial-00")
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        killed.append(child.pid)
        return report(number, result)

    study.report = report_and_kill  # type: ignore[method-assign]
    result = conduct(spec, study, deadline=None)
    assert killed
    assert (result.state, result.reason) == ("failed", "the trial's process was killed by signal 9")
    study.tell(result)
    assert [record.state for record in study.records()] == ["failed"]
    if result.run_id is not None:  # the child's first record may not have left it yet
        assert run_of(store, result.run_id).info.status == "FAILED"


@pytest.mark.xdist_group("processes")
def test_an_error_of_the_driver_ends_the_child(make_spec: Make) -> None:
    def broken(result: EpochResult) -> Decision:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_process(make_spec(epochs=50), broken)
    assert not [process for process in active_children() if process.name == "trial-00"]


def test_the_crash_error_names_the_signal_or_the_exit_code() -> None:
    assert str(TrialCrashed(-9)) == "the trial's process was killed by signal 9"
    assert str(TrialCrashed(3)) == "the trial's process ended with 3"


def test_a_time_limit_ends_a_running_trial_at_its_next_epoch_and_keeps_its_value(
    make_spec: Make, own_home: Path
) -> None:
    spec = make_spec(epochs=5)
    study = Study.open(own_home, spec.study, spec.config, {spec.hyperparameters.backbone: 6}, "f")
    study.ask()
    result = conduct(spec, study, deadline=0.0)
    assert (result.state, result.epochs) == ("complete", 1)
    assert result.reason == "stopped by the time limit after epoch 1"
    assert result.value is not None
    assert trial_folder(own_home, spec.study, 0).is_dir()
