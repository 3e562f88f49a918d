"""A loaded packaged model: after a check of their digests, Thawline's own code reads its files as data."""

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from thawline import backbones
from thawline.backbones import networks
from thawline.data import DataKind, encoded_image, images, tokenizer
from thawline.engines import Choice, EngineName, Tried, choose
from thawline.exceptions import BackboneError, EngineError, RegistryError
from thawline.registry.contents import Description, check_files, describe, refusal
from thawline.registry.failures import failures_named
from thawline.registry.names import COLUMNS, ModelName
from thawline.registry.servable import BATCH, Answer, Servable, open_servable
from thawline.registry.unknown import REFERENCE_FILE
from thawline.tracking import first_line

__all__ = [
    "FORMAT",
    "QUANTISED_FORMAT",
    "PackagedModel",
    "Prediction",
    "compute_quantised",
    "import_pyfunc",
    "read_package",
    "signature_of",
]

_log = logging.getLogger("thawline.registry")

FORMAT = 1
"""Version of ``model.json``; incremented with every change that would alter the answers of an earlier Thawline."""
QUANTISED_FORMAT = 2
"""Version for networks in int8, which earlier versions of Thawline cannot read."""
_INPUTS = {"images": images, "texts": tokenizer}


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for one image or text."""

    class_name: str
    probability: float
    probabilities: dict[str, float]
    """By class."""
    prediction_set: tuple[str, ...] | None = None
    """Classes that the item may belong to, most likely first; ``None`` if the package has no prediction sets."""
    unknown: bool | None = None
    """Whether the item seems to belong to none of the classes; ``None`` if the package cannot tell."""


class PackagedModel:
    """A model of the registry in memory: encoded images or texts in, classes and probabilities out."""

    def __init__(
        self, servable: Servable, description: Description, example: bytes | str, name: ModelName, *, size: int
    ) -> None:
        self.servable = servable
        """The network with its preprocessing."""
        self.name = name
        self.bytes = size
        """Total size of its files."""
        self.kind: DataKind = description.kind
        self._example = example
        self.parity: float | None = description.metadata.get("parity")
        """Largest difference of a probability from the trained network, measured when it was packaged."""
        self.train_classes: Mapping[str, int] | None = description.metadata.get("train_classes")
        """Number of images or texts per class in the training split; ``None`` for older packages."""
        self.calibration: Mapping[str, Any] | None = description.metadata.get("calibration")
        self.is_quantised: bool = servable.settings.get("precision") == "int8"
        """Whether it is an int8 copy of another version."""
        self.engine = servable.engine
        """The engine that computes the network."""
        self.engines: tuple[Tried, ...] = ()
        """Engines that were tried; empty if PyTorch was requested."""
        self.tested: Mapping[str, Any] | None = None
        """Its ``accuracy``, and the data it was measured ``on``; ``None`` if it was not measured."""

    def compute_by(self, choice: Choice) -> None:
        """Compute the network with another engine; decoding, class names and answers remain the package's own."""
        self.servable.outputs = choice.engine.outputs  # type: ignore[method-assign]
        self.engine, self.engines = choice.engine.name, choice.tried

    def check(self) -> None:
        """Classify the model's own input example.

        Raises:
            RegistryError: if it fails.
        """
        with failures_named(f"{self.name} cannot classify its own input example"):
            answer = self.predict([self.example()])[0]
            if isinstance(answer, str):
                raise RegistryError(f"{self.name} cannot classify its own input example: {answer}")

    def example(self) -> bytes | str:
        """The encoded image or text in the package."""
        return self._example

    def items_in(self, body: bytes, content_type: str) -> list[bytes | str]:
        """The encoded images, or the texts, of a request in MLflow's scoring protocol (JSON or CSV, in any form).

        MLflow's own code parses the request, so that all clients of ``mlflow models serve`` work.

        Raises:
            ValueError: if it cannot be read, with a readable reason.
        """
        from mlflow.exceptions import MlflowException

        read, description = self._protocol
        reader = _Reader(description)
        try:
            answer: Any = read(body, content_type, reader, description.signature.inputs)
        except MlflowException as error:
            raise ValueError(first_line(error)) from None
        if answer.status != 200:
            raise ValueError(answer.response)
        table, column = reader.table, COLUMNS[self.kind]
        columns = list(table.keys()) if hasattr(table, "keys") else []  # a DataFrame's columns, or a plain mapping
        if columns != [column]:
            raise ValueError(f"the only column must be {column!r}, but got {', '.join(map(str, columns)) or 'none'}")
        items = []
        for row, value in enumerate(table[column]):
            try:
                items.append(_sent(value, self.kind))
            except ValueError as error:
                raise ValueError(f"row {row}: {error}") from None
        return items

    @cached_property
    def _protocol(self) -> tuple[Callable[..., Any], Any]:
        """MLflow's request parser and the model description that it needs; loaded with the first request."""
        import_pyfunc()
        from mlflow.models import Model
        from mlflow.pyfunc.scoring_server import invocations

        return invocations, Model(signature=signature_of(self.kind))

    def predict(self, items: Sequence[bytes | Path | str]) -> list[Prediction | str]:
        """Classify in batches; a string instead of a prediction is the reason why an item cannot be read.

        Args:
            items: encoded images (bytes) or image files (Path) for an image model, texts (str) for a text model.

        Raises:
            RegistryError: if an item is of the other kind.
        """
        for item in items:
            if isinstance(item, str) != (self.kind == "texts"):
                got = "a text" if isinstance(item, str) else "an image"
                raise RegistryError(f"{self.name} classifies {self.kind}, but got {got}.")
        results: list[Prediction | str] = []
        for start in range(0, len(items), BATCH):
            results += self._batch(items[start : start + BATCH])
        return results

    def _batch(self, items: Sequence[bytes | Path | str]) -> list[Prediction | str]:
        prepared: list[Any] = []
        reasons: list[str | None] = []
        for item in items:
            try:
                prepared.append(self.servable.prepare(item.read_bytes() if isinstance(item, Path) else item))
                reasons.append(None)
            except OSError as error:
                reasons.append(error.strerror or type(error).__name__)
            except ValueError as error:  # BadImage is one
                reasons.append(str(error))
        answers = iter(self.servable.answers(prepared) if prepared else [])
        return [self._prediction(next(answers)) if reason is None else reason for reason in reasons]

    def _prediction(self, answer: Answer) -> Prediction:
        row = self.servable.row(answer)
        named = row.get("prediction_set")
        return Prediction(
            row["class"],
            row["probability"],
            row["probabilities"],
            None if named is None else tuple(named),
            row.get("unknown"),
        )


