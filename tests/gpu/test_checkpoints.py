"""A checkpoint leaves a GPU while training continues, and no epoch is told before its checkpoint is written."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_gpu import PretendedGpu
from safetensors.torch import load, save
from torch import Tensor

from thawline.config import TrainConfig
from thawline.training import (
    CheckpointFolder,
    Decision,
    EpochResult,
    FitResult,
    HeadTrial,
    Interrupted,
    fit,
    load_checkpoint,
    set_up_process,
)
from thawline.training.runtime import on_cpu

BATCHES = 5
SECONDS = 30.0


def test_tensors_leave_as_one_copy_of_each_type_and_are_what_they_were_when_it_began(gpu: PretendedGpu) -> None:
    values = {
        "weight": torch.arange(24.0).reshape(2, 3, 4).permute(0, 2, 1),
        "steps": torch.tensor(7.0),
        "counts": torch.arange(5),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "bias": torch.arange(4.0),
        "none": torch.zeros(0),
    }
    there = {name: gpu.put(value) for name, value in values.items()} | {"host": torch.ones(2)}
    copies: list[torch.dtype] = []

    def run() -> None:
        noted = gpu.left
        gpu.left = lambda tensor: (copies.append(tensor.dtype), noted(tensor))[1]  # type: ignore[method-assign]
        arriving = on_cpu(there)
        for tensor in there.values():
            tensor.zero_()
        moved.update(arriving())

    moved: dict[str, Tensor] = {}
    assert not gpu.counted(run), gpu.waits
    assert sorted(map(str, copies)) == ["torch.bfloat16", "torch.float32", "torch.int64"]
    for name, value in (values | {"host": torch.ones(2)}).items():
        assert torch.equal(moved[name], value), name
        assert moved[name].is_contiguous()
    assert load(save(moved))["bias"].tolist() == [0, 1, 2, 3], "parts of one copy can be written"
    here = values["bias"]
    assert on_cpu({"here": here})()["here"].data_ptr() == here.data_ptr(), "a control: nothing to do"


@pytest.fixture
def train(gpu: PretendedGpu, make_backbone: Any, images: Any, hyperparameters: Any, tmp_path: Path) -> Any:
    def run(name: str, on_epoch: Any = None, on_batch: Any = lambda: False, folder: Any = None) -> FitResult:
        set_up_process(threads=1, seed=0)
        config = TrainConfig(epochs=3, batch_size=8)
        with gpu.modes():
            return fit(
                make_backbone(),
                lambda depth: (images(8 * BATCHES, gpu.runtime), images(16, gpu.runtime)),
                hyperparameters=hyperparameters(1),
                config=config,
                metric="accuracy",
                runtime=gpu.runtime,
                checkpoints=folder or CheckpointFolder(tmp_path / name, keep=9, maximise=True),
                seed=0,
                on_epoch=on_epoch or (lambda result: Decision.CONTINUE),
                on_batch=on_batch,
            )

    return run


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Checkpoints of the first epoch are written when the event is set."""
    free, write = threading.Event(), CheckpointFolder._write

    def waiting(folder: CheckpointFolder, checkpoint: Any, target: Path) -> None:
        if "0001" in target.name:
            assert free.wait(SECONDS)
        write(folder, checkpoint, target)

    monkeypatch.setattr(CheckpointFolder, "_write", waiting)
    return free


def after_batch(number: int, event: threading.Event) -> Callable[[], bool]:
    """Sets the event after so many batches, those of evaluations included."""
    seen = []

    def on_batch() -> bool:
        seen.append(1)
        if len(seen) == number:
            event.set()
        return False

    return on_batch


