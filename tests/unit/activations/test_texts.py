"""Frozen activations of texts are stored token by token, without padding, and train like the texts themselves."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_networks import TINY, VOCABULARY

from thawline import backbones
from thawline.activations import ActivationKey, ActivationStore, Plan, StoredSplits, make_plan
from thawline.activations.fill import fill
from thawline.activations.profile import profile
from thawline.backbones import Backbone, TextPreprocessing, section
from thawline.config import DataConfig, TrainConfig
from thawline.data import scan, tokenized
from thawline.training import (
    Augmentation,
    CheckpointFolder,
    Decision,
    Hyperparameters,
    TextInputs,
    fit,
    open_inputs,
    runtime_for,
    set_up_process,
)

pytestmark = pytest.mark.xdist_group("stored-texts")

TRAIN = TrainConfig(device="cpu", epochs=2, batch_size=16, precision="fp32", warmup_fraction=0)
RUNTIME = runtime_for(TRAIN)
WORDS = VOCABULARY[5:]


@dataclass(frozen=True)
class Study:
    """A tiny encoder and a table of texts."""

    name: str
    tokens: Path
    folder: Path

    def backbone(self) -> Backbone:
        return backbones.create(self.name, num_classes=2, seed=0)

    def inputs(self, split: str = "train") -> TextInputs:
        inputs = open_inputs(self.tokens, split, None, RUNTIME)  # type: ignore[arg-type]
        assert isinstance(inputs, TextInputs)
        return inputs

    def plan(self, config: TrainConfig = TRAIN, *, budget: int = 10**9) -> Plan:
        backbone = self.backbone()
        measured = profile(
            lambda: backbone, lambda runtime: self.inputs(), Hyperparameters(self.name, 0, 1e-3, 0.0, 1.0, "adamw"),
            config, self.folder,
        )  # fmt: skip
        return make_plan(
            measured.model_copy(update={"read_bytes_per_second": 1e12, "write_bytes_per_second": 1e12}),
            config, train_rows=1000, validation_rows=1000, views=1, trials=1000,
            depths=dict.fromkeys(range(len(backbone.layer_groups) + 1), 0.1), budget=budget, input_numbers=0,
        )  # fmt: skip

    def stored(self, plan: Plan | None) -> StoredSplits:
        return StoredSplits(
            folder=self.folder / "activations",
            budget=None,
            plan=plan,
            data=self.tokens,
            backbone=self.name,
            weights=self.backbone().weights_digest,
            preprocessing=None,
            augmentations=(Augmentation(),),
        )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("texts")
    random = np.random.default_rng(0)
    lines = ["label,text"]
    for number in range(200):
        words = random.choice(WORDS, random.integers(1, 25)).tolist()
        label = "win" if "win" in words or number % 2 else "home"
        lines.append(f"{label},{' '.join([label, *words, str(number)])}")
    table = folder / "texts.csv"
    table.write_text("\n".join(lines) + "\n")
    name = f"hf:{TINY['bert'](folder / 'bert')}"
    wanted = backbones.preprocessing_of(name)
    assert isinstance(wanted, TextPreprocessing)
    manifest = scan(DataConfig(path=table))
    tokens = tokenized(manifest, tokenizer=wanted.tokenizer, max_length=wanted.max_length, cache_dir=folder / "tokens")
    return Study(name, tokens.path, folder)


def test_the_plan_stores_a_row_for_each_token_and_after_the_last_group_one_for_each_text(study: Study) -> None:
    plan = study.plan()
    deepest = len(plan.profile.groups)
    assert plan.boundaries
    mean = study.inputs().lengths.mean()
    assert plan.profile.numbers[deepest - 1] == 32, "pooled features"
    assert plan.profile.numbers[0] == pytest.approx(32 * mean, rel=0.1), "hidden states of a text of the mean length"


def every_boundary(plan: Plan) -> Plan:
    deepest = len(plan.profile.groups)
    stored_as = dict.fromkeys(range(1, deepest + 1), "float32")
    return plan.model_copy(update={"boundaries": tuple(range(1, deepest + 1)), "stored_as": stored_as})


@pytest.fixture(scope="module")
def filled(study: Study) -> StoredSplits:
    stored = study.stored(every_boundary(study.plan()))
    assert stored.fill(study.backbone(), RUNTIME, batch_size=16) == {}
    return stored


@pytest.mark.parametrize("boundary", [1, 2, 3, 4])
def test_what_is_read_is_what_the_frozen_layers_compute(study: Study, filled: StoredSplits, boundary: int) -> None:
    backbone = study.backbone()
    backbone.module.eval()
    inputs, rows = study.inputs(), np.array([0, 3, 5, 40])
    with torch.inference_mode():
        expected = section(backbone, 0, boundary)(inputs.prepare(inputs.read(rows, 0), rows, 0))
    train, _ = filled.open(boundary, RUNTIME, "none")
    assert train.boundary == boundary
    found = train.prepare(train.read(rows, 0), rows, 0)
    assert found.shape == expected.shape
    there = expected[..., -1:] > 0 if boundary < 4 else torch.ones(len(rows), 1)
    if boundary < 4:
        assert torch.equal(found[..., -1] > 0, there[..., 0])
    torch.testing.assert_close(found * there, expected * there, rtol=0, atol=1e-5)


def test_nothing_is_stored_for_padding(study: Study, filled: StoredSplits) -> None:
    tokens = int(sum(study.inputs(split).lengths.sum() for split in ("train", "validation")))
    texts = sum(len(study.inputs(split)) for split in ("train", "validation"))
    sizes = sorted(path.stat().st_size for path in (study.folder / "activations").glob("*.bin"))
    assert sum(sizes) == 32 * 4 * (3 * tokens + texts)


def trained(study: Study, stored: StoredSplits, depth: int, folder: Path) -> tuple[list[float], torch.Tensor]:
    """The losses of two epochs, and the head's weights after them."""
    set_up_process(threads=1, seed=0)
    backbone = study.backbone()
    result = fit(
        backbone,
        lambda current: stored.open(current, RUNTIME, "none"),
        hyperparameters=Hyperparameters(study.name, depth, 1e-2, 0.01, 1.0, "adamw"),
        config=TRAIN,
        metric="accuracy",
        runtime=RUNTIME,
        checkpoints=CheckpointFolder(folder, keep=1, maximise=True),
        seed=0,
        on_epoch=lambda result: Decision.CONTINUE,
    )
    losses = [epoch.metrics["train/loss"] for epoch in result.history]
    return losses, backbone.module.get_parameter(backbone.head.tensors[0]).detach().clone()


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_training_from_stored_tokens_is_training_from_texts(
    study: Study, filled: StoredSplits, depth: int, tmp_path: Path
) -> None:
    losses, head = trained(study, filled, depth, tmp_path / "stored")
    others, other_head = trained(study, study.stored(None), depth, tmp_path / "texts")
    assert losses == pytest.approx(others, rel=1e-4)
    torch.testing.assert_close(head, other_head, rtol=0, atol=1e-3)
    assert losses[1] < losses[0], "it learns"


