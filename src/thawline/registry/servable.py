"""The packaged model: encoded images in, classes and probabilities out.

MLflow copies this file into the model ("models from code") and runs it to load the model, so nothing is pickled. It
needs MLflow, PyTorch, torchvision, pandas and safetensors, and the copy of ``thawline/data/images.py`` that lies beside
it in the package: a model serves without Thawline.
"""

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

_BATCH = 32
"""Images that the network sees at once: bounds the memory that a large request takes."""


class ImageClassifier(PythonModel):  # type: ignore[misc, unused-ignore]  # MLflow's base class may be untyped
    """Column ``image`` (an encoded image, or its base64 text) to ``class``, ``probability``, ``probabilities``.

    Thread safety: after loading, nothing is written.
    """

    def load_context(self, context: Any) -> None:
        """Build the network and load its weights; on a GPU if there is one."""
        import safetensors.torch
        import torch
        from torchvision.models import get_model

        self.settings = json.loads(Path(context.artifacts["model"]).read_text(encoding="utf-8"))
        self.classes: list[str] = self.settings["classes"]
        self.temperature: float = self.settings["temperature"]
        # The name holds a digest of the file: a champion and a challenger in one process each decode as they were made.
        self.images = importlib.import_module(self.settings["images_module"])
        architecture = self.settings["architecture"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # inception_v3, googlenet: how weights will be initialised
            network = get_model(architecture["builder"], weights=None, **architecture["kwargs"])
        weights = safetensors.torch.load_file(context.artifacts["weights"])
        # Into the network's own state_dict, which has the version numbers that mnasnet asks for; a plain dict has none.
        state = network.state_dict()
        if different := sorted(state.keys() ^ weights.keys()):
            raise MlflowException(f"The weights do not fit {architecture['builder']}: {', '.join(different[:5])}.")
        state.update(weights)
        network.load_state_dict(state)
        # Channels last is how the images come, and what convolutions are fastest in.
        self.network = network.eval().to(memory_format=torch.channels_last)
        self.to("cuda" if torch.cuda.is_available() else "cpu")

    def to(self, device: str) -> None:
        """Move to another device, such as ``cpu`` or ``cuda:1``."""
        import torch

        preprocessing = self.settings["preprocessing"]
        self.device = torch.device(device)
        self.network = self.network.to(self.device)
        self.mean = torch.tensor(preprocessing["mean"], device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(preprocessing["std"], device=self.device).view(1, 3, 1, 1)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classify each row.

        Raises:
            MlflowException: (400) naming the row of the first image that cannot be read.
        """
        values = list(model_input["image"])
        rows: list[dict[str, Any]] = []
        for start in range(0, len(values), _BATCH):
            pixels = [self._row(value, start + i) for i, value in enumerate(values[start : start + _BATCH])]
            for probabilities in self.probabilities(pixels):
                best = max(range(len(self.classes)), key=probabilities.__getitem__)
                rows.append(
                    {
                        "class": self.classes[best],
                        "probability": probabilities[best],
                        "probabilities": dict(zip(self.classes, probabilities, strict=True)),
                    }
                )
        return pd.DataFrame(rows, columns=["class", "probability", "probabilities"])

    def _row(self, value: Any, row: int) -> Any:
        try:
            return self.pixels(self.images.encoded_image(value))
        except ValueError as error:  # BadImage is one
            raise MlflowException.invalid_parameter_value(f"Row {row}: {error}") from None

    def pixels(self, data: bytes) -> Any:
        """One encoded image as uint8 ``[S, S, 3]``, resized and cropped as for training.

        Raises:
            ValueError: if it cannot be decoded, with the reason for people.
        """
        preprocessing = self.settings["preprocessing"]
        return self.images.resize_and_crop(
            self.images.decode(data, max_pixels=self.settings["max_pixels"]),
            resize_size=preprocessing["resize_size"],
            crop_size=preprocessing["image_size"],
            interpolation=preprocessing["interpolation"],
        )

    def probabilities(self, pixels: list[Any]) -> list[list[float]]:
        """uint8 images ``[S, S, 3]`` to ``[N][num_classes]``, in the order of the classes, by one forward pass."""
        import numpy as np
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(pixels)).to(self.device).permute(0, 3, 1, 2)
            logits = self.network((batch.float() / 255 - self.mean) / self.std)
            result: list[list[float]] = (logits.double() / self.temperature).softmax(1).tolist()
        return result


set_model(ImageClassifier())
