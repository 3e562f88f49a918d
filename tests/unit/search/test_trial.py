"""A trial returns its result, and its record says the same."""

import dataclasses
import errno
import os
import re
import shutil
import signal
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from stored import with_activations

from thawline import backbones
from thawline.activations import StoredSplits
from thawline.config import DataConfig
from thawline.data import decoded, scan
from thawline.search import trial as trial_module
from thawline.search.conduct import _run, conduct
from thawline.search.spec import TrialSpec
from thawline.search.study import Study
from thawline.search.trial import run_together, run_trial
from thawline.search.trial_result import trial_folder
from thawline.search.worker import WorkerCrashed, call_in_worker
from thawline.tracking import MlflowStore
from thawline.training import CheckpointFolder, Decision, EpochResult, Interrupted, Runtime, load_checkpoint
from thawline.training.observation import Allowance

pytestmark = pytest.mark.usefixtures("probe_once")

Make = Callable[..., TrialSpec]
BACKBONE, SIZE = "mobilenet_v3_small", 32


def go_on(result: EpochResult) -> Decision:
    return Decision.CONTINUE


def opened(spec: TrialSpec) -> Study:
    """The study of a trial, of which it and those before it were drawn; the first is the linear probe."""
    study = Study.open(spec.home, spec.study, spec.config, {spec.hyperparameters.backbone: 6}, "f")
    for _ in range(spec.number + 1):
        study.draw(1, trials=100)
    return study


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
    numbers = sorted(key for key, value in run.data.params.items() if re.fullmatch(r"[\d.e-]+", value))
    assert numbers[:2] == ["freeze_depth", "learning_rate"], "the axes that MLflow's contour plot begins with"
    assert run.data.params["log10_learning_rate"] == "-2.0000", "parallel coordinates have no logarithmic axes"
    assert sorted(run.data.metrics)[0] == "best/accuracy", "what parallel coordinates begin with"
    assert "None" not in run.data.params.values()
    assert set(run.data.metrics) >= {"train/loss", "val/macro_f1", "val_recall/bright", "best/accuracy", "time/seconds"}
    history = store.client.get_metric_history(run.info.run_id, "val/accuracy")
    assert [metric.step for metric in history] == [1, 2]
    assert result.value == max(metric.value for metric in history)
    (checkpoint,) = store.client.search_logged_models([run.info.experiment_id])
    assert (checkpoint.source_run_id, checkpoint.name) == (run.info.run_id, "tests-trial-000")
    assert checkpoint.tags["thawline.epoch"] == str(result.best_epoch)
    assert {metric.key: metric.value for metric in checkpoint.metrics}["val/accuracy"] == result.value
    stored = [file.path for file in store.client.list_logged_model_artifacts(checkpoint.model_id)]
    assert stored == [f"epoch-{result.best_epoch:04d}.safetensors"]
    assert list((own_home / "tensorboard" / "tests" / "trial-00 depth=6 lr=1.0e-2").glob("events.*"))


