"""Inference engines: the fastest installed engine that agrees with the trained network computes it."""

from thawline.engines._base import BF16_TOLERANCE, ENGINE_TOLERANCE, Engine, EngineName, Outputs
from thawline.engines.choice import Choice, Tried, choose
from thawline.engines.compiled import Compiled
from thawline.engines.onnx_runtime import OnnxRuntime, Quantised
from thawline.engines.openvino import OpenVino
from thawline.engines.pytorch import PyTorch
from thawline.engines.sample import SAMPLE_FILE, Sample, read_sample, write_sample

__all__ = [
    "BF16_TOLERANCE",
    "ENGINE_TOLERANCE",
    "SAMPLE_FILE",
    "Choice",
    "Compiled",
    "Engine",
    "EngineName",
    "OnnxRuntime",
    "OpenVino",
    "Outputs",
    "PyTorch",
    "Quantised",
    "Sample",
    "Tried",
    "choose",
    "read_sample",
    "write_sample",
]
