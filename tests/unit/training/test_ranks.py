"""Two processes that train together come to the numbers of one."""

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from thawline.backbones import Backbone, LayerGroup, Preprocessing
from thawline.config import TrainConfig
from thawline.search import worker
from thawline.search.worker import call_in_workers
from thawline.training import (
    CheckpointFolder,
    Decision,
    EpochResult,
    Hyperparameters,
    ImageInputs,
    Interrupted,
    fit,
    runtime_for,
    set_up_process,
)
from thawline.training.ranks import ALONE, Place, Ranks, device_of_rank, joined

pytestmark = pytest.mark.xdist_group("processes")

CLASSES, SIDE, EPOCHS = 3, 12, 3
CONFIG = TrainConfig(epochs=EPOCHS, batch_size=8, device="cpu", label_smoothing=0.1)


class Case(NamedTuple):
    """A training."""

    config: TrainConfig = CONFIG
    rows: int = 61
    depth: int = 0
    policy: Any = "static"
    batch_norm: Any = "frozen_eval"
    optimizer: Any = "adamw"
    dropout: float = 0.0
    accumulation: int = 1
    stop_after: int | None = None
    """Epochs."""
    leave_at: int | None = None
    """The batch after which the last process, and no other, is asked to leave."""
    folder: str | None = None
    """Of another case's checkpoints, from which it resumes."""


CASES = {
    "a last batch of five": Case(),
    "a last batch of two, which one process computes": Case(rows=58),
    "a batch of two alone": Case(rows=2),
    "class weights": Case(CONFIG.model_copy(update={"class_weights": "balanced"}), rows=59),
    "thawed layer by layer": Case(depth=0, policy="gradual", optimizer="sgd"),
    "head only": Case(depth=2),
    "averaged weights": Case(CONFIG.model_copy(update={"ema": 0.9})),
    "batches in parts": Case(accumulation=2),
}
"""What two processes compute as one does."""
IN_PARTS = {
    "mixup": Case(CONFIG.model_copy(update={"mixup": 0.4}), depth=1),
    "batch-norms that are trained": Case(batch_norm="train_all", rows=58),
}
"""What depends on which rows are computed at once: two processes compute it as one does that accumulates two parts."""
DROPOUT = Case(dropout=0.3, batch_norm="train_all", rows=58)
RESUMED = {
    "whole": DROPOUT,
    "stopped": DROPOUT._replace(stop_after=1),
    "stopped and resumed": DROPOUT._replace(folder="stopped"),
    "left": DROPOUT._replace(leave_at=11),
    "left and resumed": DROPOUT._replace(folder="left"),
    "for one": Case(stop_after=1),
    "of one": Case(folder="of one"),
}
"""One after the other: what is drawn in each process is part of where a training stands."""


