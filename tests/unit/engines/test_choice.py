"""The fastest engine that answers as the trained network does computes a version; others are refused with a reason."""

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from colours import add_engine_files

from thawline.cli import models
from thawline.engines import (
    SAMPLE_FILE,
    Engine,
    EngineName,
    OnnxRuntime,
    OpenVino,
    choice,
    choose,
    read_sample,
    write_sample,
)
from thawline.exceptions import EngineError

OTHERS: tuple[EngineName, ...] = ("onnxruntime", "openvino", "openvino-bf16")
SURE = np.exp(10) / (np.exp(10) + 2)


class Clock:
    """Seconds that pass only when an engine computes."""

    now = 0.0

    def __init__(self) -> None:
        self.seconds = {"onnxruntime": 1.0, "openvino": 2.0, "openvino-bf16": 2.0}
        """Of an image, by engine."""

    def perf_counter(self) -> float:
        return self.now


class Servable:
    """A package whose network takes a while, and names the colour of a picture."""

    engine = "pytorch"

    def __init__(self, clock: Clock, seconds: float, device: str = "cpu") -> None:
        self.device = SimpleNamespace(type=device)
        self._clock, self._seconds = clock, seconds

    def outputs(self, prepared: Sequence[Any]) -> tuple[list[list[float]], None]:
        self._clock.now += self._seconds * len(prepared)
        means = np.stack(prepared).mean((1, 2)) / 255
        rows: list[list[float]] = np.where(means == means.max(1, keepdims=True), SURE, (1 - SURE) / 2).tolist()
        return rows, None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Engines take seconds for an image by it, on a processor that has bf16."""
    import openvino

    clock = Clock()

    def slow(compute: Any) -> Any:
        def slowly(self: Engine, prepared: Sequence[Any]) -> list[list[float]]:
            clock.now += clock.seconds[self.name] * len(prepared)
            rows: list[list[float]] = compute(self, prepared)
            return rows

        return slowly

    monkeypatch.setattr(choice, "time", clock)
    for engine in (OnnxRuntime, OpenVino):
        monkeypatch.setattr(engine, "probabilities", slow(engine.probabilities))
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "BF16"])
    return clock


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "model.json").write_text("{}")
    return add_engine_files(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "others", "fastest"),
    [
        (3.0, {}, "onnxruntime"),
        (0.5, {}, "pytorch"),
        (3.0, {"openvino": 0.9}, "openvino"),
        (3.0, {"openvino-bf16": 0.8}, "openvino-bf16"),
        (3.0, {"openvino-bf16": 0.95}, "onnxruntime"),  # less precise for next to nothing
    ],
)
def test_the_fastest_engine_that_passes_computes(
    clock: Clock, files: Path, seconds: float, others: dict[str, float], fastest: str
) -> None:
    clock.seconds |= others
    chosen = choose(Servable(clock, seconds), files)
    assert chosen.engine.name == fastest
    assert [(each.name, each.refused) for each in chosen.tried] == [
        ("pytorch", None),
        *((name, None) for name in clock.seconds),
    ]
    assert [each.seconds for each in chosen.tried] == pytest.approx([seconds, *clock.seconds.values()])
    assert all(each.difference is not None and each.difference < 1e-6 for each in chosen.tried)


@pytest.mark.parametrize("wanted", OTHERS)
def test_one_engine_can_be_fixed_whatever_its_speed_and_its_files_may_vanish_then(
    clock: Clock, files: Path, wanted: EngineName
) -> None:
    assert choose(Servable(clock, 3.0), files, "pytorch").engine.name == "pytorch"
    engine = choose(Servable(clock, 0.5), files, wanted).engine
    shutil.rmtree(files)
    blue = np.full((32, 32, 3), [0, 0, 255], np.uint8)
    (row,) = engine.probabilities([blue])
    assert (engine.name, row) == (wanted, pytest.approx([(1 - SURE) / 2, (1 - SURE) / 2, SURE], abs=1e-6))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda files: add_engine_files(files, wrong_by=0.03), "a probability differs by 3.0e-02, but at most "),
        (lambda files: add_engine_files(files, wrong_by=float("nan")), "a probability differs by nan"),
        (
            lambda files: (files / "model.onnx").write_bytes(b"torn"),
            ("InvalidProtobuf: ", "RuntimeError: Unable to read the model"),
        ),
        (
            lambda files: (files / "model.onnx").unlink(),
            "has no model.onnx, which a search writes for images if 'thawline[onnx]' is",
        ),
        (lambda files: (files / SAMPLE_FILE).unlink(), "has no validation images to compare engines on"),
        (lambda files: (files / SAMPLE_FILE).write_bytes(b"torn"), "sample.safetensors cannot be read"),
        (
            lambda files: write_sample(files / SAMPLE_FILE, [np.zeros((32, 32, 3), np.uint8)], [[0.5, 0.5]]),
            "it has 3 classes, but the trained network 2",
        ),
    ],
    ids=["answers otherwise", "no number", "torn", "not exported", "no sample", "torn sample", "other classes"],
)
def test_engines_that_cannot_be_used_are_refused_with_the_reason_and_the_next_one_computes(
    clock: Clock, files: Path, spoil: Any, reason: str | tuple[str, str]
) -> None:
    spoil(files)
    chosen = choose(Servable(clock, 3.0), files)
    assert chosen.engine.name == "pytorch"
    assert chosen.tried[0].refused is None
    assert chosen.refused.keys() == set(OTHERS)
    for name, refused in chosen.refused.items():
        expected = reason if isinstance(reason, str) else reason[name.startswith("openvino")]
        assert expected in refused
        with pytest.raises(EngineError, match=f"birds/3 cannot be computed by {name}: ") as error:
            choose(Servable(clock, 3.0), files, name, model="birds/3")  # type: ignore[arg-type]
        assert expected in str(error.value)


def test_bf16_may_differ_by_more_than_single_precision(clock: Clock, files: Path) -> None:
    add_engine_files(files, wrong_by=0.01)
    chosen = choose(Servable(clock, 3.0), files)
    assert chosen.engine.name == "openvino-bf16"
    for name in ("onnxruntime", "openvino"):
        assert "a probability differs by 1.0e-02, but at most 1e-03 is allowed" in chosen.refused[name]


@pytest.mark.parametrize(("margin", "named"), [(0.001, "openvino-bf16"), (0.01, "pytorch")])
def test_bf16_must_name_the_trained_networks_class_but_for_ties(
    clock: Clock, files: Path, margin: float, named: str
) -> None:
    image = np.full((32, 32, 3), [128, 129, 0], np.uint8)  # the graph says green, by 0.0195
    answers = np.exp([10 * 128 / 255, 10 * 129 / 255, 0])
    red, green, blue = answers / answers.sum()
    half = (red + green) / 2
    write_sample(files / SAMPLE_FILE, [image], [[half + margin / 2, half - margin / 2, blue]])
    chosen = choose(Servable(clock, 3.0), files)
    assert chosen.engine.name == named
    if named == "pytorch":
        assert (
            "predicts another class than the trained network for 1 of the package's 1"
            in chosen.refused["openvino-bf16"]
        )


def test_bf16_is_left_to_processors_that_have_it(clock: Clock, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "INT8"])
    chosen = choose(Servable(clock, 3.0), files)
    assert chosen.refused == {
        "openvino-bf16": "this processor does not support bf16: it has neither AVX-512 BF16 nor AMX"
    }


def test_threads_may_ask_an_engine_at_once(files: Path) -> None:
    engine = OpenVino(files, threads=1)
    images = [np.full((32, 32, 3), 255 * np.eye(3, dtype=np.uint8)[number % 3]) for number in range(60)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda image: engine.probabilities([image])[0], images))
    assert np.argmax(answers, axis=1).tolist() == [number % 3 for number in range(60)]


def test_engines_that_are_not_installed_are_refused_with_the_command_that_installs_them(
    clock: Clock, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused = choose(Servable(clock, 3.0), files).refused
    assert {name: reason.rpartition("pip install ")[2] for name, reason in refused.items()} == {
        "onnxruntime": "'thawline[onnx]'",
        "openvino": "'thawline[openvino]'",
        "openvino-bf16": "'thawline[openvino]'",
    }


def test_a_network_on_a_gpu_stays_with_pytorch(clock: Clock, files: Path) -> None:
    assert choose(Servable(clock, 3.0, "cuda"), files).engine.name == "pytorch"
    with pytest.raises(EngineError, match=r"onnxruntime runs on the CPU, but .* leave out --device"):
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
    assert named == get_args(EngineName) == ("auto", "pytorch", "pytorch-compiled", *choice._OTHERS)
