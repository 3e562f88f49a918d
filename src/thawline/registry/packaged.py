"""A packaged model, loaded: by MLflow's ``pyfunc``, which knows a table in and a table out."""

import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thawline.data import DataKind, encoded_image
from thawline.engines import Choice, Tried
from thawline.exceptions import RegistryError
from thawline.registry.names import COLUMNS, ModelName
from thawline.tracking import first_line

__all__ = ["PackagedModel", "Prediction", "failures_named", "import_pyfunc", "kind_of", "load_pyfunc"]

_BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """What a model says about one image or text."""

    class_name: str
    probability: float
    probabilities: dict[str, float]
    """Of every class."""


class PackagedModel:
    """A model loaded from the registry. It knows only what MLflow's ``pyfunc`` promises: a table in, a table out."""

    def __init__(self, model: Any, name: ModelName, *, size: int | None = None) -> None:
        self._model = model
        self.name = name
        self.bytes = size
        """Of all its files."""
        self.kind: DataKind = kind_of(model.metadata)
        described: Mapping[str, Any] = model.metadata.metadata or {}
        self.parity: float | None = described.get("parity")
        """Largest difference of a probability from the trained network, measured when it was packaged."""
        self.train_classes: Mapping[str, int] | None = described.get("train_classes")
        """How many images or texts each class had in the training split; older packages do not know."""
        self.calibration: Mapping[str, Any] | None = described.get("calibration")
        self.engine = "pytorch"
        """What computes the network."""
        self.engines: tuple[Tried, ...] = ()
        """Those that were tried; none where PyTorch alone was wanted."""

    @property
    def unwrapped(self) -> Any:
        """The object of ``servable.py`` that MLflow wraps."""
        return self._model.unwrap_python_model()

    def compute_by(self, choice: Choice) -> None:
        """Have the network computed by another engine; decoding, class names and answers stay the package's own."""
        self.unwrapped.probabilities = choice.engine.probabilities
        self.engine, self.engines = choice.engine.name, choice.tried

    def check(self) -> None:
        """Classify the model's own input example.

        Raises:
            RegistryError: if it has none, or does not answer.
        """
        with failures_named(f"{self.name} does not answer its own input example"):
            answer = self.predict([self.example()])[0]
            if isinstance(answer, str):
                raise RegistryError(f"{self.name} does not answer its own input example: {answer}")

    def example(self) -> bytes | str:
        """The encoded image or the text that was packaged with it."""
        return self._sent(self._model.input_example[COLUMNS[self.kind]].iloc[0])

    def items_in(self, body: bytes, content_type: str) -> list[bytes | str]:
        """The encoded images, or the texts, of a request in MLflow's scoring protocol (JSON or CSV, in any form).

        MLflow's own server reads the request, so that every client of ``mlflow models serve`` is understood.

        Raises:
            ValueError: if it cannot be read, with the reason for people.
        """
        from mlflow.exceptions import MlflowException
        from mlflow.pyfunc.scoring_server import invocations

        reader = _Reader(self._model.metadata)
        try:
            answer: Any = invocations(  # type: ignore[no-untyped-call, unused-ignore]
                body, content_type, reader, self._model.metadata.get_input_schema()
            )
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
                items.append(self._sent(value))
            except ValueError as error:
                raise ValueError(f"row {row}: {error}") from None
        return items

    def _sent(self, value: object) -> bytes | str:
        """An encoded image, or a text, from a value of a table."""
        if self.kind == "images":
            return encoded_image(value)
        if not isinstance(value, str):
            raise ValueError(f"a text must be a string, but got {type(value).__name__}")
        return value

    def predict(self, items: Sequence[bytes | Path | str]) -> list[Prediction | str]:
        """Classify in batches; a string in place of a prediction is the reason why an item cannot be read.

        Args:
            items: encoded images (bytes) or image files (Path) for a model of images, texts (str) for one of texts.

        Raises:
            RegistryError: if an item is of the other kind.
        """
        for item in items:
            if isinstance(item, str) != (self.kind == "texts"):
                got = "a text" if isinstance(item, str) else "an image"
                raise RegistryError(f"{self.name} classifies {self.kind}, but got {got}.")
        results: list[Prediction | str] = []
        for start in range(0, len(items), _BATCH):
            results += self._batch([_read(item) for item in items[start : start + _BATCH]])
        return results

    def _batch(self, items: list[bytes | str | OSError]) -> list[Prediction | str]:
        import pandas as pd
        from mlflow.exceptions import MlflowException

        readable = [item for item in items if not isinstance(item, OSError)]
        try:
            table = self._model.predict(pd.DataFrame({COLUMNS[self.kind]: readable})) if readable else pd.DataFrame()
        except MlflowException as error:
            # One bad item refuses its whole batch: ask again one by one to learn which.
            if len(items) > 1:
                return [result for item in items for result in self._batch([item])]
            return [re.sub(r"^Row \d+: ", "", first_line(error))]
        rows = iter(table.to_dict(orient="records"))
        return [
            item.strerror or type(item).__name__ if isinstance(item, OSError) else _prediction(next(rows))
            for item in items
        ]


class _Reader:
    """Stands in for a model in MLflow's server, to have what it read."""

    def __init__(self, metadata: Any) -> None:
        self.metadata = metadata
        self.table: Any = None

    def predict(self, data: Any, params: Any = None) -> list[Any]:
        self.table = data
        return []


def load_pyfunc(folder: str | Path) -> Any:
    """An MLflow model from its folder, as MLflow's server loads it, but without leaving bytecode in the folder."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        return import_pyfunc().load_model(str(folder))
    finally:
        sys.dont_write_bytecode = before


def import_pyfunc() -> Any:
    """MLflow's module ``pyfunc``; importing it warns about the type hints of classes of MLflow's own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType", category=UserWarning)
        import mlflow.pyfunc
    return mlflow.pyfunc


@contextmanager
def failures_named(what: str = "The model registry failed") -> Iterator[None]:
    """Any error of the registry as a :class:`RegistryError` of one line."""
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:
        raise RegistryError(f"{what}: {type(error).__name__}: {first_line(error)}") from error


def kind_of(description: Any) -> DataKind:
    """Of an MLflow model, by the column that it takes; a model that was packaged elsewhere may say nothing."""
    schema = description.get_input_schema()
    names = schema.input_names() if schema is not None else []
    return "texts" if names == [COLUMNS["texts"]] else "images"


def _read(item: bytes | Path | str) -> bytes | str | OSError:
    if not isinstance(item, Path):
        return item
    try:
        return item.read_bytes()
    except OSError as error:
        return error


def _prediction(row: Mapping[Any, Any]) -> Prediction:
    return Prediction(str(row["class"]), float(row["probability"]), dict(row["probabilities"]))
