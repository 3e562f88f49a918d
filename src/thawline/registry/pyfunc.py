"""The packaged model for MLflow's own tools: a table in, a table out.

MLflow copies this file into the model ("models from code") and runs it to load the model, so nothing is pickled. It
needs MLflow, PyTorch, pandas, safetensors and the library of the network, and three files of Thawline that lie beside
it in the package: ``thawline/registry/servable.py``, ``thawline/backbones/networks.py``, and for images
``thawline/data/images.py``, for texts ``thawline/data/tokenizer.py``. A network in int8 needs ONNX Runtime instead of
PyTorch, safetensors, ``networks.py`` and a library. So MLflow's tools need no Thawline; and Thawline itself reads a
package without running any of these files in it.
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
    """One column to ``class``, ``probability``, ``probabilities``, and where the package has what they need
    ``prediction_set`` and ``unknown``.

    The column is ``image`` (an encoded image, or its base64 text) for a model of images, ``text`` for one of texts.
    """

    def load_context(self, context: Any) -> None:
        """Build the network and load its weights; on a GPU if there is one, and it is not in int8."""
        settings = json.loads(Path(context.artifacts["model"]).read_text(encoding="utf-8"))
        # A module's name holds a digest of its file: a champion and a challenger in one process run as they were made.
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
            MlflowException: (400) naming the row, counted from 0, of the first image or text that cannot be read.
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
