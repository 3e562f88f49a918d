"""Image classifiers for other runtimes: ``torch.export`` (``.pt2``) and ONNX, each verified against the network."""

import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from thawline.data import DataKind
from thawline.exceptions import ConfigError, ExportError
from thawline.registry.servable import seeing, watch

if TYPE_CHECKING:
    from thawline.backbones import Preprocessing

__all__ = [
    "EXPORT_TOLERANCE",
    "ExportFormat",
    "check_exports",
    "described",
    "export",
    "exported_classifier",
    "graphs_of",
    "graphs_tried",
    "write_onnx",
]

ExportFormat = Literal["pt2", "onnx"]
"""Optional files of a package besides the network."""
Wanted = Literal["auto", "pt2", "onnx", "int8"]
"""Values of ``promotion.exports``; ``int8`` is a version of its own, made from the ONNX file."""

EXPORT_TOLERANCE = 1e-4
"""Maximum difference of a probability between an export and the network."""
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class _Classifier(nn.Module):
    """Pixels from 0 to 1 in, probabilities out, including all steps that a caller might do differently."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocessing: "Preprocessing", temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.network((pixels - self.mean) / self.std)
        return (logits / self.temperature).softmax(1)


class _WithFeatures(nn.Module):
    """The same, with the input of a watched layer as a second output."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        with seeing() as seen:
            probabilities = self.classifier(pixels)
        return probabilities, seen[0]


def graphs_of(wanted: Sequence[Wanted]) -> tuple[ExportFormat, ...]:
    """Files that the package must have for ``promotion.exports``; ``auto`` requires none."""
    named = (name for name in wanted if name != "auto")
    return tuple(dict.fromkeys("onnx" if name == "int8" else name for name in named))


def graphs_tried(wanted: Sequence[Wanted], kind: DataKind) -> tuple[ExportFormat, ...]:
    """The same and, for ``auto``, the ONNX file if it is possible for this kind and its packages are installed."""
    required = graphs_of(wanted)
    if "auto" not in wanted or "onnx" in required or kind == "texts" or _missing():
        return required
    return (*required, "onnx")


def check_exports(formats: Sequence[Wanted], kind: DataKind) -> None:
    """Reject impossible exports before training.

    Args:
        formats: values of ``promotion.exports``.
        kind: kind of the model.

    Raises:
        ConfigError: for a text model, whose tokenizer cannot be part of a graph, and for a format whose packages are
            not installed, with the command that installs them.
    """
    named = [name for name in formats if name != "auto"]
    if kind == "texts" and named:
        raise ConfigError(
            f"promotion.exports names {', '.join(named)}, but a text model cannot be exported: its tokenizer cannot be "
            "part of the graph. Leave promotion.exports out."
        )
    of_onnx = [name for name in named if name in ("onnx", "int8")]
    if of_onnx and (missing := _missing()):
        raise ConfigError(
            f"promotion.exports names {of_onnx[0]}, which needs {', '.join(missing)}: pip install 'thawline[onnx]'."
        )


def _missing() -> list[str]:
    """Packages required for ONNX that are not installed."""
    return [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]


