"""What a trial trains may be compiled: the same training, by what was compiled once, where batches are whole."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compilers import Compiler

from thawline.backbones import Backbone
from thawline.config import TrainConfig
from thawline.training import (
    CheckpointFolder,
    Decision,
    FitResult,
    Interrupted,
    Observer,
    compiled,
    fit,
    runtime_for,
    set_up_process,
)
from thawline.training.observation import Allowance

CONFIG = TrainConfig(epochs=3, batch_size=8, device="cpu", compile=True)
ROWS = 60
WHOLE = 3 * (ROWS // 8)
"""Batches of eight in these epochs; each has one of four rows more."""


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    counting = Compiler()
    monkeypatch.setattr(compiled, "BACKEND", counting)
    yield counting
    torch._dynamo.reset()


@pytest.fixture
def train(make_backbone: Any, images: Any, hyperparameters: Any, tmp_path: Path) -> Callable[..., Any]:
    def run(
        config: TrainConfig = CONFIG, *, depth: int = 1, folder: str = "trial", **more: Any
    ) -> tuple[Backbone, FitResult]:
        set_up_process(threads=1, seed=0)
        backbone = make_backbone()
        result = fit(
            backbone,
            lambda depth: (images(ROWS), images(30)),
            hyperparameters=hyperparameters(depth),
            config=config,
            metric="accuracy",
            runtime=runtime_for(config),
            checkpoints=CheckpointFolder(tmp_path / folder, keep=2, maximise=True),
            seed=0,
            **{"on_epoch": lambda result: Decision.CONTINUE} | more,
        )
        return backbone, result

    return run


def same(first: Backbone, second: Backbone) -> bool:
    ours, theirs = first.module.state_dict(), second.module.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("accumulation", "runs"), [(1, WHOLE), (2, 2 * WHOLE)])
def test_whole_batches_are_computed_by_what_is_compiled_once_and_the_training_is_the_same(
    train: Any, compiler: Compiler, accumulation: int, runs: int
) -> None:
    plain, _ = train(CONFIG.model_copy(update={"compile": False}), folder="plain", accumulation=accumulation)
    assert compiler.graphs == 0
    backbone, result = train(accumulation=accumulation)
    assert (compiler.graphs, compiler.runs) == (1, runs)
    assert same(backbone, plain)
    assert len(result.history) == 3


def test_a_head_only_trial_is_not_compiled(train: Any, compiler: Compiler) -> None:
    train(depth=3)
    assert compiler.graphs == 0


@pytest.mark.parametrize(("share", "watched"), [(1e9, WHOLE), (0.0, 3)])
def test_steps_whose_gradients_are_observed_are_computed_by_the_network_as_it_is(
    train: Any, compiler: Compiler, share: float, watched: int
) -> None:
    observations: list[Any] = []
    observer = Observer(observations.append, flow=Allowance(share))
    train(observer=observer)
    assert compiler.runs == WHOLE - watched, "the first step of each epoch is always observed"
    assert len(observations) == 3
    assert all(np.isfinite(observation.mean_norms["head"]) for observation in observations)


def test_a_compiled_trial_that_is_left_within_an_epoch_resumes_to_the_same_bits(train: Any, compiler: Compiler) -> None:
    whole, _ = train(folder="whole")
    batches = iter(range(100))  # eight of the first epoch's training, four of its evaluation, three of the second's
    with pytest.raises(Interrupted):
        train(on_batch=lambda: next(batches) == 14)
    resumed, result = train()
    assert same(resumed, whole)
    assert len(result.history) == 3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="PyTorch compiles for a CPU by a C++ compiler")
def test_pytorchs_own_compiler_trains_to_the_same_losses(train: Any) -> None:
    _, plain = train(CONFIG.model_copy(update={"compile": False}), depth=2, folder="plain")  # without dropout
    _, result = train(depth=2)
    for ours, expected in zip(result.history, plain.history, strict=True):
        assert ours.metrics["train/loss"] == pytest.approx(expected.metrics["train/loss"], rel=1e-4)
    torch._dynamo.reset()
