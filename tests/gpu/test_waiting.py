"""Nothing waits for the host: counted on a GPU that is pretended, see ``pretended_gpu``.

The budget: nothing in a step or in a batch, twice in an epoch.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretended_gpu import DEVICE, PretendedGpu

from thawline.config import TrainConfig
from thawline.training import (
    Augmentation,
    CheckpointFolder,
    Decision,
    HeadTrial,
    fit,
    heads,
    loop,
    predict,
)

IN_AN_EPOCH = 2

# ------------------------------------------------------------------------------------------------ the device itself


def test_what_waits_is_found_with_its_line(gpu: PretendedGpu) -> None:
    def run() -> None:
        values = torch.arange(6.0, device=DEVICE)
        float(values.sum())
        values[values > 2]
        values[[1, 2]]
        values.nonzero()
        values.tolist()
        values.cpu()
        values.to("cpu", non_blocking=True)
        torch.ones(2).to(DEVICE)
        torch.ones(2).to(DEVICE, non_blocking=True)
        torch.ones(2).pin_memory().to(DEVICE, non_blocking=True)
        torch.empty(6).copy_(values)
        torch.tensor([1.0], device=DEVICE)

    seen = Counter(wait.partition(" at ")[0] for wait in gpu.counted(run).elements())
    assert seen == {
        "value on the host": 1,
        "number of places (index)": 1,
        "number of places (nonzero)": 1,
        "values on the host": 1,
        "copy to the host": 2,
        "copy to the device": 4,
    }
    assert all("test_waiting.py" in wait for wait in gpu.waits)


def test_a_copy_holds_nonsense_until_it_is_waited_for(gpu: PretendedGpu) -> None:
    with gpu.modes():
        there = torch.arange(3.0, device=DEVICE)
        copy, event = there.to("cpu", non_blocking=True), torch.cuda.Event()
        event.record()
        later = there.to("cpu", non_blocking=True)
        assert copy.tolist() != [0, 1, 2]
        event.synchronize()
        assert copy.tolist() == [0, 1, 2]
        assert later.tolist() != [0, 1, 2]
        there.sum().item()
        assert later.tolist() == [0, 1, 2]


def test_tensors_of_two_places_are_refused_but_for_numbers(gpu: PretendedGpu) -> None:
    with gpu.modes():
        there, here = torch.ones(3, device=DEVICE), torch.ones(3)
        assert (there + torch.tensor(1.0)).device == there.device == torch.zeros_like(there[:2]).device == DEVICE
        assert here.device.type == "cpu"
        for mistake in (lambda: there + here, lambda: torch.cat([here, there]), lambda: here[there.long()]):
            with pytest.raises(RuntimeError, match="same device"):
                mistake()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


def test_gradients_and_optimizers_stay_on_the_device(gpu: PretendedGpu) -> None:
    with gpu.modes():
        layer = torch.nn.Linear(3, 2).to(DEVICE)
        gpu.waits.clear()  # the two copies
        optimizer = torch.optim.AdamW(layer.parameters())
        layer(torch.ones(4, 3, device=DEVICE)).square().mean().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.device == DEVICE
        optimizer.step()
        assert optimizer.state[layer.weight]["exp_avg"].device == DEVICE
        assert layer.weight.device == DEVICE
    assert not gpu.waits, gpu.waits


# ----------------------------------------------------------------------------------------------------- training


class Epochs:
    """Notes what is waited for from the beginning of each epoch to that of the next."""

    def __init__(self, gpu: PretendedGpu, module: Any, patch: pytest.MonkeyPatch) -> None:
        begun, train_epoch = list[Counter[str]](), module._train_epoch

        def noted(*arguments: Any) -> Any:
            begun.append(Counter(gpu.waits))
            return train_epoch(*arguments)

        patch.setattr(module, "_train_epoch", noted)
        self._begun = begun

    @property
    def first(self) -> "Counter[str]":
        return self._begun[1] - self._begun[0]


@pytest.fixture
def an_epoch(
    gpu: PretendedGpu,
    make_backbone: Any,
    images: Any,
    hyperparameters: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., "Counter[str]"]:
    """What an epoch of five batches, and four of evaluation, waits for."""

    def run(**more: Any) -> "Counter[str]":
        config, epochs = TrainConfig(epochs=2, batch_size=8, **more), Epochs(gpu, loop, monkeypatch)
        views = Augmentation.of(config, seed=0)
        with gpu.modes():
            fit(
                make_backbone(),
                lambda depth: (images(40, gpu.runtime, augmentation=views), images(32, gpu.runtime)),
                hyperparameters=hyperparameters(1, 1e-2, config.optimizer),
                config=config,
                metric="accuracy",
                runtime=gpu.runtime,
                checkpoints=CheckpointFolder(tmp_path, keep=1, maximise=True),
                seed=0,
                on_epoch=lambda result: Decision.CONTINUE,
            )
        return epochs.first

    return run


WAYS = [
    {},
    {"optimizer": "sgd"},
    {"mixup": 0.2},
    {"cutmix": 1.0},
    {"class_weights": "balanced"},
    {"ema": 0.9},
    {"gradient_clip": None},
    {"augmentation": "light", "random_erasing": 0.5},
    {"augmentation": "standard"},
]


@pytest.mark.parametrize("more", WAYS, ids=str)
def test_no_step_of_training_waits_and_an_epoch_does_twice(
    an_epoch: Callable[..., "Counter[str]"], more: dict[str, Any]
) -> None:
    waits = an_epoch(**more)
    assert waits.total() <= IN_AN_EPOCH, waits


def test_a_value_that_a_step_asks_for_is_found(
    an_epoch: Callable[..., "Counter[str]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop._step
    monkeypatch.setattr(loop, "_step", lambda run: (run.trainable[0].sum().item(), step(run))[1])
    waits = an_epoch()
    assert waits.total() == IN_AN_EPOCH + 5
    assert max(waits, key=waits.__getitem__).startswith("value on the host at test_waiting.py")


def test_labels_that_stay_on_the_host_are_found(
    an_epoch: Callable[..., "Counter[str]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "labels_on", lambda inputs, device: torch.from_numpy(np.array(inputs.labels)))
    with pytest.raises(RuntimeError, match="same device"):
        an_epoch()


def test_an_evaluation_waits_once(gpu: PretendedGpu, make_backbone: Any, images: Any) -> None:
    with gpu.modes():
        backbone = make_backbone()
        backbone.module.to(DEVICE)
        few, many = images(24, gpu.runtime), images(96, gpu.runtime)
    once = gpu.counted(lambda: predict(backbone, few, gpu.runtime, 8))
    assert once.total() == 1, once
    assert gpu.counted(lambda: predict(backbone, many, gpu.runtime, 8)) == once


def test_heads_that_are_trained_together_wait_as_often_as_one(
    gpu: PretendedGpu, train_heads: Any, hyperparameters: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = Epochs(gpu, heads, monkeypatch)
    folders = [CheckpointFolder(tmp_path / name, keep=1, maximise=True) for name in ("one", "two")]
    trials = [
        HeadTrial(hyperparameters(3, rate), folder, lambda result: Decision.CONTINUE)
        for rate, folder in zip((1e-3, 1e-2), folders, strict=True)
    ]
    train_heads(trials, 40, 32, epochs=2)
    assert epochs.first.total() <= IN_AN_EPOCH, epochs.first
    assert all(folder.last().epoch == 2 for folder in folders)  # type: ignore[union-attr]
