"""ONNX Runtime on the CPU, for the package's ``model.onnx`` in single precision or in int8."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thawline.engines._base import ENGINE_TOLERANCE, INT8_TOLERANCE, Outputs
from thawline.engines._graph import pixels_of, read_graph, require
from thawline.engines._own import OwnNetwork

__all__ = ["OnnxRuntime", "Quantised"]


class OnnxRuntime:
    """ONNX Runtime in fp32. Normalisation, calibration and softmax are part of the graph.

    Args:
        files: folder of the package's files; not needed afterwards.
        threads: per forward pass.

    Raises:
        Unavailable: if the package has no ``model.onnx``, or ONNX Runtime is not installed.
    """

    name = "onnxruntime"
    tolerance = ENGINE_TOLERANCE

    def __init__(self, files: Path, *, threads: int) -> None:
        graph = read_graph(files)
        require("onnxruntime", "ONNX Runtime", extra="onnx")
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors; warnings are about the machine, such as a GPU that it cannot list
        # Threads that spin between forward passes would take cores from those that decode.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: Any = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def outputs(self, prepared: Sequence[Any]) -> Outputs:
        """See :class:`~thawline.engines.Engine`; only for uint8 images ``[S, S, 3]``."""
        answers, *features = self._session.run(None, {"pixels": pixels_of(prepared)})
        return answers.tolist(), features[0] if features else None

    def probabilities(self, prepared: Sequence[Any]) -> list[list[float]]:
        """See :class:`~thawline.engines.Engine`."""
        return self.outputs(prepared)[0]


class Quantised(OwnNetwork):
    """ONNX Runtime for packages in int8; only for uint8 images ``[S, S, 3]``."""

    name = "onnxruntime"
    tolerance = INT8_TOLERANCE