def test_the_next_epoch_trains_while_a_checkpoint_is_written_and_is_told_after_it(
    train: Any, slow_disk: threading.Event, tmp_path: Path
) -> None:
    told: list[tuple[int, bool]] = []

    def on_epoch(result: EpochResult) -> Decision:
        told.append((result.epoch, (tmp_path / "slow" / f"epoch-{result.epoch:04d}.safetensors").exists()))
        return Decision.CONTINUE

    result = train("slow", on_epoch=on_epoch, on_batch=after_batch(BATCHES + 2 + 3, slow_disk))
    assert told == [(1, True), (2, True), (3, True)]
    assert len(result.history) == 3


@pytest.mark.parametrize("decision", [Decision.PRUNE, Decision.PAUSE])
def test_a_training_that_is_ended_while_the_next_epoch_trains_has_nothing_of_that(
    train: Any, slow_disk: threading.Event, tmp_path: Path, decision: Decision
) -> None:
    slow = after_batch(BATCHES + 2 + 3, slow_disk)
    result = train("ended", on_epoch=lambda result: decision, on_batch=slow)
    assert (result.decision, len(result.history), result.best_epoch) == (decision, 1, 1)
    assert [path.name for path in (tmp_path / "ended").iterdir()] == ["epoch-0001.safetensors"]
    assert len(train("ended").history) == 3, "it resumes"
    train("whole")
    assert same(tmp_path / "ended", tmp_path / "whole")


def test_a_training_that_is_left_meanwhile_resumes_with_the_same_bits(
    train: Any, slow_disk: threading.Event, tmp_path: Path
) -> None:
    seen: list[int] = []

    def leave() -> bool:
        seen.append(1)
        if len(seen) == BATCHES + 2 + 2:
            slow_disk.set()
            return True
        return False

    with pytest.raises(Interrupted):
        train("left", on_batch=leave)
    told: list[int] = []
    train("left", on_epoch=lambda result: (told.append(result.epoch), Decision.CONTINUE)[1])
    assert told == [1, 2, 3]
    train("whole")
    assert same(tmp_path / "left", tmp_path / "whole")


def same(one: Path, other: Path) -> bool:
    first, second = (load_checkpoint(folder / "epoch-0003.safetensors") for folder in (one, other))
    return all(torch.equal(first.model[name], second.model[name]) for name in second.model)


def test_an_error_of_the_thread_is_raised_by_the_training(
    train: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = CheckpointFolder(tmp_path / "broken", keep=9, maximise=True)

    def broken(folder: CheckpointFolder, checkpoint: Any, target: Path) -> None:
        raise RuntimeError("the file system is gone")

    monkeypatch.setattr(CheckpointFolder, "_write", broken)
    with pytest.raises(RuntimeError, match="file system is gone"):
        train("broken", folder=folder)
    assert folder.problem is None, "it is raised once: the trial has failed and can be recorded"


def test_a_disk_that_is_full_for_the_thread_is_a_problem_that_ends_with_room(
    gpu: PretendedGpu, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: CheckpointFolder, checkpoint: Any, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "_write", full)
        assert len(train("full").history) == 3
    assert not list((tmp_path / "full").iterdir())
    assert len(train("full").history) == 3


def test_heads_that_are_pruned_while_the_next_epoch_trains_end_with_what_they_were_told_for(
    train_heads: Any, hyperparameters: Any, tmp_path: Path, slow_disk: Any
) -> None:
    folders = [CheckpointFolder(tmp_path / name, keep=9, maximise=True) for name in ("pruned", "whole")]
    answers = [Decision.PRUNE, Decision.CONTINUE]
    trials = [
        HeadTrial(hyperparameters(3, 1e-2), folder, lambda result, answer=answer: answer)
        for folder, answer in zip(folders, answers, strict=True)
    ]
    pruned, whole = train_heads(trials, 8 * BATCHES, 16, epochs=3, on_batch=after_batch(BATCHES + 3, slow_disk))
    assert isinstance(pruned, FitResult)
    assert isinstance(whole, FitResult)
    assert (pruned.decision, len(pruned.history)) == (Decision.PRUNE, 1)
    assert (whole.decision, len(whole.history)) == (Decision.CONTINUE, 3)
