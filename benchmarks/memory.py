"""Peak memory of storing and training as the data grows, under a limit that the data alone would exceed.

The limit (``RLIMIT_DATA``) applies to a process's allocations, but intentionally not to mapped files.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SIZE, BACKBONE, CLASSES = 224, "mobilenet_v3_small", 10
BOUNDARY = 1
"""After the stem, where activations are largest."""


def main() -> None:
    """Store and train on 1, 2 and 4 times as many images, each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--limit", type=float, default=1.5, help="GB above the initial memory of the process")
    options = parser.parse_args()
    print("| images | decoded, GB | stored, GB | peak above the model, GB | seconds to store | seconds per epoch |")
    print("|---|---|---|---|---|---|")
    for times in (1, 2, 4):
        context = multiprocessing.get_context("spawn")
        with tempfile.TemporaryDirectory() as folder:
            queue = context.Queue()
            process = context.Process(target=measure, args=(Path(folder), times * options.images, options.limit, queue))
            process.start()
            row = queue.get()
            process.join()
        cells = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in row]
        print(f"| {' | '.join(cells)} |", flush=True)


def measure(folder: Path, images: int, limit: float, queue: Any) -> None:
    """Measure one size."""
    from thawline import backbones
    from thawline.activations import ActivationInputs, ActivationKey, ActivationStore
    from thawline.activations.fill import fill
    from thawline.config import TrainConfig
    from thawline.training import (
        CheckpointFolder,
        Decision,
        Hyperparameters,
        ImageInputs,
        fit,
        runtime_for,
        set_up_process,
    )

    pixels = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=(images, SIZE, SIZE, 3))
    random = np.random.default_rng(0)
    for start in range(0, images, 100):
        pixels[start : start + 100] = random.integers(0, 256, pixels[start : start + 100].shape, dtype=np.uint8)
    pixels.flush()
    del pixels
    decoded = np.load(folder / "images.npy", mmap_mode="r")
    labels = np.arange(images) % CLASSES

    config = TrainConfig(epochs=1, device="cpu")
    runtime = runtime_for(config)
    set_up_process(threads=None, seed=0)
    backbone = backbones.create(BACKBONE, num_classes=CLASSES, weights="none", image_size=SIZE)
    began_with = memory("RssAnon")
    bytes_allowed = int((memory("VmData") + limit) * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (bytes_allowed, bytes_allowed))
    assert isinstance(backbone.preprocessing, backbones.Preprocessing)
    source = ImageInputs(decoded, labels, backbone.preprocessing, runtime)
    store = ActivationStore(folder / "store")
    key = ActivationKey(
        data="",
        split="",
        view="",
        backbone=BACKBONE,
        weights=backbone.weights_digest,
        boundary=BOUNDARY,
        preprocessing=backbone.preprocessing,
        computed_in=str(runtime),
        stored_as="float16",
        libraries="",
    )
    peak = Peak()
    began = time.perf_counter()
    assert not fill(store, backbone, source, 0, {BOUNDARY: key}, runtime, batch_size=32)
    stored = time.perf_counter() - began
    opened = store.open(key)
    assert opened is not None
    inputs = ActivationInputs([opened], labels, BOUNDARY, runtime)
    result = fit(
        backbone,
        lambda depth: (inputs, inputs),
        hyperparameters=Hyperparameters(BACKBONE, BOUNDARY, 1e-3, 0.01, 1.0, "adamw"),
        config=config,
        metric="accuracy",
        runtime=runtime,
        checkpoints=CheckpointFolder(folder / "checkpoints", keep=1, maximise=True),
        seed=0,
        on_epoch=lambda result: Decision.CONTINUE,
    )
    seconds = result.history[0].metrics["time/epoch_seconds"]
    queue.put((images, decoded.nbytes / 1e9, opened.bytes / 1e9, peak.end() - began_with, stored, seconds))


def memory(field: str) -> float:
    """A memory figure of this process, in GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e6


class Peak:
    """The peak of anonymous memory, sampled a hundred times a second."""

    def __init__(self) -> None:
        import threading

        self._largest = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> float:
        """Stop sampling; returns GB."""
        self._stop.set()
        self._thread.join()
        return self._largest

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self._largest = max(self._largest, memory("RssAnon"))


if __name__ == "__main__":
    main()
