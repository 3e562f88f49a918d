"""Choice of the engine for a version: all available engines are compared with the trained network, and timed."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thawline.engines._base import ENGINE_TOLERANCE, Engine, EngineName, Unavailable
from thawline.engines.compiled import Compiled
from thawline.engines.onnx_runtime import OnnxRuntime, Quantised
from thawline.engines.openvino import OpenVino
from thawline.engines.pytorch import PyTorch
from thawline.engines.sample import SAMPLE_FILE, Sample, read_sample
from thawline.exceptions import EngineError

__all__ = ["Choice", "Tried", "choose"]

_BATCH = 8
"""Batch size for the sample."""
_ROUNDS = 5
_WORTHWHILE = 0.9
"""An engine in bf16, or the compiled network, is chosen if its time is at most this share of the fastest other's."""

_OTHERS: dict[str, Callable[[Path, int], Engine]] = {
    "onnxruntime": lambda files, threads: OnnxRuntime(files, threads=threads),
    "openvino": lambda files, threads: OpenVino(files, threads=threads),
    "openvino-bf16": lambda files, threads: OpenVino(files, threads=threads, precision="bf16"),
}
"""Engines besides PyTorch, all on the CPU: from the package's files and a number of threads."""


@dataclass(frozen=True)
class Tried:
    """The result of an engine for a version."""

    name: str
    refused: str | None = None
    """The reason why it cannot be used, whatever its speed."""
    difference: float | None = None
    """Largest difference of a probability from the trained network's on the package's sample."""
    seconds: float | None = None
    """Median time of a single image, without decoding; ``None`` if there was no choice."""


@dataclass(frozen=True)
class Choice:
    """The engine that computes a version, and all that were tried."""

    engine: Engine
    tried: tuple[Tried, ...] = ()

    @property
    def refused(self) -> dict[str, str]:
        """Reasons why engines cannot be used, by name."""
        return {each.name: each.refused for each in self.tried if each.refused is not None}


def choose(
    servable: Any, files: Path, wanted: EngineName = "auto", *, model: str = "the model", lasting: bool = False
) -> Choice:
    """Choose the fastest engine that agrees with the trained network, or check the requested one.

    PyTorch is the fallback if no other engine passes. A network on a GPU stays with PyTorch, which compiles it if that
    pays off; on a CPU it is compiled only on request. A network in int8 was judged with ONNX Runtime and stays with it,
    if the results on this machine agree.

    Args:
        servable: a loaded package, see :mod:`thawline.registry.servable`.
        files: folder of the package's files; not needed afterwards.
        wanted: an engine's name, or ``auto``.
        model: its name, for messages.
        lasting: whether it will be used for long, so that a minute of compiling may pay off.

    Raises:
        EngineError: if an engine other than PyTorch is requested and cannot be used or disagrees; and for a network in
            int8, if its results differ on this machine, or another engine is requested.
    """
    if servable.engine != PyTorch.name:
        return _quantised(servable, files, wanted, model)
    network = PyTorch(servable)
    if wanted == network.name:
        return Choice(network)
    on_cpu = servable.device.type == "cpu"
    if wanted in _OTHERS and not on_cpu:
        raise EngineError(f"{wanted} runs on the CPU, but {model} is on {servable.device}: leave out --device.")
    automatic = list(_OTHERS) if on_cpu else [Compiled.name] * lasting
    passed, refused = _compared(servable, files, automatic if wanted == "auto" else [wanted])
    if wanted == "auto":
        return _fastest(network, files, passed, refused)
    if refused:
        raise EngineError(
            f"{model} cannot be computed by {wanted}: {refused[0].refused}. Without --engine, the fastest suitable "
            "engine computes it."
        )
    ((engine, difference),) = passed
    return Choice(engine, (Tried(engine.name, difference=difference),))


def _quantised(servable: Any, files: Path, wanted: EngineName, model: str) -> Choice:
    engine = Quantised(servable)
    alone = "the network is in int8, which only ONNX Runtime computes in the same way as in its comparison"
    if wanted not in ("auto", engine.name):
        raise EngineError(f"{model} cannot be computed by {wanted}: {alone}. Leave out --engine.")
    try:
        sample = _sample(files)
        difference = _difference(_answers(engine, sample), sample)
        _check_features(engine, sample)
    except (Unavailable, ValueError) as error:
        raise EngineError(f"{model} cannot be served: {error}.") from None
    if not difference <= engine.tolerance:
        raise EngineError(
            f"{model} is in int8 and gives different results on this processor than in its comparison: a probability "
            f"differs by {difference:.1e}, but at most {engine.tolerance:.0e} is allowed."
        )
    others = (Tried(name, refused=alone) for name in (PyTorch.name, *_OTHERS) if name != engine.name)
    return Choice(engine, (Tried(engine.name, difference=difference), *others))


def _compared(servable: Any, files: Path, names: Sequence[str]) -> tuple[list[tuple[Engine, float]], list[Tried]]:
    """Engines that agree with the trained network, with the largest difference; and the others, with the reason."""
    passed: list[tuple[Engine, float]] = []
    refused: list[Tried] = []
    for name in names:
        try:
            engine, sample = _opened(name, servable, files), _sample(files)
            passed.append((engine, _checked(engine, sample)))
        except Unavailable as error:
            refused.append(Tried(name, refused=str(error)))
        except Exception as error:  # an engine's library may raise anything; there are other engines
            refused.append(Tried(name, refused=f"{type(error).__name__}: {_said(error)}"))
    return passed, refused


