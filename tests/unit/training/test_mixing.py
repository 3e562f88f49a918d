"""Mixed batches have mixed labels, are mixed again the same, and are trained on as they say."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from thawline.backbones import Backbone, section
from thawline.config import SearchConfig, TrainConfig
from thawline.exceptions import ConfigError
from thawline.search import check_backbones
from thawline.training import (
    CheckpointFolder,
    Decision,
    EpochResult,
    FitResult,
    HeadTrial,
    ImageInputs,
    Inputs,
    Interrupted,
    fit,
    fit_heads,
    runtime_for,
    set_up_process,
)
from thawline.training.mixing import Mixing, depths_without_places

CONFIG = TrainConfig(epochs=3, batch_size=8, device="cpu", exact=True, mixup=0.4, cutmix=1.0)
PLAIN = CONFIG.model_copy(update={"mixup": 0.0, "cutmix": 0.0})


def numbered(count: int = 8, shape: tuple[int, ...] = (3, 10, 10)) -> tuple[Tensor, Tensor]:
    """Rows that are their number everywhere, which is their label too."""
    labels = torch.arange(count)
    return labels.float().view(-1, *[1] * len(shape)).expand(count, *shape).clone(), labels


def test_without_mixing_a_batch_is_what_it_was() -> None:
    batch, labels = numbered()
    mixed = Mixing().apply(batch, labels, 0, 0)
    assert mixed.batch is batch
    assert mixed.share == 1
    assert torch.equal(mixed.heavier, labels)


@pytest.mark.parametrize("shape", [(3, 10, 10), (5, 7), (16,)])
def test_mixup_mixes_each_row_with_another_by_the_share_of_its_label(shape: tuple[int, ...]) -> None:
    batch, labels = numbered(shape=shape)
    mixed = Mixing(mixup=1.0).apply(batch, labels, 0, 0)
    assert 0 < mixed.share < 1
    assert sorted(mixed.partners.tolist()) == labels.tolist(), "everybody is mixed in once"
    assert bool((mixed.partners != labels).all()), "nobody is mixed with itself"
    expected = mixed.share * mixed.labels + (1 - mixed.share) * mixed.partners
    torch.testing.assert_close(mixed.batch, expected.view(-1, *[1] * len(shape)).expand_as(batch))
    assert torch.equal(batch, numbered(shape=shape)[0]), "what was read is not written into"


@pytest.mark.parametrize("shape", [(3, 10, 10), (3, 2, 2), (10, 10, 3)])
def test_cutmix_takes_one_box_whose_area_is_the_weight_of_its_label(shape: tuple[int, ...]) -> None:
    batch, labels = numbered(shape=shape)
    shares = []
    for number in range(40):
        mixed = Mixing(cutmix=1.0).apply(batch, labels, 0, number)
        shares.append(mixed.share)
        channel = -1 if shape[0] == shape[1] else 1
        own = (mixed.batch == batch).all(channel)
        theirs = (mixed.batch == mixed.partners.view(-1, 1, 1, 1)).all(channel)
        assert bool((own ^ theirs).all()), "every place is of one of the two, in all channels"
        assert float(own.float().mean()) == pytest.approx(mixed.share)
        rows, columns = theirs[0].any(1).sum(), theirs[0].any(0).sum()
        assert rows * columns == theirs[0].sum(), "it is one rectangle"
    assert len(set(shares)) > 3
    assert 0.4 < np.mean(shares) < 0.8, "uniform where the box is not cut off at the edge, which leaves more"


@pytest.mark.parametrize("shape", [(5, 7), (16,), (3, 1, 1)])
def test_where_there_is_no_grid_cutmix_is_mixup(shape: tuple[int, ...]) -> None:
    batch, labels = numbered(shape=shape)
    mixed = Mixing(cutmix=1.0).apply(batch, labels, 0, 0)
    assert 0 < mixed.share < 1
    expected = mixed.share * mixed.labels + (1 - mixed.share) * mixed.partners
    torch.testing.assert_close(mixed.batch, expected.view(-1, *[1] * len(shape)).expand_as(batch))


def test_with_both_each_is_drawn_for_about_half_of_the_batches() -> None:
    batch, labels = numbered()
    mixing = Mixing(mixup=1.0, cutmix=1.0)
    cut = [bool((mixing.apply(batch, labels, 0, number).batch % 1 == 0).all()) for number in range(200)]
    assert np.mean(cut) == pytest.approx(0.5, abs=0.12)


def test_a_batch_is_mixed_again_the_same_and_others_otherwise() -> None:
    batch, labels = numbered()
    mixing = Mixing(mixup=1.0)
    first = mixing.apply(batch, labels, 2, 3)
    assert torch.equal(first.batch, mixing.apply(batch, labels, 2, 3).batch)
    for epoch, number, seed in ((2, 4, 0), (3, 3, 0), (2, 3, 1)):
        assert Mixing(mixup=1.0, seed=seed).apply(batch, labels, epoch, number).share != first.share


def test_parts_of_a_batch_have_its_share_and_mix_among_themselves() -> None:
    batch, labels = numbered(8)
    mixing = Mixing(mixup=1.0)
    whole = mixing.apply(batch, labels, 0, 0)
    parts = [mixing.apply(batch[part], labels[part], 0, 0) for part in (slice(0, 4), slice(4, 8))]
    assert [part.share for part in parts] == [whole.share] * 2
    assert sorted(parts[0].partners.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 1.0])])
def test_the_loss_is_the_cross_entropy_of_soft_targets(weights: Tensor | None) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 3, generator=generator), torch.tensor([0, 1, 2, 0, 1, 1])
    mixed = Mixing(mixup=1.0).apply(torch.randn(6, 4, generator=generator), labels, 0, 0)
    got = mixed.loss(lambda y: F.cross_entropy(logits, y, weight=weights, label_smoothing=0.1, reduction="sum"))
    soft = mixed.share * F.one_hot(labels, 3) + (1 - mixed.share) * F.one_hot(mixed.partners, 3)
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    wanted = F.cross_entropy(logits, soft, weight=weights, label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(got, wanted)


class Stored:
    """Frozen activations of images, kept in memory."""

    lengths = None

    def __init__(self, backbone: Backbone, images: ImageInputs, boundary: int) -> None:
        self.labels, self.boundary = images.labels, boundary
        backbone.module.eval()
        rows = np.arange(len(images))
        with torch.no_grad():
            self._activations: Tensor = section(backbone, 0, boundary)(images.prepare(images.read(rows, 0), rows, 0))

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: np.ndarray, epoch: int) -> Tensor:
        return self._activations[torch.from_numpy(rows)]

    def prepare(self, read: Tensor, rows: np.ndarray, epoch: int) -> Tensor:
        return read


@pytest.fixture
def train(make_backbone: Any, images: Any, hyperparameters: Any, tmp_path: Path) -> Callable[..., Any]:
    def run(
        config: TrainConfig = CONFIG,
        *,
        depth: int = 1,
        policy: Any = "static",
        stored_behind: Callable[[int], int] = lambda depth: 0,
        folder: str = "trial",
        accumulation: int = 1,
        on_epoch: Callable[[EpochResult], Decision] = lambda result: Decision.CONTINUE,
        on_batch: Callable[[], bool] = lambda: False,
    ) -> tuple[dict[str, Tensor], FitResult]:
        set_up_process(threads=1, seed=0)
        backbone = make_backbone()

        def inputs(depth: int) -> tuple[Inputs, Inputs]:
            behind = stored_behind(depth)
            return Stored(make_backbone(), images(60), behind) if behind else images(60), images(30)

        result = fit(
            backbone,
            inputs,
            hyperparameters=replace(hyperparameters(depth), policy=policy),
            config=config,
            metric="accuracy",
            runtime=runtime_for(config),
            checkpoints=CheckpointFolder(tmp_path / folder, keep=1, maximise=True),
            seed=0,
            accumulation=accumulation,
            on_epoch=on_epoch,
            on_batch=on_batch,
        )
        return {name: tensor.clone() for name, tensor in backbone.module.state_dict().items()}, result

    return run


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_mixing_changes_what_is_learned_and_still_learns(train: Any) -> None:
    plain, _ = train(PLAIN, folder="plain")
    mixed, result = train(CONFIG.model_copy(update={"epochs": 6}))
    assert not same(plain, mixed)
    assert result.value > 0.9


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_trial_comes_to_the_same_weights_from_images_and_from_whatever_is_stored(train: Any, depth: int) -> None:
    from_images, _ = train(depth=depth, folder="images")
    for boundary in range(1, depth + 1):
        stored, _ = train(depth=depth, stored_behind=lambda _: boundary, folder=f"stored-{boundary}")  # noqa: B023
        for name, tensor in from_images.items():
            torch.testing.assert_close(stored[name], tensor, rtol=1e-4, atol=1e-5)
    plain, _ = train(PLAIN, depth=depth, folder="plain")
    assert not torch.allclose(plain["head.weight"], from_images["head.weight"], rtol=1e-2)


def test_while_more_and_more_is_thawed_each_epoch_is_mixed_after_what_it_freezes(train: Any) -> None:
    from_images, result = train(policy="gradual", folder="images")
    assert len({epoch.metrics["train/freeze_depth"] for epoch in result.history}) > 1
    stored, _ = train(policy="gradual", stored_behind=lambda depth: depth, folder="stored")
    for name, tensor in from_images.items():
        torch.testing.assert_close(stored[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("policy", "batch"),
    [("static", 3), ("static", 8), ("static", 14), ("gradual", 3), ("gradual", 14), ("gradual", 27)],
)
def test_a_mixed_epoch_that_was_left_resumes_with_the_same_bits(train: Any, policy: str, batch: int) -> None:
    """Twelve batches an epoch. Under ``gradual`` each epoch mixes after another layer group."""
    whole, result = train(policy=policy, folder="whole")
    assert len({epoch.metrics["train/freeze_depth"] for epoch in result.history}) == (3 if policy == "gradual" else 1)
    seen: list[int] = []

    def leave() -> bool:
        seen.append(0)
        return len(seen) >= batch

    with pytest.raises(Interrupted):
        train(policy=policy, folder="left", on_batch=leave)
    resumed, _ = train(policy=policy, folder="left")
    assert same(whole, resumed)


def test_accumulated_parts_are_mixed_too(train: Any) -> None:
    parts, result = train(folder="parts", accumulation=2)
    assert not same(parts, train(PLAIN, folder="plain", accumulation=2)[0])
    assert result.history[-1].metrics["train/loss"] < result.history[0].metrics["train/loss"]


def test_training_accuracy_counts_the_heavier_label(train: Any) -> None:
    _, result = train(CONFIG.model_copy(update={"cutmix": 0.0, "mixup": 0.05, "epochs": 8}))
    assert result.history[-1].metrics["train/accuracy"] > 0.8


def test_heads_together_are_mixed_as_each_would_be_alone(
    train: Any, make_backbone: Any, images: Any, hyperparameters: Any, tmp_path: Path
) -> None:
    _, alone = train(depth=3, stored_behind=lambda _: 3)
    set_up_process(threads=1, seed=0)
    backbone = make_backbone()
    folders = [CheckpointFolder(tmp_path / f"head-{i}", keep=1, maximise=True) for i in range(2)]
    together = fit_heads(
        backbone,
        Stored(backbone, images(60), 3),
        Stored(backbone, images(30), 3),
        [HeadTrial(hyperparameters(3), folder, lambda result: Decision.CONTINUE) for folder in folders],
        config=CONFIG,
        metric="accuracy",
        runtime=runtime_for(CONFIG),
        seed=0,
    )
    for result in together:
        assert isinstance(result, FitResult)
        for one, other in zip(result.history, alone.history, strict=True):
            for name in ("train/loss", "train/accuracy", "val/loss"):
                assert one.metrics[name] == pytest.approx(other.metrics[name], rel=1e-4)


def test_cutmix_has_places_as_long_as_there_are_height_and_width(make_backbone: Any) -> None:
    backbone = make_backbone()
    assert depths_without_places(backbone) == [3]
    behind_two: Tensor = section(backbone, 0, 2)(torch.rand(8, 3, 12, 12))
    cut = Mixing(cutmix=1.0).apply(behind_two.detach(), numbered()[1], 0, 0).batch
    assert bool((cut == behind_two).flatten(1).any(1).all()), "places of its own are left as they were"


def test_the_search_says_at_its_beginning_where_cutmix_mixes_as_mixup_does(caplog: pytest.LogCaptureFixture) -> None:
    def notes(**train: Any) -> list[str]:
        caplog.clear()
        recipe = {"backbone": {"weights": "none"}, "space": {"backbone": {"squeezenet1_1": None, "vit_b_16": [0, 2]}}}
        with caplog.at_level("INFO", "thawline"):
            depths = check_backbones(SearchConfig.build({"data": {"path": "x"}, "train": train}, recipe))
        assert depths["squeezenet1_1"] > 2 < depths["vit_b_16"]
        return [record.getMessage() for record in caplog.records if "cutmix" in record.getMessage()]

    why = "cutmix falls back to mixup: the outputs of its layer groups there have no height and width"
    assert notes(cutmix=1.0) == [f"vit_b_16: at freeze depth 1, 2 {why}"], "squeezenet's head begins with places"
    assert notes(mixup=0.2) == []


def test_a_batch_of_one_image_cannot_be_mixed() -> None:
    with pytest.raises(ConfigError, match=r"train: mixup and cutmix need batch_size >= 2, but got 1"):
        SearchConfig.build({"data": {"path": "x"}, "train": {"mixup": 0.2, "batch_size": 1}})