class _Reader:
    """Stands in for a model in MLflow's server, to capture the parsed request."""

    def __init__(self, metadata: Any) -> None:
        self.metadata = metadata
        self.table: Any = None

    def predict(self, data: Any, params: Any = None) -> list[Any]:
        self.table = data
        return []


def read_package(folder: Path, name: ModelName, *, recorded: str | None, device: str = "auto") -> PackagedModel:
    """Load a package from its folder, after comparing its files with their digests; no code in it is run.

    Args:
        folder: folder of the package, whose files must not change meanwhile.
        name: for messages and answers.
        recorded: the digest in the registry, see :func:`thawline.registry.contents.check_files`.
        device: to load it on; ``auto`` for a GPU if there is one.

    Raises:
        RegistryError: if Thawline did not package it, a file has changed since, or the network cannot be built.
    """
    if not check_files(folder, str(name), recorded):
        _log.warning(
            "%s was registered by a version of Thawline that recorded no digests: its files are read as data, but "
            "changes to them cannot be detected. Versions that `thawline search` registers now have digests.",
            name,
        )
    artifacts = folder / "artifacts"
    try:
        description = describe((folder / "MLmodel").read_bytes(), str(name))
        settings = json.loads((artifacts / "model.json").read_bytes())
        if settings.get("format", 1) > QUANTISED_FORMAT:
            raise RegistryError(
                f"{name} was packaged by Thawline {settings['thawline']} in a newer format ({settings['format']}; "
                f"supported: {QUANTISED_FORMAT}). Upgrade Thawline: pip install --upgrade thawline"
            )
        if settings["kind"] != description.kind:
            raise refusal(str(name), f"its MLmodel takes {description.kind}, its model.json {settings['kind']}")
        if settings.get("precision") == "int8":
            _check_onnx_runtime(name)
        else:
            backbones.check_architecture(settings["architecture"])
        files = {
            "weights": "model.safetensors",
            "tokenizer": "tokenizer.json",
            "onnx": "model.onnx",
            "reference": REFERENCE_FILE,
        }
        servable = open_servable(
            settings,
            {key: str(artifacts / file) for key, file in files.items()},
            networks=networks,
            inputs=_INPUTS[description.kind],
            threads=torch.get_num_threads(),  # the setting of this process
            device=None if device == "auto" else device,
        )
        example = _sent(
            json.loads((folder / "input_example.json").read_bytes())["data"][0][0],
            description.kind,
        )
    except BackboneError as error:
        raise RegistryError(f"{name} cannot be loaded: {first_line(error)}") from error
    except FileNotFoundError as error:
        missing = Path(error.filename).name if error.filename else "a file"
        raise refusal(str(name), f"{missing} is missing") from error
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return PackagedModel(servable, description, example, name, size=size)


def _check_onnx_runtime(name: ModelName) -> None:
    if importlib.util.find_spec("onnxruntime") is None:
        raise EngineError(
            f"{name} is in int8 and needs ONNX Runtime, which is not installed: pip install 'thawline[onnx]'"
        )


def compute_quantised(packaged: PackagedModel, files: Path, device: str, engine: EngineName, twin: str | None) -> None:
    """Compute a version in int8 in the same way as in its comparison.

    Raises:
        EngineError: if another engine or device is requested, or if the results differ on this machine.
    """
    instead = f" {packaged.name.name}/{twin}, which it was quantised from, is in single precision." if twin else ""
    if device not in ("auto", "cpu"):
        raise EngineError(
            f"{packaged.name} is in int8, which runs on the CPU, not on {device}: leave out --device.{instead}"
        )
    try:
        packaged.compute_by(choose(packaged.servable, files, engine, model=str(packaged.name)))
    except EngineError as error:
        raise EngineError(f"{error}{instead}") from None


def import_pyfunc() -> Any:
    """Import MLflow's module ``pyfunc`` without its warnings about type hints of MLflow's own classes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType", category=UserWarning)
        import mlflow.pyfunc
    return mlflow.pyfunc


def signature_of(kind: DataKind, *, sets: bool = False, unknown: bool = False) -> Any:
    """MLflow's signature of a package, with or without prediction sets and the flag ``unknown``."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array, Map

    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "class"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Map(DataType.double), "probabilities"),
    ]
    if sets:
        outputs.append(ColSpec(Array(DataType.string), "prediction_set"))
    if unknown:
        outputs.append(ColSpec(DataType.boolean, "unknown"))
    given = ColSpec(DataType.string if kind == "texts" else DataType.binary, COLUMNS[kind])
    return ModelSignature(inputs=Schema([given]), outputs=Schema(outputs))


def _sent(value: object, kind: DataKind) -> bytes | str:
    """An encoded image, or a text, from a value of a table."""
    if kind == "images":
        return encoded_image(value)
    if not isinstance(value, str):
        raise ValueError(f"a text must be a string, but got {type(value).__name__}")
    return value
