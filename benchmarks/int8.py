"""CPU time of networks in int8 and in single precision, with ONNX Runtime on one thread.

python benchmarks/int8.py --networks resnet18 mobilenet_v3_small vit_b_32

The weights are random, which does not affect the time. The gate evaluates accuracy.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torchvision.models import get_model

from thawline.backbones import Preprocessing
from thawline.registry import exported_classifier, write_onnx
from thawline.registry.quantising import quantise_graph

VIEW = Preprocessing(224, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "mobilenet_v3_small", "squeezenet1_0"])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = np.random.default_rng(0).integers(0, 256, (32, 224, 224, 3), dtype=np.uint8)
    print("| network | images at once | ms, single precision | ms, int8 | MB, single precision | MB, int8 |")
    print("|---|---|---|---|---|---|")
    for name in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            single, int8 = Path(folder) / "single.onnx", Path(folder) / "int8.onnx"
            network = get_model(name, weights=None, num_classes=10).eval()
            write_onnx(exported_classifier(network, VIEW, 1.0), single, torch.rand(2, 3, 224, 224), {})
            quantise_graph(single, int8, images)
            sizes = " | ".join(f"{file.stat().st_size / 1e6:.1f}" for file in (single, int8))
            for batch in (1, 8):
                times = seconds([session(file) for file in (single, int8)], images[:batch], options.rounds)
                print(f"| {name} | {batch} | {' | '.join(f'{1000 * each:.1f}' for each in times)} | {sizes} |")


def session(file: Path) -> Any:
    """A session on one thread."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])


def seconds(sessions: list[Any], images: npt.NDArray[np.uint8], rounds: int) -> list[float]:
    """Median CPU time of each session, interleaved."""
    pixels = images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    taken: list[list[float]] = [[] for _ in sessions]
    for _ in range(rounds + 2):
        for each, times in zip(sessions, taken, strict=True):
            began = time.process_time()
            each.run(None, {"pixels": pixels})
            times.append(time.process_time() - began)
    return [statistics.median(times[2:]) for times in taken]


if __name__ == "__main__":
    main()