def _opened(name: str, servable: Any, files: Path) -> Engine:
    if name == Compiled.name:
        if servable.kind != "images":
            raise Unavailable("only image networks are compiled: texts have variable lengths")
        return Compiled(servable, _sample(files).inputs[0])
    return _OTHERS[name](files, _threads())


def _said(error: Exception) -> str:
    """The first line of an error that does not refer to OpenVINO's source files or PyTorch's backend."""
    lines = [line.strip() for line in str(error).splitlines()]
    beginnings = ("Exception from ", "Check ", "backend=")
    return next((line for line in lines if line and not line.startswith(beginnings)), "")


def _fastest(network: Engine, files: Path, passed: Sequence[tuple[Engine, float]], refused: Sequence[Tried]) -> Choice:
    if not passed:
        return Choice(network, (Tried(network.name), *refused))
    sample = _sample(files)
    compared = [(network, _difference(_answers(network, sample), sample)), *passed]
    seconds = _seconds([engine for engine, _ in compared], sample)
    tried = [
        Tried(engine.name, difference=difference, seconds=taken)
        for (engine, difference), taken in zip(compared, seconds, strict=True)
    ]
    # Lower precision and compiling must pay off clearly: times of equally fast engines differ by chance.
    weighed = [
        taken / _WORTHWHILE if engine.tolerance > ENGINE_TOLERANCE or engine.name == Compiled.name else taken
        for (engine, _), taken in zip(compared, seconds, strict=True)
    ]
    return Choice(compared[weighed.index(min(weighed))][0], (*tried, *refused))


def _sample(files: Path) -> Sample:
    sample = read_sample(files / SAMPLE_FILE)
    if sample is None:
        raise Unavailable("the package is from an older version and has no validation images to compare engines on")
    return sample


def _checked(engine: Engine, sample: Sample) -> float:
    """Largest difference of a probability from the trained network's.

    Raises:
        Unavailable: if it exceeds the engine's tolerance, or a predicted class differs without a tie.
    """
    answers, expected = _answers(engine, sample), sample.probabilities
    difference = _difference(answers, sample)
    if not difference <= engine.tolerance:  # also true for NaN
        raise Unavailable(
            f"its results differ from the trained network's: a probability differs by {difference:.1e}, but at most "
            f"{engine.tolerance:.0e} is allowed"
        )
    named = np.take_along_axis(expected, answers.argmax(1, keepdims=True), axis=1)[:, 0]
    if others := int((expected.max(1) - named > 2 * ENGINE_TOLERANCE).sum()):
        raise Unavailable(
            f"it predicts another class than the trained network for {others} of the package's {len(expected)} "
            "validation images, which are not ties"
        )
    _check_features(engine, sample)
    return difference


def _check_features(engine: Engine, sample: Sample) -> None:
    """Compare the head's inputs if the package needs them for the flag ``unknown``.

    Raises:
        Unavailable: if the engine does not return them, or a cosine differs by more than the engine's tolerance.
    """
    if sample.features is None:
        return
    _, features = engine.outputs(list(sample.inputs[:_BATCH]))
    expected = sample.features[:_BATCH]
    if features is None or features.shape != expected.shape:
        raise Unavailable("it does not return the features that the package needs to recognise unknown images")
    cosines = (features * expected).sum(1) / np.linalg.norm(features, axis=1) / np.linalg.norm(expected, axis=1)
    difference = float(np.max(1 - cosines))
    if not difference <= engine.tolerance:
        raise Unavailable(
            f"its features differ from the trained network's: a cosine differs by {difference:.1e}, but at most "
            f"{engine.tolerance:.0e} is allowed"
        )


def _difference(answers: npt.NDArray[np.float64], sample: Sample) -> float:
    return float(np.abs(answers - sample.probabilities).max())


def _answers(engine: Engine, sample: Sample) -> npt.NDArray[np.float64]:
    """An engine's probabilities for the sample, ``[N, num_classes]``.

    Raises:
        Unavailable: if it has a different number of classes.
    """
    batches = [sample.inputs[start : start + _BATCH] for start in range(0, len(sample.inputs), _BATCH)]
    answers = np.array([row for batch in batches for row in engine.probabilities(list(batch))])
    if answers.shape != sample.probabilities.shape:
        known = sample.probabilities.shape[-1]
        raise Unavailable(f"it has {answers.shape[-1]} classes, but the trained network {known}")
    return answers


def _seconds(engines: Sequence[Engine], sample: Sample) -> list[float]:
    """Median seconds of each engine for one image, measured in alternation; all are warmed up by the sample."""
    taken: list[list[float]] = [[] for _ in engines]
    for number in range(_ROUNDS):
        image = [sample.inputs[number % len(sample.inputs)]]
        for engine, seconds in zip(engines, taken, strict=True):
            began = time.perf_counter()
            engine.probabilities(image)
            seconds.append(time.perf_counter() - began)
    return [statistics.median(seconds) for seconds in taken]


def _threads() -> int:
    import torch

    return torch.get_num_threads()  # the setting of this process
