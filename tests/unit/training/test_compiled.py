"""What a trial trains may be compiled: the same training, by what was compiled once, where batches are whole."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compilers import Compiler
from tiny_networks import TINY

from thawline.backbones import Backbone, create, section
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


def test_a_network_of_huggingface_is_compiled_once_and_so_is_every_later_one(
    compiler: Compiler, tmp_path: Path
) -> None:
    backbone = create(f"hf:{TINY['vit'](tmp_path / 'vit')}", num_classes=3, weights="none")
    size = backbone.preprocessing.image_size
    batch = section(backbone, 0, 1)(torch.zeros(2, 3, size, size)).detach()
    networks = torch._dynamo.config.recompile_limit + 2
    for _ in range(networks):
        network = compiled.Compiled(section(backbone, 1), 2, None)
        for _ in range(3):
            network(batch)
    assert (compiler.graphs, compiler.runs) == (networks, 3 * networks)


def test_where_a_network_cannot_be_compiled_training_continues_without(
    train: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def absent(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler on this machine")

    plain, _ = train(CONFIG.model_copy(update={"compile": False}), folder="plain")
    monkeypatch.setattr(compiled, "BACKEND", absent)
    backbone, _ = train()
    torch._dynamo.reset()
    assert same(backbone, plain)
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("thawline")]
    assert said.startswith("training continues uncompiled, because compiling failed: ")
    assert "no compiler on this machine" in said


def test_memory_that_runs_out_is_no_reason_to_continue_uncompiled(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(graph: Any, inputs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(compiled, "BACKEND", short)
    with pytest.raises(Exception, match="out of memory"):
        train()
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="PyTorch compiles for a CPU by a C++ compiler")
def test_pytorchs_own_compiler_trains_to_the_same_losses(train: Any) -> None:
    _, plain = train(CONFIG.model_copy(update={"compile": False}), depth=2, folder="plain")  # without dropout
    _, result = train(depth=2)
    for ours, expected in zip(result.history, plain.history, strict=True):
        assert ours.metrics["train/loss"] == pytest.approx(expected.metrics["train/loss"], rel=1e-4)
    torch._dynamo.reset()