def network(dropout: float) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential()
        module.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        module.neck = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.Dropout(dropout))
        module.head = nn.Linear(16, CLASSES)
    names = ("stem", "neck", "head")

    def group(name: str) -> LayerGroup:
        tensors = tuple(key for key in module.state_dict() if key.startswith(f"{name}."))
        modules = tuple(key for key, _ in module.named_modules() if key == name or key.startswith(f"{name}."))
        return LayerGroup(name, tensors, modules, output={"stem": "stem_2", "neck": "neck_3", "head": "head"}[name])

    *groups, head = map(group, names)
    preprocessing = Preprocessing(SIDE, SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bilinear")
    return Backbone("tiny", module, tuple(groups), head, preprocessing, "0" * 16, {})


def images(count: int, backbone: Backbone) -> ImageInputs:
    random = np.random.default_rng(count)
    labels = np.arange(count) % CLASSES * (np.arange(count) % 4 > 0)  # the first class has more
    pixels = random.integers(0, 120, (count, SIDE, SIDE, 3))
    pixels[np.arange(count), :, :, labels] += 60
    assert isinstance(backbone.preprocessing, Preprocessing)
    return ImageInputs(pixels.astype(np.uint8), labels, backbone.preprocessing, runtime_for(CONFIG))


class Result(NamedTuple):
    epochs: list[dict[str, float]]
    weights: dict[str, np.ndarray]


def train(case: Case, folder: Path, ranks: Ranks) -> Result | None:
    """``None`` if it was left."""
    set_up_process(threads=1, seed=ranks.rank)
    backbone = network(case.dropout)
    batch = 0

    def on_epoch(result: EpochResult) -> Decision:
        assert ranks.is_first
        return Decision.PAUSE if result.epoch == case.stop_after else Decision.CONTINUE

    def on_batch() -> bool:
        nonlocal batch
        batch += 1
        return batch == case.leave_at and ranks.rank == ranks.count - 1

    try:
        result = fit(
            backbone,
            lambda depth: (images(case.rows, backbone), images(30, backbone)),
            hyperparameters=Hyperparameters(
                "tiny", case.depth, 1e-2, 0.01, 1.0, case.optimizer, policy=case.policy, batch_norm=case.batch_norm
            ),
            config=case.config,
            metric="loss",
            runtime=runtime_for(case.config),
            checkpoints=CheckpointFolder(folder, keep=1, maximise=False),
            seed=3,
            accumulation=case.accumulation,
            on_epoch=on_epoch,
            on_batch=on_batch,
            ranks=ranks,
        )
    except Interrupted:
        return None
    return Result(
        [epoch.metrics for epoch in result.history],
        {name: tensor.numpy().copy() for name, tensor in backbone.module.state_dict().items()},
    )


def train_all(cases: dict[str, Case], folder: Path, place: Place, link: worker.Link) -> dict[str, Result | None]:
    warnings.simplefilter("error")
    with joined(place, torch.device("cpu")) as ranks:
        results = {name: train(case, folder / (case.folder or name), ranks) for name, case in cases.items()}
        weights = [result.weights for result in results.values() if result is not None]
        for tensors in weights:  # what both end with is the same, to the bit
            for name in sorted(tensors):
                mean = torch.from_numpy(tensors[name].astype(np.float64))
                ranks.average([mean])
                assert np.array_equal(mean.numpy(), tensors[name].astype(np.float64)), name
    return results


def together(cases: dict[str, Case], folder: Path, count: int = 2) -> dict[str, Result]:
    """Trained by several processes."""
    with tempfile.TemporaryDirectory() as meeting:
        places = [Place(rank, count, Path(meeting) / "meeting") for rank in range(count)]
        results: dict[str, Result] = call_in_workers([(train_all, (cases, folder, place)) for place in places])
    return results


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    worker._stopping.clear()
    folder = tmp_path_factory.mktemp("together")
    begun_alone = train(Case(stop_after=1), folder / "of one", ALONE)
    assert begun_alone is not None
    results = together(CASES | IN_PARTS | RESUMED, folder)
    shutil.copytree(folder / "for one", folder / "resumed by one")
    resumed_by_one = train(Case(), folder / "resumed by one", ALONE)
    assert resumed_by_one is not None
    results["resumed by one"] = resumed_by_one
    worker.stop_workers()
    worker._stopping.clear()
    return results


def assert_same(first: Result, second: Result, *names: str) -> None:
    for name in names:
        assert [epoch[name] for epoch in first.epochs] == pytest.approx(
            [epoch[name] for epoch in second.epochs], abs=1e-5
        ), name


ALL = ("train/loss", "train/accuracy", "train/gradient_norm", "val/loss", "val/accuracy")


@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_losses_of_one_with_the_same_batches(
    trained: dict[str, Result], tmp_path: Path, name: str
) -> None:
    alone = train(CASES[name], tmp_path, ALONE)
    assert alone is not None
    assert len(alone.epochs) == EPOCHS
    assert_same(trained[name], alone, *ALL)
    for tensor, other in zip(trained[name].weights.values(), alone.weights.values(), strict=True):
        assert np.allclose(tensor, other, atol=1e-4)
    assert alone.epochs[0]["train/loss"] != pytest.approx(alone.epochs[-1]["train/loss"], abs=1e-3), "a control"


@pytest.mark.parametrize("name", IN_PARTS)
def test_what_depends_on_the_rows_of_a_part_is_that_of_one_process_with_as_many_parts(
    trained: dict[str, Result], tmp_path: Path, name: str
) -> None:
    alone = train(IN_PARTS[name]._replace(accumulation=2), tmp_path / "parts", ALONE)
    assert alone is not None
    assert_same(trained[name], alone, "train/loss", "train/accuracy", "train/gradient_norm")
    undivided = train(IN_PARTS[name], tmp_path / "undivided", ALONE)
    assert undivided is not None
    assert undivided.epochs[0]["train/loss"] != pytest.approx(alone.epochs[0]["train/loss"], abs=1e-5), "a control"


@pytest.mark.parametrize("how", ["stopped", "left"])
def test_what_two_processes_resume_ends_as_if_it_had_not_stopped_to_the_bit(
    trained: dict[str, Result], how: str
) -> None:
    assert trained["left"] is None, "a control"
    assert len(trained["stopped"].epochs) == 1, "a control"
    whole, resumed = trained["whole"], trained[f"{how} and resumed"]
    assert_same(whole, resumed, "train/loss")  # a mean, whose sum is taken in another order
    assert all(np.array_equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)


def test_a_training_resumes_with_another_number_of_processes(trained: dict[str, Result]) -> None:
    expected = trained["a last batch of five"]
    for name in ("resumed by one", "of one"):
        assert len(trained[name].epochs) == EPOCHS
        assert_same(trained[name], expected, *ALL)


def test_each_process_has_the_device_after_that_of_the_one_before() -> None:
    assert [device_of_rank("cuda:2", rank) for rank in range(3)] == ["cuda:2", "cuda:3", "cuda:4"]
    assert [device_of_rank("cuda", rank) for rank in range(2)] == ["cuda:0", "cuda:1"]
    assert [device_of_rank("cpu", rank) for rank in range(2)] == ["cpu", "cpu"]
