"""OpenVINO on the CPU, for the package's ``model.onnx`` in single precision or in bf16."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from thawline.engines._base import BF16_TOLERANCE, ENGINE_TOLERANCE, Outputs, Unavailable
from thawline.engines._graph import pixels_of, read_graph, require

__all__ = ["OpenVino"]

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVino:
    """OpenVINO. Normalisation, calibration and softmax are part of the graph.

    Args:
        files: folder of the package's files; not needed afterwards.
        threads: per forward pass.
        precision: precision of the arithmetic; ``bf16`` needs a processor that supports it (AVX-512 BF16 or AMX).

    Raises:
        Unavailable: if the package has no ``model.onnx``, OpenVINO is not installed, or the processor does not support
            the precision.
    """

    def __init__(self, files: Path, *, threads: int, precision: Literal["fp32", "bf16"] = "fp32") -> None:
        self.name = "openvino" if precision == "fp32" else "openvino-bf16"
        self.tolerance = ENGINE_TOLERANCE if precision == "fp32" else BF16_TOLERANCE
        graph = read_graph(files)
        require("openvino", "OpenVINO", extra="openvino")
        import openvino

        core: Any = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise Unavailable("this processor does not support bf16: it has neither AVX-512 BF16 nor AMX")
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],  # the default is bf16 wherever it is supported
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,  # all threads for one batch
            "ENABLE_CPU_PINNING": False,  # decoding threads and other processes share the cores
        }
        self._compiled: Any = core.compile_model(core.read_model(graph), "CPU", settings)
        self._idle: list[Any] = []

    def outputs(self, prepared: Sequence[Any]) -> Outputs:
        """See :class:`~thawline.engines.Engine`; only for uint8 images ``[S, S, 3]``."""
        # A request computes one batch at a time, so each thread needs its own; they are created on demand.
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        # Copied, because the next batch overwrites a request's outputs.
        answers, *features = (np.array(each) for each in request.infer({"pixels": pixels_of(prepared)}).values())
        self._idle.append(request)
        return answers.tolist(), features[0] if features else None

    def probabilities(self, prepared: Sequence[Any]) -> list[list[float]]:
        """See :class:`~thawline.engines.Engine`."""
        return self.outputs(prepared)[0]