def export(
    network: nn.Module,
    folder: Path,
    formats: Sequence[ExportFormat],
    *,
    preprocessing: "Preprocessing",
    temperature: float,
    pixels: Tensor,
    metadata: Mapping[str, str] | None = None,
    head: str | None = None,
) -> dict[str, float]:
    """Write ``model.pt2`` and ``model.onnx`` to a folder, read them back, and compare their outputs.

    The input of both is fp32 ``[N, 3, S, S]`` with pixels from 0 to 1, for any ``N``; the output is probabilities
    ``[N, num_classes]``. Normalisation and calibration are part of the graph.

    Args:
        network: on the CPU, in evaluation mode.
        folder: to write to.
        formats: to write.
        preprocessing: preprocessing of the network.
        temperature: temperature of its calibration.
        pixels: ``[N, 3, S, S]``, at least two images, for the comparison.
        metadata: metadata of the ONNX file, such as :func:`described`.
        head: layer whose input is a second output of the ONNX file, ``features`` ``[N, F]``.

    Returns:
        The largest difference of a probability, by format.

    Raises:
        ExportError: if a format cannot express the network, or gives different results; its file is removed.
    """
    classifier = exported_classifier(network, preprocessing, temperature)
    with torch.inference_mode():
        expected = classifier(pixels)
    differences: dict[str, float] = {}
    for kind in formats:
        path = folder / f"model.{kind}"
        try:
            answer = _EXPORTERS[kind](classifier, path, pixels, metadata or {}, head)
        except Exception as error:  # exporters may raise anything
            path.unlink(missing_ok=True)
            reason = re.sub(r"\x1b\[\d*m", "", str(error).partition("\n")[0])  # ONNX's exporter writes in colours
            raise ExportError(f"The network cannot be exported as {kind}: {type(error).__name__}: {reason}") from error
        differences[kind] = float((answer.detach() - expected).abs().max())
        if not differences[kind] <= EXPORT_TOLERANCE:  # also true for NaN
            path.unlink(missing_ok=True)
            raise ExportError(
                f"The network exported as {kind} gives different results: a probability differs by "
                f"{differences[kind]:.1e}, but at most {EXPORT_TOLERANCE:.0e} is allowed."
            )
    return differences


def described(
    classes: Sequence[str], preprocessing: "Preprocessing", calibration: Mapping[str, Any] | None
) -> dict[str, str]:
    """Metadata of an ONNX file, each entry JSON, so that the file can be used without the package.

    ``classes`` (in the order of the probabilities), ``preprocessing`` (resizing and cropping; the graph takes pixels
    from 0 to 1 and applies mean and standard deviation itself), ``calibration`` (the graph applies the temperature) and
    ``thawline``, the version.
    """
    said = {
        "classes": list(classes),
        "preprocessing": asdict(preprocessing),
        "calibration": dict(calibration) if calibration else None,
        "thawline": importlib.metadata.version("thawline"),
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in said.items()}


def _pt2(classifier: nn.Module, path: Path, pixels: Tensor, metadata: Mapping[str, str], head: str | None) -> Tensor:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(classifier, (pixels,), dynamic_shapes=({0: batch},))
    program.example_inputs = None  # kept as a pickle otherwise
    torch.export.save(program, path)
    with torch.inference_mode():
        answer: Tensor = torch.export.load(path).module()(pixels)
    return answer


def exported_classifier(network: nn.Module, preprocessing: "Preprocessing", temperature: float) -> nn.Module:
    """A module from pixels (0 to 1, ``[N, 3, S, S]``) to probabilities, with normalisation and calibration."""
    return _Classifier(network, preprocessing, temperature).eval()


def write_onnx(
    classifier: nn.Module,
    path: Path,
    pixels: Tensor,
    metadata: Mapping[str, str],
    outputs: Sequence[str] = ("probabilities",),
) -> None:
    """Write a classifier of :func:`exported_classifier` as one ONNX file, from ``pixels`` to ``probabilities``.

    Args:
        classifier: to write.
        path: path of the file.
        pixels: ``[N, 3, S, S]``, at least two images, for tracing.
        metadata: metadata of the file, see :func:`described`.
        outputs: names of the classifier's outputs.
    """
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        classifier,
        (pixels,),
        input_names=["pixels"],
        output_names=list(outputs),
        dynamic_shapes=({0: batch},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # noqa: S101  with `dynamo`, never None
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)


def _onnx(classifier: nn.Module, path: Path, pixels: Tensor, metadata: Mapping[str, str], head: str | None) -> Tensor:
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    if head is None:
        write_onnx(classifier, path, pixels, metadata)
    else:
        watched = watch(classifier.get_submodule(f"network.{head}"))
        try:
            write_onnx(_WithFeatures(classifier).eval(), path, pixels, metadata, ("probabilities", "features"))
        finally:
            watched.remove()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (answer,) = session.run(["probabilities"], {"pixels": pixels.numpy()})
    return torch.from_numpy(answer)


_EXPORTERS = {"pt2": _pt2, "onnx": _onnx}
