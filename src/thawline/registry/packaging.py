"""The servable model: weights, class names and preprocessing in a folder, and that folder as an MLflow model."""

import hashlib
import importlib.metadata
import io
import json
import stat
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from thawline.backbones import Preprocessing, TextPreprocessing, networks
from thawline.data import DataKind, images, tokenizer
from thawline.engines import SAMPLE_FILE, write_sample
from thawline.exceptions import RegistryError
from thawline.registry import servable
from thawline.registry.calibration import Calibration
from thawline.registry.contents import DIGEST_TAG, record_digests
from thawline.registry.exports import ExportFormat, described, export
from thawline.registry.names import COLUMNS, ModelName
from thawline.registry.packaged import FORMAT, PackagedModel, import_pyfunc, read_package, signature_of
from thawline.registry.prediction_sets import PredictionSets
from thawline.registry.unknown import REFERENCE_FILE, Reference, write_reference
from thawline.tracking import MlflowStore, first_line, quiet_mlflow

__all__ = ["copy_module", "log_packaged_model", "package"]

_PYFUNC = Path(__file__).with_name("pyfunc.py")
_REQUIREMENTS = ("mlflow", "torch", "safetensors", "numpy", "pandas")
_INT8_REQUIREMENTS = ("mlflow", "onnxruntime", "numpy", "pandas", "pillow")
_KIND_REQUIREMENTS = {"images": ("pillow",), "texts": ("tokenizers",)}
_MODEL_TYPES = {"images": "image-classifier", "texts": "text-classifier"}
"""Model types in MLflow's UI and search."""
_MODULES = ("servable_module", "networks_module", "inputs_module")
"""Keys of ``model.json`` that name a module beside it; without a PyTorch network there is no ``networks_module``."""
_EXAMPLE_LETTERS = 500
"""Maximum length of a text as input example, which the registry shows (characters)."""


