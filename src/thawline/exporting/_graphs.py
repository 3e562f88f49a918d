"""Computation graphs with normalisation and calibration: ONNX and OpenVINO."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thawline.exporting._formats import Exported, Reader
from thawline.registry import exported_classifier, write_onnx

__all__ = ["write_onnx_file", "write_openvino"]


def write_onnx_file(model: Exported, out: Path) -> Reader:
    """Write ``model.onnx``, which takes pixels from 0 to 1; class names and preprocessing are in its metadata."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    classifier = exported_classifier(model.network, model.preprocessing, model.temperature)
    write_onnx(classifier, out / "model.onnx", model.pixels, model.metadata)
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])


def write_openvino(model: Exported, out: Path) -> Reader:
    """Write ``model.xml`` and ``model.bin`` in single precision; the metadata is ``thawline`` in ``rt_info``."""
    import openvino

    classifier = exported_classifier(model.network, model.preprocessing, model.temperature)
    graph, core = out / "model.onnx", openvino.Core()
    write_onnx(classifier, graph, model.pixels, model.metadata)
    converted: Any = core.read_model(graph)  # `convert_model` would send telemetry
    for name, value in model.metadata.items():
        converted.set_rt_info(value, ["thawline", name])
    openvino.save_model(converted, out / "model.xml", compress_to_fp16=False)
    graph.unlink()
    # By default, a CPU may compute in bf16, with different results.
    compiled: Any = core.compile_model(out / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def answer(pixels: Tensor) -> Tensor:
        return torch.from_numpy(compiled({"pixels": pixels.numpy()})["probabilities"])

    return answer
