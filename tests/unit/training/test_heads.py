"""Heads that are trained together come out as each would alone."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from thawline.config import TrainConfig
from thawline.exceptions import TrainingError
from thawline.training import (
    CheckpointFolder,
    Decision,
    EpochResult,
    FitResult,
    HeadTrial,
    Hyperparameters,
    fit,
    fit_heads,
    heads,
    load_checkpoint,
    runtime_for,
    set_up_process,
)

DEPTH = 3
CONFIG = TrainConfig(epochs=3, batch_size=8, device="cpu", class_weights="balanced")


@pytest.fixture
def alone(make_backbone: Any, images: Any, stored: Any, tmp_path: Path) -> Callable[..., FitResult]:
    def run(hyperparameters: Hyperparameters, config: TrainConfig = CONFIG, folder: str = "alone") -> FitResult:
        set_up_process(threads=1, seed=0)
        backbone = make_backbone()
        inputs = (stored(backbone, images(60)), stored(backbone, images(30)))
        return fit(
            backbone,
            lambda depth: inputs,
            hyperparameters=hyperparameters,
            config=config,
            metric="accuracy",
            runtime=runtime_for(config),
            checkpoints=CheckpointFolder(tmp_path / folder, keep=1, maximise=True),
            seed=0,
            on_epoch=lambda result: Decision.CONTINUE,
        )

    return run


@pytest.fixture
def together(
    make_backbone: Any, images: Any, stored: Any, tmp_path: Path
) -> Callable[..., list[FitResult | TrainingError]]:
    def run(
        hyperparameters: list[Hyperparameters],
        config: TrainConfig = CONFIG,
        on_epoch: Callable[[int, EpochResult], Decision] = lambda number, result: Decision.CONTINUE,
        folder: str = "together",
    ) -> list[FitResult | TrainingError]:
        set_up_process(threads=1, seed=0)
        backbone = make_backbone()
        return fit_heads(
            backbone,
            stored(backbone, images(60)),
            stored(backbone, images(30)),
            [
                HeadTrial(
                    each,
                    CheckpointFolder(tmp_path / f"{folder}-{i}", keep=1, maximise=True),
                    lambda result, i=i: on_epoch(i, result),  # type: ignore[misc]
                )
                for i, each in enumerate(hyperparameters)
            ],
            config=config,
            metric="accuracy",
            runtime=runtime_for(config),
            seed=0,
        )

    return run


def head(learning_rate: float, weight_decay: float = 0.01, factor: float = 1.0, optimizer: Any = "adamw") -> Any:
    return Hyperparameters("tiny", DEPTH, learning_rate, weight_decay, factor, optimizer)


def losses(result: FitResult | TrainingError) -> list[float]:
    assert isinstance(result, FitResult)
    return [epoch.metrics["train/loss"] for epoch in result.history]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_each_learns_what_it_would_learn_alone(alone: Any, together: Any, optimizer: Any, clip: float | None) -> None:
    config = CONFIG.model_copy(update={"gradient_clip": clip})
    asked = [
        head(1e-3, optimizer=optimizer),
        head(3e-2, 0.5, optimizer=optimizer),
        head(1e-2, 0.0, factor=3.0, optimizer=optimizer),
    ]
    for one, fused in zip(asked, together(asked, config), strict=True):
        single = alone(one, config, folder=f"alone-{one.learning_rate}")
        for epoch, other in zip(single.history, fused.history, strict=True):
            for name in ("train/loss", "train/gradient_norm", "val/loss"):
                assert other.metrics[name] == pytest.approx(epoch.metrics[name], rel=1e-4)
            assert other.metrics["train/learning_rate"] == epoch.metrics["train/learning_rate"]
            assert other.metrics["val/accuracy"] == epoch.metrics["val/accuracy"]
        assert (single.value, single.best_epoch) == (fused.value, fused.best_epoch)


def test_in_bf16_too_each_learns_nearly_what_it_would_learn_alone(alone: Any, together: Any) -> None:
    config = CONFIG.model_copy(update={"precision": "bf16"})
    asked = [head(1e-3), head(1e-2)]
    for one, fused in zip(asked, together(asked, config), strict=True):
        assert losses(fused) == pytest.approx(losses(alone(one, config, folder=f"bf16-{one.learning_rate}")), rel=0.01)


def test_heads_for_whose_logits_there_is_no_room_at_once_are_measured_one_after_the_other(
    together: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = [head(1e-3), head(1e-2), head(3e-2)]
    at_once = [losses(result) for result in together(rates)]
    monkeypatch.setattr(heads, "_LOGITS_BYTES", 2 * 4 * 30 * 3)  # of two trials
    assert [losses(result) for result in together(rates, folder="apart")] == at_once


def test_different_rates_come_to_different_heads(together: Any) -> None:
    slow, fast = together([head(1e-4), head(3e-2)])
    assert losses(fast)[-1] < losses(slow)[-1] - 0.05


def test_a_head_without_a_finite_loss_fails_alone(alone: Any, together: Any) -> None:
    broken, sound = together([head(1e30), head(1e-2)])
    assert isinstance(broken, TrainingError)
    assert "train.gradient_clip" in str(broken)
    assert losses(sound) == pytest.approx(losses(alone(head(1e-2))), rel=1e-4)


def test_a_head_without_a_finite_validation_loss_fails_alone(
    alone: Any, together: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, measured = heads.logits_of, []

    def logits(*given: Any) -> Tensor:
        measured.append(given)
        of_both = real(*given).clone()
        if len(measured) == 1:
            of_both[:, 0] = math.nan
        return of_both

    monkeypatch.setattr(heads, "logits_of", logits)
    broken, sound = together([head(3e-3), head(1e-2)])
    assert isinstance(broken, TrainingError)
    assert "The validation loss became nan in epoch 1" in str(broken)
    assert losses(sound) == pytest.approx(losses(alone(head(1e-2))), rel=1e-4)


def test_a_pruned_head_ends_and_the_others_continue(together: Any) -> None:
    pruned, other = together(
        [head(1e-3), head(1e-2)],
        on_epoch=lambda number, result: Decision.PRUNE if number == 0 else Decision.CONTINUE,
    )
    assert (pruned.decision, len(pruned.history)) == (Decision.PRUNE, 1)
    assert (other.decision, len(other.history)) == (Decision.CONTINUE, CONFIG.epochs)


def test_each_stops_early_by_its_own_values(together: Any) -> None:
    config = CONFIG.model_copy(update={"epochs": 8, "early_stopping": 1})
    still, moving = together([head(1e-9), head(1e-1)], config)
    assert still.stopped_early
    assert len(still.history) == 2
    assert len(moving.history) > 2


def test_a_head_can_be_resumed_on_its_own(alone: Any, together: Any, tmp_path: Path) -> None:
    def stop_after_two(number: int, result: EpochResult) -> Decision:
        return Decision.STOP if result.epoch == 2 else Decision.CONTINUE

    together([head(1e-3), head(1e-2)], on_epoch=stop_after_two)
    resumed = alone(head(1e-2), folder="together-1")
    whole = alone(head(1e-2), folder="whole")
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-4)
    one, other = (CheckpointFolder(tmp_path / name, keep=1, maximise=True).last() for name in ("together-1", "whole"))
    assert one is not None
    assert other is not None
    for name, tensor in other.model.items():
        torch.testing.assert_close(one.model[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("of", "epoch"), [(0, 1), (1, 1), (2, 2)])
def test_heads_that_were_killed_resume_together_with_the_bits_of_those_that_were_not(
    together: Any, tmp_path: Path, of: int, epoch: int
) -> None:
    """Killed before, between and after the checkpoints of one epoch are written."""
    rates = [head(1e-2), head(3e-3), head(1e-3)]
    whole = together(rates, folder="whole")

    class Killed(Exception):
        pass

    def kill(number: int, result: EpochResult) -> Decision:
        if (number, result.epoch) == (of, epoch):
            raise Killed
        return Decision.CONTINUE

    with pytest.raises(Killed):
        together(rates, folder="killed", on_epoch=kill)
    resumed = together(rates, folder="killed")
    assert [losses(result) for result in resumed] == [losses(result) for result in whole]
    learning_rates = [[epoch.metrics["train/learning_rate"] for epoch in result.history] for result in whole]
    assert [[epoch.metrics["train/learning_rate"] for epoch in r.history] for r in resumed] == learning_rates
    for number in range(3):
        one, other = (next((tmp_path / f"{name}-{number}").glob("epoch-0003*")) for name in ("whole", "killed"))
        ours, theirs = load_checkpoint(one), load_checkpoint(other)
        for part in ("model", "optimizer"):
            for name, tensor in getattr(ours, part).items():
                assert torch.equal(tensor, getattr(theirs, part)[name]), (number, name)


def test_the_checkpoint_of_a_head_holds_only_the_head(together: Any, tmp_path: Path) -> None:
    together([head(1e-3), head(1e-2)])
    best = CheckpointFolder(tmp_path / "together-0", keep=1, maximise=True).best()
    assert best is not None
    assert sorted(load_checkpoint(best).model) == ["head.bias", "head.weight"]


def test_all_policies_are_one_where_only_the_head_is_trained_so_they_can_be_trained_together(
    alone: Any, together: Any
) -> None:
    asked = [head(1e-2), replace(head(1e-2), policy="lp_ft"), replace(head(1e-2), policy="gradual", layer_decay=0.5)]
    static, *others = together(asked)
    assert [losses(other) for other in others] == [losses(static)] * 2
    single = alone(asked[1])
    assert losses(others[0]) == pytest.approx(losses(single), rel=1e-4)
    depths = [epoch.metrics["train/freeze_depth"] for result in (static, single) for epoch in result.history]
    assert set(depths) == {DEPTH}


def test_heads_whose_weights_are_averaged_are_trained_one_after_the_other(together: Any) -> None:
    config = CONFIG.model_copy(update={"ema": 0.9})
    with pytest.raises(TrainingError, match=r"averaged \(train\.ema\) cannot be trained together"):
        together([head(1e-3), head(1e-2)], config)


@pytest.mark.parametrize(
    "wrong",
    [
        [head(1e-3), head(1e-3, optimizer="sgd")],
        [head(1e-3), Hyperparameters("tiny", 1, 1e-3, 0.0, 1.0, "adamw")],
    ],
)
def test_what_cannot_be_trained_together_is_refused(together: Any, wrong: list[Hyperparameters]) -> None:
    with pytest.raises(TrainingError, match="Trials can be trained together if all have freeze depth 3"):
        together(wrong)