def test_what_a_trial_looks_like_from_inside_is_recorded_and_a_group_without_gradient_is_named(
    make_spec: Make, store: MlflowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = trial_module._backbone

    def with_a_layer_that_lets_nothing_through(spec: TrialSpec, runtime: Runtime) -> backbones.Backbone:
        backbone = build(spec, runtime)
        with torch.no_grad():
            backbone.module.get_parameter("classifier.0.weight").mul_(1e-9)
        return backbone

    monkeypatch.setattr(Allowance, "permits", lambda allowance, seconds=0.0: True)
    healthy = run_trial(make_spec(depth=4), go_on)
    monkeypatch.setattr(trial_module, "_backbone", with_a_layer_that_lets_nothing_through)
    broken = run_trial(make_spec(number=1, depth=4, learning_rate=1e-12), go_on)
    run, other = run_of(store, healthy.run_id), run_of(store, broken.run_id)
    groups = ("features.9-12", "classifier.0", "head")
    assert set(run.data.metrics) >= {f"{kind}/{name}" for kind in ("gradient", "gradient_step") for name in groups}
    steps = store.client.get_metric_history(run.info.run_id, "gradient_step/head")
    assert [metric.step for metric in steps] == [1, 2, 3, 4, 5, 6, 7, 8]
    files = [file.path for file in store.client.list_artifacts(run.info.run_id, "images")]
    assert {re.search(r"step\W(\d+)", file)[1] for file in files} == {"1", "2"}
    notes = [each.data.tags.get("mlflow.note.content", "") for each in (run, other)]
    assert notes[0] == ""
    assert notes[1].startswith("The gradient vanishes in features.9-12: in 100% of the steps")
    assert "classifier.0" not in notes[1]


def test_a_trial_that_is_not_to_be_observed_has_the_same_losses_and_no_gradients(
    make_spec: Make, store: MlflowStore
) -> None:
    told: list[float] = []

    def tell(result: EpochResult) -> Decision:
        told.append(result.metrics["train/loss"])
        return Decision.CONTINUE

    spec, other = make_spec(depth=5), make_spec(number=1, depth=5)
    tracking = spec.config.tracking.model_copy(update={"observe": False})
    plain = run_trial(dataclasses.replace(spec, config=spec.config.model_copy(update={"tracking": tracking})), tell)
    observed = run_trial(other, tell)
    assert told[:2] == told[2:]
    names = [set(run_of(store, result.run_id).data.metrics) for result in (plain, observed)]
    assert {name for name in names[1] - names[0] if "gradient" not in name} == set()
    assert "gradient/head" in names[1] - names[0]


def test_a_pruned_trial_is_killed_in_mlflow_and_says_after_which_epoch(make_spec: Make, store: MlflowStore) -> None:
    result = run_trial(make_spec(epochs=3), lambda epoch: Decision.PRUNE if epoch.epoch == 1 else Decision.CONTINUE)
    assert (result.state, result.epochs, result.reason) == ("pruned", 1, "pruned after epoch 1")
    assert run_of(store, result.run_id).info.status == "KILLED"


def test_a_paused_trial_that_is_resumed_is_one_run_and_ends_as_if_it_had_not_been_paused(
    make_spec: Make, store: MlflowStore
) -> None:
    spec, whole = make_spec(depth=4, epochs=3), make_spec(number=1, depth=4, epochs=3)
    paused = run_trial(spec, lambda epoch: Decision.PAUSE if epoch.epoch == 1 else Decision.CONTINUE)
    assert (paused.state, paused.epochs, paused.reason) == ("paused", 1, "paused after epoch 1")
    run = run_of(store, paused.run_id)
    assert run.info.status == "KILLED"
    assert run.data.tags["thawline.state"] == "paused"
    assert paused.value == run.data.metrics["val/accuracy"]

    resumed = run_trial(dataclasses.replace(spec, seconds_before=100.0), go_on)
    expected = run_trial(whole, go_on)
    assert resumed.run_id == paused.run_id
    run = run_of(store, resumed.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["thawline.state"] == "complete"
    assert [metric.step for metric in store.client.get_metric_history(run.info.run_id, "val/accuracy")] == [1, 2, 3]
    assert (resumed.value, resumed.best_epoch, resumed.epochs) == (expected.value, expected.best_epoch, 3)
    assert resumed.seconds > 100, "what it took before it was paused counts"
    folders = (trial_folder(spec.home, spec.study, number) for number in (0, 1))
    weights, others = (load_checkpoint(folder / "epoch-0003.safetensors").model for folder in folders)
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_trial_that_diverges_is_failed_with_the_reason(make_spec: Make, store: MlflowStore) -> None:
    result = run_trial(make_spec(learning_rate=1e30, gradient_clip=None), go_on)
    assert result.state == "failed"
    assert "loss became nan in epoch 1 at learning rate 1e+30" in result.reason
    run = run_of(store, result.run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["thawline.reason"] == result.reason


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:40])
def test_out_of_memory_is_tried_again_at_half_the_batch_until_it_fits_and_then_the_trial_is_whole(
    make_spec: Make, store: MlflowStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    parts: list[int] = []
    original = trial_module.fit

    def fit(*arguments: Any, accumulation: int, **more: Any) -> Any:
        parts.append(accumulation)
        if accumulation < 4:
            raise error
        return original(*arguments, accumulation=accumulation, **more)

    monkeypatch.setattr(trial_module, "fit", fit)
    result = run_trial(make_spec(), go_on)
    assert parts == [1, 2, 4]
    assert result.state == "complete"
    assert "over 4 parts" in run_of(store, result.run_id).data.tags["thawline.out_of_memory"]


def test_out_of_memory_with_two_images_at_a_time_fails_the_trial_and_says_what_to_do(
    make_spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []

    def fit(*arguments: Any, accumulation: int, **more: Any) -> Any:
        attempts.append(accumulation)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trial_module, "fit", fit)
    result = run_trial(make_spec(), go_on)
    assert attempts == [1, 2, 4], "of a batch of eight"
    assert result.state == "failed"
    assert result.reason.startswith("out of memory, even with two images at a time. Lower --image-size")


@pytest.mark.parametrize("reason", ["CUDA error: device-side assert triggered", "CUDA error: an illegal memory access"])
def test_a_gpu_that_failed_ends_the_process_so_that_another_resumes_the_trial(
    make_spec: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    def fit(*arguments: Any, **more: Any) -> Any:
        raise RuntimeError(f"{reason}\nCUDA kernel errors might be asynchronously reported")

    monkeypatch.setattr(trial_module, "fit", fit)
    with caplog.at_level("WARNING", "thawline.search"), pytest.raises(RuntimeError, match="CUDA error"):
        run_trial(make_spec(), go_on)
    assert f"trial-00: the GPU failed: {reason}" in caplog.text


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes a disk that takes no checkpoint until so many were tried."""

    def fill(refusals: int) -> None:
        left, save = [None] * refusals, CheckpointFolder._save

        def save_later(*arguments: Any) -> Path:
            if left:
                left.pop()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return save(*arguments)

        monkeypatch.setattr(CheckpointFolder, "_save", save_later)

    return fill


def test_a_trial_that_ends_on_a_full_disk_waits_until_its_checkpoint_has_room(
    make_spec: Make, own_home: Path, full_disk: Callable[[int], None]
) -> None:
    full_disk(7)  # both epochs, once more as each ends, and twice more
    result = run_trial(make_spec(), go_on)
    assert (result.state, result.unkept) == ("complete", "")
    assert result.checkpoint is not None
    assert (own_home / result.checkpoint).is_file()


def test_a_trial_that_waits_for_room_leaves_when_it_is_asked_to(
    make_spec: Make, full_disk: Callable[[int], None]
) -> None:
    full_disk(1000)
    epochs: list[int] = []

    def count(result: EpochResult) -> Decision:
        epochs.append(result.epoch)
        return Decision.CONTINUE

    with pytest.raises(Interrupted):
        run_trial(make_spec(), count, lambda: len(epochs) == 2)
    assert len(epochs) == 2


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
    (there,) = call_in_worker(
        _run,
        [make_spec(number=1)],
        on_message=lambda message: (told.append(message[1].epoch), Decision.CONTINUE)[1],
    )
    assert told == [1, 2]
    assert (there.state, there.value, there.best_epoch) == (here.state, here.value, here.best_epoch)


def kill_worker() -> int:
    """Kill -9 of the process that trains; its id."""
    child = next(process for process in active_children() if process.name == "thawline-worker")
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    return child.pid


@pytest.mark.xdist_group("processes")
def test_a_process_that_is_killed_once_is_replaced_and_the_trial_comes_out_the_same(
    make_spec: Make, store: MlflowStore, own_home: Path
) -> None:
    spec, other = make_spec(number=1), make_spec(number=2)
    whole = run_trial(other, go_on)
    study = opened(spec)
    report, killed = study.report, []

    def report_and_kill(number: int, result: EpochResult) -> bool:
        if not killed:
            killed.append(kill_worker())
        return report(number, result)

    study.report = report_and_kill  # type: ignore[method-assign]
    (result,) = conduct([spec], study, deadline=None)
    assert killed
    assert (result.state, result.value, result.epochs) == ("complete", whole.value, whole.epochs)
    history = store.client.get_metric_history(str(result.run_id), "train/loss")
    assert [metric.step for metric in history] == [1, 2], "no epoch is missing, and none is there twice"


@pytest.mark.xdist_group("processes")
def test_a_process_that_is_killed_again_and_again_is_a_failed_trial_and_its_run_is_closed(
    make_spec: Make, store: MlflowStore, own_home: Path
) -> None:
    spec = make_spec(number=1)
    study = opened(spec)
    killed: list[int] = []
    report = study.report

    def report_and_kill(number: int, result: EpochResult) -> bool:
        killed.append(kill_worker())
        return report(number, result)

    study.report = report_and_kill  # type: ignore[method-assign]
    (result,) = conduct([spec], study, deadline=None)
    assert len(killed) == 2
    assert (result.state, result.reason) == ("failed", "its process was killed by signal 9")
    study.tell(result)
    assert [record.state for record in study.records() if record.number == 1] == ["failed"]
    if result.run_id is not None:  # the child's first record may not have left it yet
        assert run_of(store, result.run_id).info.status == "FAILED"


@pytest.mark.xdist_group("processes")
def test_an_error_of_the_driver_ends_the_child(make_spec: Make) -> None:
    def broken(message: object) -> Decision:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_in_worker(_run, [make_spec(epochs=50)], on_message=broken)
    assert not [process for process in active_children() if process.name == "thawline-worker"]


def test_the_crash_error_names_the_signal_or_the_exit_code() -> None:
    assert str(WorkerCrashed.with_exit_code(-9)) == "its process was killed by signal 9"
    assert str(WorkerCrashed.with_exit_code(3)) == "its process ended with 3"


def test_a_time_limit_ends_a_running_trial_at_its_next_epoch_and_keeps_its_value(
    make_spec: Make, own_home: Path
) -> None:
    spec = make_spec(number=1, epochs=5)
    study = opened(spec)
    (result,) = conduct([spec], study, deadline=0.0)
    assert (result.state, result.epochs) == ("complete", 1)
    assert result.reason == "stopped by the time limit after epoch 1"
    assert result.value is not None
    assert trial_folder(own_home, spec.study, 1).is_dir()


@pytest.mark.xdist_group("processes")
def test_heads_that_are_trained_together_are_trials_and_runs_of_their_own(
    make_spec: Make, store: MlflowStore, own_home: Path
) -> None:
    rates = (1e-3, 1e-2, 3e-2)
    specs = [with_activations(make_spec(number=i, learning_rate=rate)) for i, rate in enumerate(rates, 1)]
    study = opened(specs[-1])
    results = conduct(specs, study, deadline=None)
    alone = [run_trial(dataclasses.replace(spec, number=spec.number + 10), go_on) for spec in specs]
    for result, single, rate in zip(results, alone, rates, strict=True):
        assert (result.state, result.epochs) == ("complete", 2)
        assert (result.value, result.best_epoch) == (single.value, single.best_epoch)
        run, other = run_of(store, result.run_id), run_of(store, single.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.params["learning_rate"] == str(rate)
        assert run.data.metrics["train/loss"] == pytest.approx(other.data.metrics["train/loss"], rel=1e-4)
        assert run.data.metrics["val_recall/dark"] == other.data.metrics["val_recall/dark"]
        assert study.reported_epochs(result.number) == 2
    assert len({result.run_id for result in results}) == 3
    tags = [run_of(store, result.run_id).data.tags.get("thawline.trained_together") for result in (*results, *alone)]
    assert tags == ["1, 2, 3"] * 3 + [None] * 3


def test_heads_whose_activations_were_removed_are_trained_one_after_the_other(make_spec: Make, own_home: Path) -> None:
    specs = [with_activations(make_spec(number=i)) for i in range(2)]
    shutil.rmtree(specs[0].activations.folder)
    results = run_together(specs, lambda number, result: Decision.CONTINUE)
    assert [(result.state, result.epochs) for result in results] == [("complete", 2)] * 2


@pytest.mark.parametrize(("policy", "depths"), [("static", [4, 4, 4]), ("gradual", [6, 5, 4]), ("lp_ft", [6, 6, 4])])
def test_each_epoch_of_a_policy_is_trained_from_what_is_stored_for_its_depth(
    make_spec: Make, store: MlflowStore, monkeypatch: pytest.MonkeyPatch, policy: Any, depths: list[int]
) -> None:
    def thawing(number: int) -> TrialSpec:
        spec = make_spec(number=number, depth=4, epochs=3, exact=True)
        return dataclasses.replace(spec, hyperparameters=dataclasses.replace(spec.hyperparameters, policy=policy))

    boundaries: list[int] = []
    original = StoredSplits.open

    def noting(self: StoredSplits, *args: Any) -> Any:
        made = original(self, *args)
        boundaries.append(made[0].boundary)
        return made

    monkeypatch.setattr(StoredSplits, "open", noting)
    from_images = run_trial(thawing(0), go_on)
    assert set(boundaries) == {0}
    boundaries.clear()
    from_store = run_trial(with_activations(thawing(1), depths={4: 0.4, 5: 0.2, 6: 0.4}), go_on)
    assert boundaries == list(dict.fromkeys(depths)), "each once, and none again to see how it ended"
    assert (from_store.state, from_store.epochs) == ("complete", 3)
    one, other = run_of(store, from_images.run_id), run_of(store, from_store.run_id)
    assert one.data.metrics["train/loss"] == other.data.metrics["train/loss"], "the very bits"
    assert one.data.params["policy"] == policy
    history = store.client.get_metric_history(str(from_store.run_id), "train/freeze_depth")
    assert [metric.value for metric in sorted(history, key=lambda metric: metric.step)] == depths


@pytest.mark.parametrize("depth", [6, 4])
def test_exact_training_from_stored_activations_gives_the_bits_of_training_from_images(
    make_spec: Make, store: MlflowStore, depth: int
) -> None:
    def losses(spec: TrialSpec) -> list[tuple[float, float]]:
        told: list[tuple[float, float]] = []
        run_trial(
            spec,
            lambda epoch: (
                told.append((epoch.metrics["train/loss"], epoch.metrics["val/loss"])),
                Decision.CONTINUE,
            )[1],
        )
        return told

    exact = [make_spec(number=i, depth=depth, exact=True, epochs=3) for i in range(2)]
    short = [make_spec(number=i + 2, depth=depth, epochs=3) for i in range(2)]
    from_images, from_store = losses(exact[0]), losses(with_activations(exact[1]))
    assert from_store == from_images
    nearly_images, nearly_store = losses(short[0]), losses(with_activations(short[1]))
    assert nearly_store != nearly_images, "half precision shows"
    for one, other in zip(nearly_store, nearly_images, strict=True):
        assert one == pytest.approx(other, rel=0.15)


@pytest.fixture
def streaming(make_spec: Make, tmp_path: Path, pictures: Path) -> Callable[..., TrialSpec]:
    """Makes trials on a copy of the pictures, which are not kept decoded."""
    shutil.copytree(pictures, tmp_path / "copy")
    manifest = scan(DataConfig(path=tmp_path / "copy", workers=1))
    view: dict[str, Any] = {"resize_size": SIZE, "crop_size": SIZE, "interpolation": "bilinear"}
    images = decoded(manifest, **view, cache_dir=tmp_path / "listed", cache="off")

    def make(**options: Any) -> TrialSpec:
        spec = make_spec(**options)
        return dataclasses.replace(spec, activations=dataclasses.replace(spec.activations, data=images.path))

    return make


def test_a_trial_on_images_that_are_not_kept_decoded_has_the_same_values_to_the_last_bit(
    make_spec: Make, streaming: Callable[..., TrialSpec]
) -> None:
    options: dict[str, Any] = {"number": 1, "depth": 0, "epochs": 1}
    values = [
        run_trial(make(**options, study=study), go_on).value for make, study in ((make_spec, "a"), (streaming, "b"))
    ]
    assert values[0] == values[1]
    assert values[0] is not None


def test_an_image_that_changes_during_a_search_that_keeps_nothing_decoded_ends_the_trial_and_is_named(
    streaming: Callable[..., TrialSpec], tmp_path: Path
) -> None:
    spec = streaming(number=1, depth=0)
    (tmp_path / "copy" / "train" / "dark" / "3.png").write_bytes(b"something else")
    result = run_trial(spec, go_on)
    assert (result.state, result.value) == ("failed", None)
    assert "1 image changed since the folder was read, the first: " in result.reason
    assert "train/dark/3.png: its content has changed" in result.reason
