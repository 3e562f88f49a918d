"""The fastest engine that answers as the trained network does computes a version; others are refused with a reason."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from colours import add_engine_files

from thawline.cli import models
from thawline.engines import SAMPLE_FILE, EngineName, OnnxRuntime, choice, choose, read_sample, write_sample
from thawline.exceptions import EngineError

SURE = np.exp(10) / (np.exp(10) + 2)


class Clock:
    """Seconds that pass only when an engine computes."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Servable:
    """A package whose network takes a while, and names the colour of a picture."""

    def __init__(self, clock: Clock, seconds: float, device: str = "cpu") -> None:
        self.device = SimpleNamespace(type=device)
        self._clock, self._seconds = clock, seconds

    def probabilities(self, prepared: Sequence[Any]) -> list[list[float]]:
        self._clock.now += self._seconds * len(prepared)
        means = np.stack(prepared).mean((1, 2)) / 255
        rows: list[list[float]] = np.where(means == means.max(1, keepdims=True), SURE, (1 - SURE) / 2).tolist()
        return rows


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """ONNX Runtime takes a second for an image by it."""
    clock, compute = Clock(), OnnxRuntime.probabilities

    def slowly(self: OnnxRuntime, prepared: Sequence[Any]) -> list[list[float]]:
        clock.now += len(prepared)
        return compute(self, prepared)

    monkeypatch.setattr(choice, "time", clock)
    monkeypatch.setattr(OnnxRuntime, "probabilities", slowly)
    return clock


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "model.json").write_text("{}")
    return add_engine_files(tmp_path)


@pytest.mark.parametrize(("seconds", "fastest"), [(3.0, "onnxruntime"), (0.5, "pytorch")])
def test_the_fastest_engine_that_passes_computes(clock: Clock, files: Path, seconds: float, fastest: str) -> None:
    chosen = choose(Servable(clock, seconds), files)
    assert chosen.engine.name == fastest
    assert [(each.name, each.refused, each.seconds) for each in chosen.tried] == [
        ("pytorch", None, seconds),
        ("onnxruntime", None, 1.0),
    ]
    assert all(each.difference is not None and each.difference < 1e-6 for each in chosen.tried)


def test_one_engine_can_be_fixed_whatever_its_speed_and_its_files_may_vanish_then(clock: Clock, files: Path) -> None:
    assert choose(Servable(clock, 3.0), files, "pytorch").engine.name == "pytorch"
    engine = choose(Servable(clock, 0.5), files, "onnxruntime").engine
    shutil.rmtree(files)
    blue = np.full((32, 32, 3), [0, 0, 255], np.uint8)
    (row,) = engine.probabilities([blue])
    assert (engine.name, row) == ("onnxruntime", pytest.approx([(1 - SURE) / 2, (1 - SURE) / 2, SURE], abs=1e-6))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda files: add_engine_files(files, wrong_by=0.01),
            "differs by 1.0e-02, and at most 1e-03 is allowed",
        ),
        (lambda files: add_engine_files(files, wrong_by=float("nan")), "a probability differs by nan"),
        (lambda files: (files / "model.onnx").write_bytes(b"torn"), "InvalidProtobuf: "),
        (lambda files: (files / "model.onnx").unlink(), "holds no model.onnx: `promotion.exports: [onnx]` makes one"),
        (lambda files: (files / SAMPLE_FILE).unlink(), "the package holds no validation images to compare engines on"),
        (lambda files: (files / SAMPLE_FILE).write_bytes(b"torn"), "sample.safetensors cannot be read"),
        (
            lambda files: write_sample(files / SAMPLE_FILE, [np.zeros((32, 32, 3), np.uint8)], [[0.5, 0.5]]),
            "it knows 3 classes, and the trained network 2",
        ),
    ],
    ids=["answers otherwise", "no number", "torn", "not exported", "no sample", "torn sample", "other classes"],
)
def test_an_engine_that_cannot_be_used_is_refused_with_the_reason_and_the_next_one_computes(
    clock: Clock, files: Path, spoil: Any, reason: str
) -> None:
    spoil(files)
    chosen = choose(Servable(clock, 3.0), files)
    assert chosen.engine.name == "pytorch"
    assert chosen.tried[0].refused is None
    assert reason in str(chosen.tried[1].refused)
    with pytest.raises(EngineError, match="birds/3 cannot be computed by onnxruntime: ") as error:
        choose(Servable(clock, 3.0), files, "onnxruntime", model="birds/3")
    assert reason in str(error.value)


def test_an_engine_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    clock: Clock, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'thawline[onnx]'" in str(choose(Servable(clock, 3.0), files).tried[1].refused)


def test_a_network_on_a_gpu_stays_with_pytorch(clock: Clock, files: Path) -> None:
    assert choose(Servable(clock, 3.0, "cuda"), files).engine.name == "pytorch"
    with pytest.raises(EngineError, match=r"onnxruntime computes on the CPU, but .* leave out --device"):
        choose(Servable(clock, 3.0, "cuda"), files, "onnxruntime")


def test_a_sample_is_read_as_it_was_written_by_whoever_may_read_the_package(tmp_path: Path) -> None:
    images, answers = [np.full((2, 2, 3), number, np.uint8) for number in (7, 9)], [[0.25, 0.75], [1.0, 0.0]]
    write_sample(tmp_path / SAMPLE_FILE, images, answers)
    sample = read_sample(tmp_path / SAMPLE_FILE)
    assert sample is not None
    assert (sample.inputs.tolist(), sample.probabilities.tolist()) == (np.stack(images).tolist(), answers)
    assert read_sample(tmp_path / "none") is None
    (tmp_path / "plain").touch()
    assert (tmp_path / SAMPLE_FILE).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_engines_that_the_command_line_names_are_those_there_are() -> None:
    named = get_args(get_args(models.Engine)[0])
    assert named == get_args(EngineName) == ("auto", "pytorch", *choice._OTHERS)