class Killed(BaseException):
    """A kill that leaves the test alive."""


def test_a_pass_over_texts_that_was_stopped_resumes_where_it_was(study: Study, tmp_path: Path) -> None:
    inputs, backbone = study.inputs(), study.backbone()
    keys = {
        boundary: ActivationKey(
            "texts", "train", "plain", study.name, backbone.weights_digest, boundary, None, "cpu", "float32", "torch"
        )
        for boundary in (1, 4)
    }

    def filled_in(store: ActivationStore, on_progress: Callable[[int, int], None] | None = None) -> None:
        refused = fill(
            store, backbone, inputs, 0, keys, RUNTIME, batch_size=8, block_bytes=20_000, on_progress=on_progress
        )
        assert refused == {}

    def stop(done: int, total: int) -> None:
        if done >= 32:
            raise Killed

    whole, stopped = ActivationStore(tmp_path / "whole"), ActivationStore(tmp_path / "stopped")
    filled_in(whole)
    with pytest.raises(Killed):
        filled_in(stopped, stop)
    assert stopped.open(keys[1]) is None, "half a file is none"
    told: list[int] = []
    filled_in(stopped, lambda done, total: told.append(done))
    assert min(told) > 32
    for key in keys.values():
        one, other = whole.open(key), stopped.open(key)
        assert one is not None
        assert other is not None
        assert torch.equal(one.rows(slice(None)), other.rows(slice(None)))
