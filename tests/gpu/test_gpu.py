"""Where there is a GPU it is taken, and computes what a CPU does, but for the last bits."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colours import make_package, picture
from PIL import Image

from thawline import backbones
from thawline.backbones import networks, section
from thawline.config import TrainConfig
from thawline.data import images
from thawline.registry.servable import open_servable
from thawline.reports import StudyReport
from thawline.training import (
    CheckpointFolder,
    Decision,
    EpochResult,
    FitResult,
    Hyperparameters,
    fit,
    runtime_for,
    set_up_process,
)
from thawline.training.runtime import on_device

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(600)]

OPTIONS = (
    *("--backbone", "mobilenet_v3_small", "--weights", "starter", "--image-size", "32", "--model", "shapes"),
    *("--trials", "3", "--epochs", "2", "--batch-size", "8", "--json", "--set", "space.freeze_depth=[3, 5]"),
    *("--set", "data.workers=1", "--set", "train.precision=fp32"),
)


def test_it_is_taken_unless_another_device_is_named() -> None:
    assert runtime_for(TrainConfig()).device.type == "cuda"
    assert runtime_for(TrainConfig(device="cpu")).device.type == "cpu"


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16"])
def test_a_network_in_two_parts_on_it_is_the_whole_on_a_cpu_but_for_the_last_bits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    backbone = backbones.create(name, num_classes=3, weights="none", image_size=64)
    torch.nn.init.normal_(backbone.module.get_parameter(f"{backbone.head.name}.weight"))
    backbone.module.eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    depth = len(backbone.layer_groups) // 2
    with torch.no_grad():
        expected = backbone.module(images)
        backbone.module.cuda()
        stored = section(backbone, 0, depth)(images.cuda())
        found = section(backbone, depth)(stored)
    assert stored.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_a_search_trains_on_it_and_its_model_answers_the_same_without_it(
    prepared: Callable[[Path], Path], prefect: dict[str, str], tmp_path: Path
) -> None:
    data, home = draw(tmp_path / "shapes"), prepared(tmp_path / "home")
    environment = {**os.environ, **prefect, "THAWLINE_HOME": str(home)}

    def thawline(*arguments: str | Path, **more: str) -> Any:
        command = [sys.executable, "-m", "thawline", *map(str, arguments)]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment | more, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    outcome = thawline("search", data, *OPTIONS)
    assert {trial["state"] for trial in outcome["trials"]} <= {"complete", "pruned"}
    report = home / "studies" / outcome["study"] / "report" / "report.json"
    trained = [trial for trial in StudyReport.from_json(report.read_text()).trials if trial.learning_rate is not None]
    assert trained
    assert all(trial.memory_bytes for trial in trained), "the GPU's; nobody counts a CPU's"
    files = [data / name / "0.png" for name in ("bright", "dark")]
    with_it = thawline("predict", "shapes/1", *files, "--json")
    without = thawline("predict", "shapes/1", *files, "--json", CUDA_VISIBLE_DEVICES="")
    assert [answer["class"] for answer in with_it] == [answer["class"] for answer in without]
    for one, other in zip(with_it, without, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-3)


class Rows:
    """Images on the device, so that nothing is read."""

    boundary = 0
    lengths = None

    def __init__(self, count: int) -> None:
        self.labels = np.arange(count, dtype=np.int64) % 3
        self.images = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0)).cuda()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: np.ndarray, epoch: int) -> torch.Tensor:
        return self.images[on_device(rows, self.images.device)]

    def prepare(self, read: torch.Tensor, rows: np.ndarray, epoch: int) -> torch.Tensor:
        return read


def train(
    folder: Path,
    epochs: int,
    on_epoch: Callable[[EpochResult], Decision] = lambda result: Decision.CONTINUE,
    on_batch: Callable[[], bool] = lambda: False,
) -> FitResult:
    config = TrainConfig(epochs=epochs, batch_size=8, precision="bf16")
    set_up_process(threads=1, seed=0, exact=True)
    inputs = Rows(40), Rows(16)
    return fit(
        backbones.create("resnet18", num_classes=3, weights="none", image_size=64),
        lambda depth: inputs,
        hyperparameters=Hyperparameters("resnet18", 2, 1e-3, 0.01, 1.0, "adamw"),
        config=config,
        metric="accuracy",
        runtime=runtime_for(config),
        checkpoints=CheckpointFolder(folder, keep=9, maximise=True),
        seed=0,
        on_epoch=on_epoch,
        on_batch=on_batch,
    )


def test_a_step_of_training_waits_for_nothing(tmp_path: Path) -> None:
    """PyTorch raises where the host would wait, from the first batch to the last; an epoch's end may."""
    batches: list[int] = []

    def strict() -> bool:
        batches.append(1)
        torch.cuda.set_sync_debug_mode("error" if len(batches) < 5 else "default")
        return False

    try:
        train(tmp_path / "first", 1, on_batch=strict)
        torch.cuda.set_sync_debug_mode("error")
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1, device="cuda").item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(batches) == 5 + 2


def test_a_training_resumes_on_it_from_its_checkpoint(tmp_path: Path) -> None:
    paused = train(tmp_path / "paused", 3, lambda result: Decision.PAUSE)
    assert len(paused.history) == 1
    told: list[int] = []
    resumed = train(tmp_path / "paused", 3, lambda result: (told.append(result.epoch), Decision.CONTINUE)[1])
    whole = train(tmp_path / "whole", 3)
    assert told == [1, 2, 3]
    for one, other in zip(resumed.history, whole.history, strict=True):
        assert one.metrics["train/loss"] == pytest.approx(other.metrics["train/loss"], rel=1e-2)


def test_a_served_network_is_loaded_to_the_device_that_is_named(tmp_path: Path) -> None:
    folder = make_package(tmp_path / "package")
    settings = json.loads(next(folder.rglob("model.json")).read_text())
    files = {"weights": str(next(folder.rglob("model.safetensors")))}
    before = torch.cuda.memory_allocated()
    on_cpu = open_servable(settings, files, networks=networks, inputs=images, device="cpu")
    assert torch.cuda.memory_allocated() == before
    named = f"cuda:{torch.cuda.device_count() - 1}"
    on_gpu = open_servable(settings, files, networks=networks, inputs=images, device=named)
    assert {str(parameter.device) for parameter in on_gpu.network.parameters()} == {named}
    prepared = [on_gpu.prepare(picture("red"))]
    np.testing.assert_allclose(on_gpu.probabilities(prepared), on_cpu.probabilities(prepared), atol=1e-2)


def draw(folder: Path) -> Path:
    """Two classes, bright and dark."""
    random = np.random.default_rng(0)
    for name, level in (("bright", 60), ("dark", 0)):
        (folder / name).mkdir(parents=True)
        for index in range(24):
            pixels = (random.integers(0, 190, (32, 32, 3)) + level).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder
