"""The packaged model for MLflow's own tools: a table in, a table out.

MLflow copies this file into the model ("models from code") and runs it to load the model, so nothing is pickled. It
needs MLflow, PyTorch, pandas, safetensors and the library of the network, and three files of Thawline that are copied
into the package: ``thawline/registry/servable.py``, ``thawline/backbones/networks.py``, and
``thawline/data/images.py`` for images or ``thawline/data/tokenizer.py`` for texts. A network in int8 needs ONNX Runtime
instead of PyTorch, safetensors, ``networks.py`` and a library. MLflow's tools therefore do not need Thawline, and
Thawline reads a package without running any of these files in it.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Classifier(PythonModel):  # type: ignore[misc, unused-ignore]  # MLflow's base class may be untyped
    """From one column to ``class``, ``probability``, ``probabilities`` and, if the package supports them,
    ``prediction_set`` and ``unknown``.

    The column is ``image`` (an encoded image, or its base64 text) for an image model, ``text`` for a text model.
    """

    def load_context(self, context: Any) -> None:
        """Build the network and load its weights; on a GPU if there is one, and it is not in int8."""
        settings = json.loads(Path(context.artifacts["model"]).read_text(encoding="utf-8"))
        # Module names contain a digest, so that a champion and a challenger in one process run their own code.
        self._module = importlib.import_module(settings["servable_module"])
        networks = settings.get("networks_module")
        self.servable = self._module.open_servable(
            settings,
            context.artifacts,
            networks=importlib.import_module(networks) if networks else None,
            inputs=importlib.import_module(settings["inputs_module"]),
        )

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify each row; the answer has the index of the table.

        Raises:
            MlflowException: (400) naming the row (from 0) of the first unreadable image or text.
        """
        values = list(model_input[self.servable.inputs.column])
        rows: list[dict[str, Any]] = []
        for start in range(0, len(values), self._module.BATCH):
            batch = values[start : start + self._module.BATCH]
            prepared = [self._prepared(value, start + i) for i, value in enumerate(batch)]
            rows += map(self.servable.row, self.servable.answers(prepared))
        columns = ["class", "probability", "probabilities"]
        if self.servable.threshold is not None:
            columns.append("prediction_set")
        if self.servable.farthest is not None:
            columns.append("unknown")
        return pd.DataFrame(rows, columns=columns, index=model_input.index)

    def _prepared(self, value: Any, row: int) -> Any:
        try:
            return self.servable.prepare(self.servable.inputs.sent(value))
        except ValueError as error:  # BadImage is one
            raise MlflowException.invalid_parameter_value(f"Row {row}: {error}") from None


set_model(Classifier())
