"""A compiled network answers as the network does, computes on a GPU where it pays, and never compiles under load."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from colours import add_engine_files
from compilers import Compiler
from torch import Tensor, nn

from thawline.engines import Compiled, EngineName, choice, choose
from thawline.exceptions import EngineError
from thawline.registry import servable

SIZES = (1, 2, 3, 15, 16, 31, 32, 40)
"""Of the batches that servers and scoring compute, and a larger one."""


class Inputs:
    def batch(self, prepared: list[Any]) -> Tensor:
        return torch.from_numpy(np.stack(prepared)).permute(0, 3, 1, 2).float() / 255


class Package(servable.Servable):
    """Loaded: its network names the colour of a picture, as that of ``add_engine_files`` does."""

    kind, classes, temperature = "images", ["red", "green", "blue"], 0.1
    inputs: Any = Inputs()

    def __init__(self, device: str = "cpu", *, head: bool = False) -> None:
        self.device = torch.device(device)  # what is computed here is on the CPU all the same
        self.network: Any = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Identity())
        self.farthest = 0.5 if head else None
        if head:
            servable.watch(self.network[2])


def pictures(count: int, size: int = 8) -> list[npt.NDArray[np.uint8]]:
    return list(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("head", [False, True])
def test_batches_of_any_size_are_computed_by_what_was_compiled_before_the_first_of_them(head: bool) -> None:
    package, compiler = Package(head=head), Compiler()
    engine = Compiled(package, pictures(1)[0], backend=compiler)
    compiled = compiler.graphs
    assert compiled >= 2, "one picture alone, and several"
    for size in SIZES:
        before = compiler.runs
        answers, features = engine.outputs(pictures(size))
        expected, seen = package.outputs(pictures(size))
        np.testing.assert_allclose(answers, expected, atol=1e-6)
        assert compiler.runs == before + 1
        assert (features is not None) is head
        if head:
            np.testing.assert_allclose(features, seen, atol=1e-6)
    assert compiler.graphs == compiled


def test_what_was_not_compiled_is_computed_by_the_network_and_not_compiled_then() -> None:
    package, compiler = Package(), Compiler()
    engine = Compiled(package, pictures(1)[0], backend=compiler)
    before = (compiler.graphs, compiler.runs)
    larger = pictures(2, size=12)
    np.testing.assert_allclose(engine.probabilities(larger), package.probabilities(larger), atol=1e-6)
    assert (compiler.graphs, compiler.runs) == before


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """What compiles, in place of PyTorch's own."""
    used = Compiler()
    compile_network = Compiled.__init__
    monkeypatch.setattr(Compiled, "__init__", lambda *arguments: compile_network(*arguments, backend=used))
    return used


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "model.json").write_text("{}")
    return add_engine_files(tmp_path)


@pytest.mark.parametrize(("seconds", "named"), [(0.8, "pytorch-compiled"), (0.95, "pytorch")])
def test_on_a_gpu_the_compiled_network_computes_where_it_is_faster_by_more_than_chance(
    files: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch, seconds: float, named: str
) -> None:
    monkeypatch.setattr(choice, "_seconds", lambda engines, sample: [1.0, seconds][: len(engines)])
    chosen = choose(Package("cuda"), files, lasting=True)
    assert [(each.name, each.refused, each.seconds) for each in chosen.tried] == [
        ("pytorch", None, 1.0),
        ("pytorch-compiled", None, seconds),
    ]
    assert chosen.engine.name == named


def test_who_asks_for_a_few_answers_does_not_wait_for_a_compiler(files: Path, compiler: Compiler) -> None:
    assert choose(Package("cuda"), files).engine.name == "pytorch"
    assert compiler.graphs == 0


def test_on_a_cpu_it_is_left_to_whoever_asks_for_it(files: Path, compiler: Compiler) -> None:
    assert "pytorch-compiled" not in {each.name for each in choose(Package(), files, lasting=True).tried}
    assert compiler.graphs == 0
    chosen = choose(Package(), files, "pytorch-compiled")
    assert chosen.engine.name == "pytorch-compiled"
    assert compiler.graphs >= 2
    assert np.argmax(chosen.engine.probabilities([np.full((32, 32, 3), [0, 0, 255], np.uint8)])) == 2


def _fails(self: Compiler, *_: object) -> Callable[..., Any]:
    raise RuntimeError("there is no compiler\nand where it was looked for")


def _differs(self: Compiler, graph: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
    return lambda *given: [each.flip(1) for each in graph(*given)]


@pytest.mark.parametrize(
    ("compiles", "reason"),
    [(_fails, "RuntimeError: there is no compiler"), (_differs, "its results differ from the trained network's")],
)
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_network_that_cannot_be_compiled_or_answers_otherwise_then_is_computed_as_it_is(
    files: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch, device: str, compiles: Any, reason: str
) -> None:
    monkeypatch.setattr(Compiler, "__call__", compiles)
    wanted: EngineName = "pytorch-compiled"
    with pytest.raises(EngineError, match="the model cannot be computed by pytorch-compiled") as error:
        choose(Package(device), files, wanted)
    assert reason in str(error.value)
    if device == "cuda":
        chosen = choose(Package(device), files, lasting=True)
        assert chosen.engine.name == "pytorch"
        assert reason in chosen.refused["pytorch-compiled"]
        assert "\n" not in chosen.refused["pytorch-compiled"]


def test_texts_are_not_compiled(files: Path, compiler: Compiler) -> None:
    package = Package("cuda")
    package.kind = "texts"
    assert "texts have variable lengths" in choose(package, files, lasting=True).refused["pytorch-compiled"]
    assert compiler.graphs == 0
