"""A copy of a packaged model in int8, by ONNX Runtime: a separate package, which the gate judges like any other."""

import importlib.metadata
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thawline.data import StreamedImages
from thawline.data import images as image_module
from thawline.engines import SAMPLE_FILE, write_sample
from thawline.exceptions import RegistryError
from thawline.registry import servable
from thawline.registry.packaged import QUANTISED_FORMAT, PackagedModel
from thawline.registry.packaging import copy_module
from thawline.registry.prediction_sets import fit_prediction_sets
from thawline.registry.servable import BATCH, QuantisedServable
from thawline.registry.unknown import REFERENCE_FILE, fit_reference, write_reference
from thawline.tracking import first_line

__all__ = ["quantise", "quantise_graph"]

_CALIBRATED_ON = 128
"""Number of images on which activation ranges are measured. More change them little, at a forward pass each."""
_KEPT = 16
"""Number of images in the package, for comparisons wherever it is loaded."""
_LAYERS = ("Conv", "Gemm", "MatMul", "Relu", "MaxPool", "Concat")
"""Layers that take most of the time, and those between them that keep the range, so that values stay in int8. Sums stay
in single precision, because residual streams have outliers. Softmax would give probabilities in steps of 1/256."""
Images = npt.NDArray[np.uint8] | StreamedImages
"""``[N, S, S, 3]``, preprocessed for the network: in memory, or decoded on access."""
_TAKEN_OVER = ("kind", "classes", "temperature", "calibration", "extra", "preprocessing", "max_pixels", "reduced")


def quantise(
    folder: Path, source: Path, model: PackagedModel, images: Images, labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Quantise a package in single precision to int8, in ``folder``.

    Weights and activations of the expensive layers have 8 bits, except those of the last layer: weights are scaled by
    channel, activations by their range on some of the images. The thresholds of prediction sets and of ``unknown`` are
    fitted again; the temperature stays.

    Args:
        folder: an empty one, see :func:`~thawline.registry.packaging.package`.
        source: folder of the other package's artifacts, with ``model.onnx``.
        model: that package, loaded.
        images: validation images, preprocessed for the network, ``[N, S, S, 3]``; at least one.
        labels: labels of the images, ``[N]``.

    Returns:
        The copy's probabilities for the images, ``[N, num_classes]``.

    Raises:
        RegistryError: if the network cannot be quantised, or the other package has no ``model.onnx``.
    """
    if not (source / "model.onnx").is_file():
        raise RegistryError(
            f"{model.name} cannot be quantised: it was packaged without model.onnx, before promotion.exports included "
            "int8. Versions of the next study will have one."
        )
    known = model.servable.settings
    settings = {key: known[key] for key in _TAKEN_OVER if key in known} | {
        "format": QUANTISED_FORMAT,
        "precision": "int8",
        "thawline": importlib.metadata.version("thawline"),
        "servable_module": copy_module(servable.__file__, folder, "thawline_servable"),
        "inputs_module": copy_module(image_module.__file__, folder, "thawline_images"),
        "prediction_sets": None,
        "unknown": None,
    }
    example = model.example()
    (folder / "example.jpg").write_bytes(example if isinstance(example, bytes) else example.encode())
    try:
        quantise_graph(source / "model.onnx", folder / "model.onnx", _spread(images))
    except Exception as error:  # ONNX Runtime may raise anything
        raise RegistryError(
            f"{model.name} cannot be quantised: {type(error).__name__}: {first_line(error)}. Leave int8 out of "
            "promotion.exports."
        ) from error
    copy = QuantisedServable(settings, {"onnx": str(folder / "model.onnx")}, inputs=image_module)
    outputs = [copy.outputs(list(batch)) for batch in _batches(images)]
    probabilities = np.array([row for rows, _ in outputs for row in rows])
    kept = list(images[np.arange(min(_KEPT, len(images)))])
    before = np.array(model.servable.probabilities(kept))
    settings["exports"] = {"onnx": float(np.abs(probabilities[:_KEPT] - before).max())}
    if sets := known.get("prediction_sets"):
        settings["prediction_sets"] = fit_prediction_sets(probabilities, labels, sets["coverage"]).as_dict()
    features = None
    if (unknown := known.get("unknown")) and outputs[0][1] is not None:
        seen = np.concatenate([features for _, features in outputs])
        settings["unknown"] = _refitted(unknown, source, seen, folder)
        features = seen[:_KEPT]
    write_sample(folder / SAMPLE_FILE, kept, probabilities[:_KEPT].tolist(), features)
    (folder / "model.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
    return probabilities


def _refitted(
    unknown: Mapping[str, Any], source: Path, features: npt.NDArray[np.float32], folder: Path
) -> dict[str, Any]:
    """The threshold of ``unknown`` for the copy, whose features differ slightly, with the other package's examples."""
    import safetensors.numpy

    examples = safetensors.numpy.load_file(source / REFERENCE_FILE)["features"].astype(np.float32)
    fitted = fit_reference(examples, features, head=unknown["head"], false_alarms=unknown["false_alarms"])
    write_reference(fitted, folder)
    return fitted.as_dict()


def quantise_graph(source: Path, out: Path, images: Images) -> None:
    """Quantise an ONNX file from pixels to probabilities; its metadata are kept.

    Args:
        source: the file.
        out: the file to write.
        images: for measuring activation ranges, ``[N, S, S, 3]``.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="thawline-") as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX Runtime warns about its own calls
        folded = Path(temporary) / "folded.onnx"
        # Batch-norms become part of convolutions, whose weights are quantised with them.
        quant_pre_process(source, folded, skip_symbolic_shape=True)
        nodes = onnx.load(folded).graph.node
        last = [node.name for node in nodes if node.op_type in ("Gemm", "MatMul")][-1:]
        quantize_static(
            folded,
            out,
            _Calibration(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_LAYERS),
            nodes_to_exclude=last,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


class _Calibration:
    """Batches for ONNX Runtime's measurement of activation ranges."""

    def __init__(self, images: Images) -> None:
        self._batches = _batches(images)

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        if batch is None:
            return None
        return {"pixels": batch.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)}


def _spread(images: Images) -> npt.NDArray[np.uint8]:
    """Some of the images, evenly spaced, because they are sorted by class."""
    count = min(len(images), _CALIBRATED_ON)
    chosen: npt.NDArray[np.uint8] = images[np.linspace(0, len(images) - 1, count).round().astype(int)]
    return chosen


def _batches(images: Images) -> Iterator[npt.NDArray[np.uint8]]:
    for start in range(0, len(images), BATCH):
        yield images[np.arange(start, min(start + BATCH, len(images)))]  # a slice would decode nothing
