"""The servable model: weights, class names and preprocessing in a folder, and that folder as an MLflow model."""

import hashlib
import importlib.metadata
import io
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thawline.backbones._base import Preprocessing
from thawline.data import images
from thawline.exceptions import RegistryError
from thawline.registry.calibration import Calibration
from thawline.registry.exports import ExportFormat, export
from thawline.registry.mlflow import import_pyfunc, load_pyfunc
from thawline.tracking import MlflowStore
from thawline.tracking.mlflow import first_line, quiet_mlflow

__all__ = ["log_packaged_model", "package"]

_SERVABLE = Path(__file__).with_name("servable.py")
_REQUIREMENTS = ("mlflow", "torch", "torchvision", "safetensors", "pillow", "numpy", "pandas")


def package(
    folder: Path,
    *,
    state_dict: Mapping[str, Tensor],
    architecture: Mapping[str, Any],
    classes: Sequence[str],
    preprocessing: Preprocessing,
    example_image: bytes,
    max_pixels: int = 64_000_000,
    calibration: Calibration | None = None,
    exports: Sequence[ExportFormat] = (),
    network: nn.Module | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write all that the served model consists of into ``folder`` and return it.

    The folder then holds ``model.safetensors``, ``model.json`` (the rest of the arguments), the decoding module under a
    name with its digest, and ``example.jpg``.

    Args:
        folder: created if it is missing; files of these names are overwritten.
        state_dict: of the whole network; copied to the CPU.
        architecture: see :attr:`thawline.backbones.Backbone.architecture`.
        classes: class names, in the order of the network's outputs.
        preprocessing: what the network was trained with.
        example_image: an image file, such as one of the training images; a small copy becomes the input example.
        max_pixels: larger images are refused.
        calibration: the logits are divided by its temperature; without one they stay as they are.
        exports: further formats, each compared with the network and written as ``model.pt2`` or ``model.onnx``.
        network: that ``state_dict`` is of, in evaluation mode; needed for ``exports`` alone.
        extra: JSON values that tell where the model comes from (study, trial, data digest); also shown in the registry.

    Raises:
        BadImage: if the example cannot be decoded.
        RegistryError: if the network cannot be exported, or the export answers otherwise.
    """
    import safetensors.torch
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    decoder = Path(images.__file__).read_bytes()
    module = f"thawline_images_{hashlib.sha256(decoder).hexdigest()[:12]}"
    (folder / f"{module}.py").write_bytes(decoder)
    # clone: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    pixels = images.resize_and_crop(
        images.decode(example_image, max_pixels=max_pixels),
        resize_size=preprocessing.resize_size,
        crop_size=preprocessing.image_size,
        interpolation=preprocessing.interpolation,
    )
    exported = {}
    if exports and network is not None:
        picture = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        exported = export(
            network,
            folder,
            exports,
            preprocessing=preprocessing,
            temperature=calibration.temperature if calibration else 1.0,
            pixels=torch.stack([picture, picture.flip(2)]),
        )
    settings = {
        "architecture": dict(architecture),
        "classes": list(classes),
        "preprocessing": asdict(preprocessing),
        "max_pixels": max_pixels,
        "temperature": calibration.temperature if calibration else 1.0,
        "calibration": calibration.as_dict() if calibration else None,
        "exports": exported,
        "images_module": module,
        "thawline": importlib.metadata.version("thawline"),
        "extra": dict(extra or {}),
    }
    (folder / "model.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
    example = io.BytesIO()
    Image.fromarray(pixels).save(example, format="JPEG", quality=90)
    (folder / "example.jpg").write_bytes(example.getvalue())
    return folder


def log_packaged_model(
    store: MlflowStore,
    run_id: str,
    folder: Path,
    name: str,
    *,
    trained: Sequence[tuple[bytes, Sequence[float]]] = (),
    tags: Mapping[str, str] | None = None,
) -> str:
    """Log a folder made by :func:`package` as an output of a run; returns its URI, ``models:/m-…``.

    Before anything is sent, the model is loaded from its files, as a server would, and classifies its own example.
    ``mlflow.pyfunc.log_model`` does the same through the global tracking URI; this does it through the store's client.

    Args:
        store: where to.
        run_id: the trial's run, which then lists the model among its outputs.
        folder: see :func:`package`.
        name: shown in the UI: letters, digits, ``.``, ``_``, ``-``.
        trained: a few encoded images, and for each the probabilities that the trained network gives it; the largest
            difference is kept in the package, and the gate looks at it.
        tags: of the logged model.

    Raises:
        RegistryError: if the packaged model does not answer, or the store fails.
    """
    import pandas as pd
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    settings = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    example = pd.DataFrame({"image": [(folder / "example.jpg").read_bytes()]})
    client = store.client
    try:
        experiment_id = client.get_run(run_id).info.experiment_id
        logged = client.create_logged_model(
            experiment_id, name=name, source_run_id=run_id, tags=dict(tags or {}), model_type="image-classifier"
        )
    except Exception as error:
        raise RegistryError(f"The model cannot be logged: {first_line(error)}") from error
    try:
        description = Model(
            artifact_path=logged.artifact_location,
            model_uuid=logged.model_id,
            run_id=run_id,
            metadata={
                "thawline": settings["thawline"],
                "classes": settings["classes"],
                "calibration": settings["calibration"],
                **settings["extra"],
            },
            model_id=logged.model_id,
        )
        with quiet_mlflow(), warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="thawline-") as temporary:
            # MLflow 3.17 compares column names with a range, which pandas 3 deprecates.
            warnings.filterwarnings("ignore", message="Operation with range is deprecated", category=DeprecationWarning)
            path = Path(temporary) / "model"
            import_pyfunc().save_model(
                str(path),
                python_model=str(_SERVABLE),
                artifacts={
                    "weights": str(folder / "model.safetensors"),
                    "model": str(folder / "model.json"),
                    **{kind: str(folder / f"model.{kind}") for kind in settings["exports"]},
                },
                code_paths=[str(folder / f"{settings['images_module']}.py")],
                signature=_signature(),
                input_example=example,
                pip_requirements=_requirements(),
                mlflow_model=description,
            )
            loaded = load_pyfunc(path)
            loaded.predict(example)
            if trained:
                saved = Model.load(str(path))
                saved.metadata = {**(saved.metadata or {}), "parity": _parity(loaded, settings["classes"], trained)}
                saved.save(str(path / "MLmodel"))
            client.log_model_artifacts(logged.model_id, str(path))
        client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    except Exception as error:
        with suppress(Exception):  # the first failure is the one to tell
            client.finalize_logged_model(logged.model_id, "FAILED")
        raise RegistryError(f"The model could not be packaged for serving: {first_line(error)}") from error
    return f"models:/{logged.model_id}"


def _parity(model: Any, classes: Sequence[str], trained: Sequence[tuple[bytes, Sequence[float]]]) -> float:
    """Largest difference of a probability."""
    import pandas as pd

    answers = model.predict(pd.DataFrame({"image": [image for image, _ in trained]}))["probabilities"]
    return max(
        float(abs(answer[name] - probability))
        for answer, (_, expected) in zip(answers, trained, strict=True)
        for name, probability in zip(classes, expected, strict=True)
    )


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Map

    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "class"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Map(DataType.double), "probabilities"),
    ]
    return ModelSignature(inputs=Schema([ColSpec(DataType.binary, "image")]), outputs=Schema(outputs))


def _requirements() -> list[str]:
    """The exact installed versions, without a build's local part (``+cu132``), which package indexes do not know."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in _REQUIREMENTS]
