"""Which engine computes a version: all that there are are compared with the trained network, and measured."""

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
"""Images of the sample that are computed at once."""
_ROUNDS = 5
_WORTHWHILE = 0.9
"""An engine in bf16, or the compiled network, computes if it takes at most this share of the time of the fastest one of
the others."""

_OTHERS: dict[str, Callable[[Path, int], Engine]] = {
    "onnxruntime": lambda files, threads: OnnxRuntime(files, threads=threads),
    "openvino": lambda files, threads: OpenVino(files, threads=threads),
    "openvino-bf16": lambda files, threads: OpenVino(files, threads=threads, precision="bf16"),
}
"""Engines besides PyTorch, all on the CPU: from the package's files and a number of threads."""


@dataclass(frozen=True)
class Tried:
    """How an engine did with a version."""

    name: str
    refused: str | None = None
    """Why it is not used, whatever its speed."""
    difference: float | None = None
    """Largest difference of a probability from the trained network's on the package's sample."""
    seconds: float | None = None
    """Median time of one image on its own, decoding not included; ``None`` where there was nothing to choose."""


@dataclass(frozen=True)
class Choice:
    """The engine that computes a version, and all that were tried."""

    engine: Engine
    tried: tuple[Tried, ...] = ()

    @property
    def refused(self) -> dict[str, str]:
        """Why engines are not used, by their names."""
        return {each.name: each.refused for each in self.tried if each.refused is not None}


def choose(
    servable: Any, files: Path, wanted: EngineName = "auto", *, model: str = "the model", lasting: bool = False
) -> Choice:
    """The fastest engine that answers as the trained network does, or the one that is wanted if it does so.

    PyTorch is always there: where no other engine passes, it computes. A network on a GPU stays with PyTorch, which
    compiles it where that pays; on a CPU it never does by itself. One in int8 was judged as ONNX Runtime computes it
    and stays with that, if it answers here as it did there.

    Args:
        servable: a loaded package, see :mod:`thawline.registry.servable`.
        files: folder of the package's files; not needed afterwards.
        wanted: an engine's name, or ``auto``.
        model: its name, for messages.
        lasting: whether it will compute for long, so that a minute of compiling may pay.

    Raises:
        EngineError: if one other than PyTorch is wanted and cannot be used, or answers otherwise; and if a network in
            int8 answers otherwise here than where it was quantised, or another engine is wanted.
    """
    if servable.engine != PyTorch.name:
        return _quantised(servable, files, wanted, model)
    network = PyTorch(servable)
    if wanted == network.name:
        return Choice(network)
    on_cpu = servable.device.type == "cpu"
    if wanted in _OTHERS and not on_cpu:
        raise EngineError(f"{wanted} computes on the CPU, but {model} is on {servable.device}: leave out --device.")
    automatic = list(_OTHERS) if on_cpu else [Compiled.name] * lasting
    passed, refused = _compared(servable, files, automatic if wanted == "auto" else [wanted])
    if wanted == "auto":
        return _fastest(network, files, passed, refused)
    if refused:
        raise EngineError(
            f"{model} cannot be computed by {wanted}: {refused[0].refused}. Without --engine, the fastest engine that "
            "can computes it."
        )
    ((engine, difference),) = passed
    return Choice(engine, (Tried(engine.name, difference=difference),))


def _quantised(servable: Any, files: Path, wanted: EngineName, model: str) -> Choice:
    engine = Quantised(servable)
    alone = "the network is in int8, which ONNX Runtime alone computes as it was judged"
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
            f"{model} is in int8 and answers otherwise on this processor than where it was judged: a probability "
            f"differs by {difference:.1e}, and at most {engine.tolerance:.0e} is allowed."
        )
    others = (Tried(name, refused=alone) for name in (PyTorch.name, *_OTHERS) if name != engine.name)
    return Choice(engine, (Tried(engine.name, difference=difference), *others))


def _compared(servable: Any, files: Path, names: Sequence[str]) -> tuple[list[tuple[Engine, float]], list[Tried]]:
    """Engines that answer as the trained network does, with the largest difference; and the others, with the reason."""
    passed: list[tuple[Engine, float]] = []
    refused: list[Tried] = []
    for name in names:
        try:
            engine, sample = _opened(name, servable, files), _sample(files)
            passed.append((engine, _checked(engine, sample)))
        except Unavailable as error:
            refused.append(Tried(name, refused=str(error)))
        except Exception as error:  # an engine raises whatever its libraries do; there is another one
            refused.append(Tried(name, refused=f"{type(error).__name__}: {_said(error)}"))
    return passed, refused


