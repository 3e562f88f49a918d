"""A training step asks the device for nothing that it would have to wait for.

Without a GPU what can be counted is which operations need a value of a tensor on the host: a number, or how many places
a mask has. On a GPU each of them waits until everything before it is computed.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from thawline.config import TrainConfig
from thawline.training import (
    CheckpointFolder,
    Decision,
    HeadTrial,
    fit,
    fit_heads,
    predict,
    runtime_for,
    set_up_process,
)

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = [a for arg in args if isinstance(arg, list | tuple) for a in arg if isinstance(a, torch.Tensor)]
        if name in WAITING or (name.startswith("index") and any(mask.dtype == torch.bool for mask in masks)):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Counter[str]]:
    with Counting() as counting:
        yield counting.seen


def test_what_waits_is_counted() -> None:
    values = torch.arange(6.0)
    with counted() as seen:
        float(values.sum())
        values[values > 2]
        values[torch.tensor([1, 2])]
    assert seen == {"_local_scalar_dense": 1, "index": 1}


@pytest.fixture
def syncs_of(make_backbone: Any, images: Any, hyperparameters: Any, tmp_path: Path) -> Callable[..., "Counter[str]"]:
    """What one epoch of so many batches waits for. SGD: the steps that AdamW counts lie on the host on every device."""

    def run(batches: int, **more: Any) -> "Counter[str]":
        config = TrainConfig(epochs=1, batch_size=8, device="cpu", optimizer="sgd", **more)
        set_up_process(threads=1, seed=0)
        with counted() as seen:
            fit(
                make_backbone(),
                lambda depth: (images(8 * batches), images(30)),
                hyperparameters=hyperparameters(1, 1e-2, "sgd"),
                config=config,
                metric="accuracy",
                runtime=runtime_for(config),
                checkpoints=CheckpointFolder(tmp_path / str(batches), keep=1, maximise=True),
                seed=0,
                on_epoch=lambda result: Decision.CONTINUE,
            )
        return seen

    return run


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"mixup": 0.2},
        {"class_weights": "balanced"},
        {"ema": 0.9},
        {"gradient_clip": None},
        {"augmentation": "light"},
    ],
    ids=str,
)
def test_a_longer_epoch_waits_for_nothing_more(syncs_of: Callable[..., "Counter[str]"], more: dict[str, Any]) -> None:
    assert syncs_of(12, **more) == syncs_of(3, **more)


def test_a_larger_evaluation_waits_for_nothing_more(make_backbone: Any, images: Any) -> None:
    def syncs(count: int) -> "Counter[str]":
        with counted() as seen:
            predict(make_backbone(), images(count), runtime_for(TrainConfig(device="cpu")), 8)
        return seen

    assert syncs(96) == syncs(24)


def test_heads_that_are_trained_together_wait_once_an_epoch(
    make_backbone: Any, images: Any, stored: Any, hyperparameters: Any, tmp_path: Path
) -> None:
    def syncs(batches: int) -> "Counter[str]":
        config = TrainConfig(epochs=1, batch_size=8, device="cpu")
        trials = [
            HeadTrial(
                hyperparameters(3, rate, "adamw"),
                CheckpointFolder(tmp_path / f"{batches}-{rate}", keep=1, maximise=True),
                lambda result: Decision.CONTINUE,
            )
            for rate in (1e-3, 1e-2)
        ]
        backbone = make_backbone()
        inputs = stored(backbone, images(8 * batches)), stored(backbone, images(30))
        with counted() as seen:
            fit_heads(
                backbone,
                *inputs,
                trials,
                config=config,
                metric="accuracy",
                runtime=runtime_for(config),
                seed=0,
            )
        return seen

    assert syncs(12) == syncs(3)
