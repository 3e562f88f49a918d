"""The profile measures every layer group, and leaves the choice of precision to those who ask for exactness."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from thawline import backbones
from thawline.activations import Profile
from thawline.activations.profile import profile
from thawline.config import TrainConfig
from thawline.training import Hyperparameters, ImageInputs, Runtime, compiled, runtime_for

BACKBONE, SIZE = "squeezenet1_1", 64
HYPERPARAMETERS = Hyperparameters(BACKBONE, 0, 1e-3, 0.01, 1.0, "adamw")


def make_backbone() -> backbones.Backbone:
    return backbones.create(BACKBONE, num_classes=2, weights="none", image_size=SIZE)


def make_images(runtime: Runtime) -> ImageInputs:
    pixels = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3)).astype(np.uint8)
    return ImageInputs(pixels, np.arange(8) % 2, make_backbone().preprocessing, runtime)


@pytest.fixture
def measure(tmp_path: Path) -> Any:
    def run(**changes: Any) -> Profile:
        config = TrainConfig(device="cpu", batch_size=4, **changes)
        return profile(make_backbone, make_images, HYPERPARAMETERS, config, tmp_path / "study")

    return run


def test_it_knows_the_groups_their_parameters_and_what_they_pass_on(measure: Any) -> None:
    measured, backbone = measure(exact=True), make_backbone()
    assert measured.groups == tuple(group.name for group in backbone.layer_groups)
    assert sum(measured.parameters) == sum(parameter.numel() for parameter in backbone.module.parameters())
    backbone.module.eval()
    inputs, rows = make_images(runtime_for(TrainConfig(device="cpu"))), np.arange(4)
    with torch.no_grad():
        for depth, numbers in enumerate(measured.numbers, 1):
            images = inputs.prepare(inputs.read(rows, 0), rows, 0)
            passed = backbones.section(backbone, 0, depth)(images)
            assert passed[0].numel() == numbers
            assert measured.computed_as[depth - 1] == "float32"
            assert measured.largest[depth - 1] == pytest.approx(float(passed.abs().max()), rel=1e-3)


def test_everything_takes_time(measure: Any) -> None:
    measured = measure()
    assert all(seconds > 0 for seconds in (*measured.forward, *measured.training))
    assert len(measured.forward) == len(measured.training) == len(measured.groups) + 1
    rates = (measured.read_bytes_per_second, measured.write_bytes_per_second, measured.step_seconds)
    assert all(rate > 0 for rate in rates)


def test_exact_training_is_in_single_precision_and_what_was_asked_for_is_kept(measure: Any) -> None:
    assert measure(exact=True).precision == "fp32"
    asked = measure(precision="bf16", channels_last=False)
    assert (asked.precision, asked.channels_last) == ("bf16", False)
    assert "bfloat16" in asked.computed_as


@pytest.mark.parametrize("batch_norm", ["frozen_eval", "train_all"])
def test_what_is_measured_are_batch_norms_that_do_what_those_of_the_trials_do(tmp_path: Path, batch_norm: Any) -> None:
    made: list[backbones.Backbone] = []

    def make() -> backbones.Backbone:
        made.append(backbones.create("resnet18", num_classes=2, weights="none", image_size=SIZE))
        return made[-1]

    config = TrainConfig(device="cpu", batch_size=4, exact=True)
    profile(make, make_images, replace(HYPERPARAMETERS, batch_norm=batch_norm), config, tmp_path)
    norm = made[0].module.get_submodule("layer1.0.bn1")
    assert (int(norm.num_batches_tracked) > 0) == (batch_norm == "train_all")  # type: ignore[arg-type]
    assert norm.weight.requires_grad == (batch_norm == "train_all")


def test_another_way_is_taken_only_if_it_is_much_faster(measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(seconds: dict[str, float]) -> None:
        def measured(run: Any, runtime: Any, **_: Any) -> float:
            run()
            order = "last" if runtime is not None and runtime.channels_last else "first"
            return seconds.get(f"{str(runtime).removeprefix('cpu ')} {order}", 1.0)

        # By the module's own name: the package's `profile` is the function.
        monkeypatch.setattr(sys.modules["thawline.activations.profile"], "_median", measured)

    ways = {"fp32 last": 1.0, "fp32 first": 0.95, "bf16 last": 0.8, "bf16 first": 0.9}
    pretend(ways)
    assert (measure().precision, measure().channels_last) == ("fp32", True)
    pretend(ways | {"fp32 first": 0.5})
    assert (measure().precision, measure().channels_last) == ("fp32", False)
    pretend(ways | {"bf16 last": 0.5})
    assert (measure().precision, measure().channels_last) == ("bf16", True)
    pretend(ways | {"bf16 last": 3.9, "bf16 first": 0.1})
    assert (measure().precision, measure().channels_last) == ("bf16", False)
    pretend(ways | {"bf16 last": 4.1, "bf16 first": 0.1})
    assert measure().precision == "fp32", "a precision that is far slower is not tried in another memory format"


def test_a_way_that_is_slower_than_the_usual_one_is_not_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["thawline.activations.profile"]
    began: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: 2.0 * len(began)))
    assert module._median(lambda: began.append(0.0), None, repeats=3, hopeless=1.0) == 2.0
    assert len(began) == 2, "to warm up, and once"
    began.clear()
    assert module._median(lambda: began.append(0.0), None, repeats=3, hopeless=0.4) == 2.0
    assert len(began) == 1, "what is five times too slow at its warm-up is not run again"
    began.clear()
    assert module._median(lambda: began.append(0.0), None, repeats=3, hopeless=3.0) == 2.0
    assert len(began) == 4


def test_compiling_is_measured_only_if_it_is_wanted(measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    found = measure(compile=True).compilation
    torch._dynamo.reset()
    assert found is not None
    assert found.seconds > 0
    assert found.gain > 0
    assert measure().compilation is None


def test_a_network_that_cannot_be_compiled_is_measured_all_the_same_and_says_why(
    measure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler is installed\nand more lines")

    monkeypatch.setattr(compiled, "BACKEND", fails)
    measured = measure(compile=True)
    torch._dynamo.reset()
    assert measured.compilation is None
    assert "no compiler is installed" in measured.not_compiled
    assert "\n" not in measured.not_compiled
    assert all(seconds > 0 for seconds in measured.training)