def package(
    folder: Path,
    *,
    state_dict: Mapping[str, Tensor],
    architecture: Mapping[str, Any],
    classes: Sequence[str],
    preprocessing: Preprocessing | TextPreprocessing,
    example: bytes | str,
    max_pixels: int = 64_000_000,
    calibration: Calibration | None = None,
    prediction_sets: PredictionSets | None = None,
    reference: Reference | None = None,
    exports: Sequence[ExportFormat] = (),
    network: nn.Module | None = None,
    sample: Sequence[tuple[bytes | str, Sequence[float]]] = (),
    text_column: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write all files of the served model to ``folder`` and return it.

    The folder then contains ``model.safetensors``, ``model.json`` (the other arguments), ``reference.safetensors`` if
    there is a reference, and ``example.jpg`` or, for texts, ``tokenizer.json`` and ``example.txt``. For MLflow's tools,
    it also contains the modules that classify, build the network, and decode or tokenize, each with its digest in the
    name.

    Args:
        folder: created if it is missing; files of these names are overwritten.
        state_dict: state_dict of the whole network; copied to the CPU.
        architecture: see :attr:`thawline.backbones.Backbone.architecture`.
        classes: class names, in the order of the network's outputs.
        preprocessing: preprocessing of the training; it determines whether the model classifies images or texts.
        example: an image file or a text, such as a training example; a small copy, or the beginning, becomes the input
            example.
        max_pixels: maximum number of pixels per image; larger ones are rejected.
        calibration: the logits are divided by its temperature; without one they stay unchanged.
        prediction_sets: threshold of prediction sets; without it, answers have no sets.
        reference: features and threshold for the flag ``unknown``; without it, answers have no flag.
        exports: further formats, each verified against the network and written as ``model.pt2`` or ``model.onnx``;
            only for images, see :func:`~thawline.registry.exports.check_exports`.
        network: with the weights of ``state_dict``, in evaluation mode; needed only for ``exports`` and ``sample``.
        sample: a few encoded images, each with the probabilities of the trained network; engines are compared with
            them wherever the model is loaded. Texts are not kept.
        text_column: name of the column of texts, see :attr:`~thawline.registry.ModelInput.text_column`.
        extra: JSON values on the model's origin (study, trial, data digest), which the registry shows too.

    Raises:
        BadImage: if the example image cannot be decoded.
        ExportError: if the network cannot be exported, or the export gives different results.
        RegistryError: if the example is of the other kind.
    """
    import safetensors.torch

    folder.mkdir(parents=True, exist_ok=True)
    # clone: safetensors rejects tensors that share memory, such as tied weights.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    if reference is not None:
        write_reference(reference, folder)
    temperature = calibration.temperature if calibration else 1.0
    settings: dict[str, Any] = {
        "format": FORMAT,
        "architecture": dict(architecture),
        "servable_module": copy_module(servable.__file__, folder, "thawline_servable"),
        "networks_module": copy_module(networks.__file__, folder, "thawline_networks"),
        "classes": list(classes),
        "temperature": temperature,
        "calibration": calibration.as_dict() if calibration else None,
        "prediction_sets": prediction_sets.as_dict() if prediction_sets else None,
        "unknown": reference.as_dict() if reference else None,
        "exports": {},
        "thawline": importlib.metadata.version("thawline"),
        "extra": dict(extra or {}),
    }
    match preprocessing, example:
        case TextPreprocessing(), str():
            settings |= _write_texts(folder, preprocessing, example) | {"text_column": text_column}
        case Preprocessing(), bytes():
            pixels = _shown(example, preprocessing, max_pixels)
            settings |= _write_images(folder, preprocessing, pixels, max_pixels)
            if exports and network is not None:
                picture = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
                settings["exports"] = export(
                    network,
                    folder,
                    exports,
                    preprocessing=preprocessing,
                    temperature=temperature,
                    pixels=torch.stack([picture, picture.flip(2)]),
                    metadata=described(classes, preprocessing, settings["calibration"]),
                    head=reference.head if reference else None,
                )
            if sample and network is not None:
                shown = [_shown(item, preprocessing, max_pixels) for item, _ in sample if isinstance(item, bytes)]
                probabilities = [expected for _, expected in sample]
                features = _features(network, reference.head, shown, preprocessing) if reference else None
                write_sample(folder / SAMPLE_FILE, shown, probabilities, features)
        case _:
            raise RegistryError(
                "The input example of an image model must be an encoded image (bytes), that of a text model a text "
                f"(str), but got {type(example).__name__} for {type(preprocessing).__name__}."
            )
    (folder / "model.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
    # safetensors creates files that only the owner can read; model.json has the permissions of the umask.
    for file in folder.glob("*.safetensors"):
        file.chmod(stat.S_IMODE((folder / "model.json").stat().st_mode))
    return folder


def _features(
    network: nn.Module, head: str, shown: Sequence[npt.NDArray[np.uint8]], preprocessing: Preprocessing
) -> npt.NDArray[np.float32]:
    """Inputs of the head, ``[N, F]``, for images ``[S, S, 3]``."""
    pixels = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (preprocessing.mean, preprocessing.std))
    watched = servable.watch(network.get_submodule(head))
    try:
        with torch.inference_mode(), servable.seeing() as seen:
            network((pixels - mean) / std)
    finally:
        watched.remove()
    features: npt.NDArray[np.float32] = seen[0].numpy()
    return features


def _write_texts(folder: Path, preprocessing: TextPreprocessing, example: str) -> dict[str, Any]:
    (folder / "tokenizer.json").write_text(preprocessing.tokenizer, encoding="utf-8")
    (folder / "example.txt").write_bytes(example.strip()[:_EXAMPLE_LETTERS].encode())
    return {
        "kind": "texts",
        "preprocessing": {"max_length": preprocessing.max_length},
        "inputs_module": copy_module(tokenizer.__file__, folder, "thawline_tokenizing"),
    }


def _shown(example: bytes, preprocessing: Preprocessing, max_pixels: int) -> npt.NDArray[np.uint8]:
    """The example as the network sees it, ``[S, S, 3]``."""
    return images.seen(
        example,
        max_pixels=max_pixels,
        resize_size=preprocessing.resize_size,
        crop_size=preprocessing.image_size,
        interpolation=preprocessing.interpolation,
        crop_mode=preprocessing.crop_mode,
    )


def _write_images(
    folder: Path, preprocessing: Preprocessing, pixels: npt.NDArray[np.uint8], max_pixels: int
) -> dict[str, Any]:
    from PIL import Image

    example = io.BytesIO()
    Image.fromarray(pixels).save(example, format="JPEG", quality=90)
    (folder / "example.jpg").write_bytes(example.getvalue())
    return {
        "kind": "images",
        "preprocessing": asdict(preprocessing),
        "max_pixels": max_pixels,
        "reduced": True,
        "inputs_module": copy_module(images.__file__, folder, "thawline_images"),
    }


def copy_module(file: str, folder: Path, name: str) -> str:
    """Copy a module that does not import Thawline; returns its new name, which contains its digest."""
    code = Path(file).read_bytes()
    name = f"{name}_{hashlib.sha256(code).hexdigest()[:12]}"
    (folder / f"{name}.py").write_bytes(code)
    return name


def log_packaged_model(
    store: MlflowStore,
    run_id: str,
    folder: Path,
    name: str,
    *,
    trained: Sequence[tuple[bytes | str, Sequence[float]]] = (),
    tags: Mapping[str, str] | None = None,
) -> str:
    """Log a folder made by :func:`package` or ``quantise`` as an output of a run; returns its URI, ``models:/m-…``.

    Before the upload, the model is loaded from its files, as in a server, and classifies its own example. The digest of
    its files becomes a tag of the logged model, and of every version registered from it. ``mlflow.pyfunc.log_model``
    does much the same through the global tracking URI; this function uses the store's client.

    Args:
        store: to log to.
        run_id: the trial's run, which then lists the model among its outputs.
        folder: with the packaged files.
        name: shown in the UI: letters, digits, ``.``, ``_``, ``-``.
        trained: a few encoded images or texts, each with the probabilities of the trained network; the largest
            difference is stored in the package for the gate.
        tags: tags of the logged model.

    Raises:
        RegistryError: if the packaged model cannot classify its example, or the store fails.
    """
    import pandas as pd
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    settings = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    kind: DataKind = settings["kind"]
    example = pd.DataFrame({COLUMNS[kind]: [_example(folder, kind)]})
    client = store.client
    try:
        experiment_id = client.get_run(run_id).info.experiment_id
        logged = client.create_logged_model(
            experiment_id, name=name, source_run_id=run_id, tags=dict(tags or {}), model_type=_MODEL_TYPES[kind]
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
                "prediction_sets": settings["prediction_sets"],
                "unknown": settings["unknown"],
                "text_column": settings.get("text_column"),
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
                python_model=str(_PYFUNC),
                artifacts=_artifacts(folder, settings),
                code_paths=[str(folder / f"{settings[key]}.py") for key in _MODULES if key in settings],
                signature=signature_of(
                    kind, sets=settings["prediction_sets"] is not None, unknown=settings["unknown"] is not None
                ),
                input_example=example,
                pip_requirements=_requirements(settings),
                mlflow_model=description,
            )
            digest = record_digests(path)
            loaded = read_package(path, ModelName(name), recorded=digest)
            loaded.check()
            if trained:
                saved = Model.load(str(path))
                saved.metadata = {**(saved.metadata or {}), "parity": _parity(loaded, settings, trained)}
                saved.save(str(path / "MLmodel"))
                digest = record_digests(path)
            client.log_model_artifacts(logged.model_id, str(path))
        client.set_logged_model_tags(logged.model_id, {DIGEST_TAG: digest})
        client.finalize_logged_model(logged.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    except Exception as error:
        with suppress(Exception):  # report the first failure
            client.finalize_logged_model(logged.model_id, "FAILED")
        raise RegistryError(f"The model could not be packaged for serving: {first_line(error)}") from error
    return f"models:/{logged.model_id}"


def _example(folder: Path, kind: DataKind) -> bytes | str:
    if kind == "texts":
        return (folder / "example.txt").read_bytes().decode()
    return (folder / "example.jpg").read_bytes()


def _artifacts(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Files of the package by their names in ``servable.py``."""
    files = {"model": "model.json"}
    if "precision" not in settings:
        files["weights"] = "model.safetensors"
    if settings["kind"] == "texts":
        files["tokenizer"] = "tokenizer.json"
    files |= {name: f"model.{name}" for name in settings["exports"]}
    if settings["unknown"] is not None:
        files["reference"] = REFERENCE_FILE
    if (folder / SAMPLE_FILE).is_file():
        files["sample"] = SAMPLE_FILE
    return {name: str(folder / file) for name, file in files.items()}


def _parity(
    model: PackagedModel, settings: Mapping[str, Any], trained: Sequence[tuple[bytes | str, Sequence[float]]]
) -> float:
    """Largest difference of a probability."""
    answers = model.predict([item for item, _ in trained])
    unread = [answer for answer in answers if isinstance(answer, str)]
    if unread:
        raise RegistryError(f"a training example cannot be read: {unread[0]}")
    return max(
        abs(answer.probabilities[name] - probability)
        for answer, (_, expected) in zip(answers, trained, strict=True)
        if not isinstance(answer, str)
        for name, probability in zip(settings["classes"], expected, strict=True)
    )


def _requirements(settings: Mapping[str, Any]) -> list[str]:
    """The exact installed versions, without a build's local part (``+cu132``), which package indexes lack."""
    if "precision" in settings:
        names = dict.fromkeys(_INT8_REQUIREMENTS)
    else:
        architecture = settings["architecture"]
        library = architecture.get("package") or architecture.get("library", "torchvision")
        names = dict.fromkeys([*_REQUIREMENTS, library, *_KIND_REQUIREMENTS[settings["kind"]]])
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in names]