def _opened(name: str, servable: Any, files: Path) -> Engine:
    if name == Compiled.name:
        if servable.kind != "images":
            raise Unavailable("only networks of images are compiled: texts have any length")
        return Compiled(servable, _sample(files).inputs[0])
    return _OTHERS[name](files, _threads())


def _said(error: Exception) -> str:
    """The first line of an error that is not about OpenVINO's own source files, or which backend of PyTorch failed."""
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
    # Neither lower precision nor compiling is a gain in itself, and times of equally fast engines differ by chance.
    weighed = [
        taken / _WORTHWHILE if engine.tolerance > ENGINE_TOLERANCE or engine.name == Compiled.name else taken
        for (engine, _), taken in zip(compared, seconds, strict=True)
    ]
    return Choice(compared[weighed.index(min(weighed))][0], (*tried, *refused))


def _sample(files: Path) -> Sample:
    sample = read_sample(files / SAMPLE_FILE)
    if sample is None:
        raise Unavailable("the package holds no validation images to compare engines on; its version is older")
    return sample


def _checked(engine: Engine, sample: Sample) -> float:
    """Largest difference of a probability from the trained network's.

    Raises:
        Unavailable: if it is larger than the engine's tolerance, or a class is another one and no tie.
    """
    answers, expected = _answers(engine, sample), sample.probabilities
    difference = _difference(answers, sample)
    if not difference <= engine.tolerance:  # what is no number is none either
        raise Unavailable(
            f"it answers otherwise than the trained network: a probability differs by {difference:.1e}, and at most "
            f"{engine.tolerance:.0e} is allowed"
        )
    named = np.take_along_axis(expected, answers.argmax(1, keepdims=True), axis=1)[:, 0]
    if others := int((expected.max(1) - named > 2 * ENGINE_TOLERANCE).sum()):
        raise Unavailable(
            f"it names another class than the trained network for {others} of the package's {len(expected)} "
            "validation images, and they are no ties"
        )
    _check_features(engine, sample)
    return difference


def _check_features(engine: Engine, sample: Sample) -> None:
    """Compare what the head is given, where the package asks for it: by it, images are known or unknown.

    Raises:
        Unavailable: if the engine does not give it, or a cosine differs by more than the engine's tolerance.
    """
    if sample.features is None:
        return
    _, features = engine.outputs(list(sample.inputs[:_BATCH]))
    expected = sample.features[:_BATCH]
    if features is None or features.shape != expected.shape:
        raise Unavailable("it does not give the features by which the package tells unknown images")
    cosines = (features * expected).sum(1) / np.linalg.norm(features, axis=1) / np.linalg.norm(expected, axis=1)
    difference = float(np.max(1 - cosines))
    if not difference <= engine.tolerance:
        raise Unavailable(
            f"its features point elsewhere than the trained network's: a cosine differs by {difference:.1e}, and at "
            f"most {engine.tolerance:.0e} is allowed"
        )


def _difference(answers: npt.NDArray[np.float64], sample: Sample) -> float:
    return float(np.abs(answers - sample.probabilities).max())


def _answers(engine: Engine, sample: Sample) -> npt.NDArray[np.float64]:
    """What an engine says of the sample, ``[N, num_classes]``.

    Raises:
        Unavailable: if it knows another number of classes.
    """
    batches = [sample.inputs[start : start + _BATCH] for start in range(0, len(sample.inputs), _BATCH)]
    answers = np.array([row for batch in batches for row in engine.probabilities(list(batch))])
    if answers.shape != sample.probabilities.shape:
        known = sample.probabilities.shape[-1]
        raise Unavailable(f"it knows {answers.shape[-1]} classes, and the trained network {known}")
    return answers


def _seconds(engines: Sequence[Engine], sample: Sample) -> list[float]:
    """Median seconds of each for one image, the engines taking turns; all have computed the sample before."""
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

    return torch.get_num_threads()  # as many as this process was told to use
