"""Efficiency of Thawline's loops on a GPU, relative to the hardware's limits: one call, under ten minutes.

    python benchmarks/gpu.py                # on a GPU
    python benchmarks/gpu.py --tiny         # a few small steps on a CPU, to check that it runs

For each network at freeze depth 0, half and head only: images per second of training, of filling the store and of
evaluation, with the card's limit. For computation, the limit is the operations counted by PyTorch divided by the rate
of a large matrix product. For memory, it is the bytes that all operations read and write separately divided by the rate
of a large copy; a compiler's fused kernels move less. A few images are repeated, so nothing waits for the disk. It
imports only the loops, neither MLflow nor Optuna nor Prefect, and so runs with only torch, torchvision and Thawline's
small dependencies.
"""

import argparse
import asyncio
import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from thawline import backbones
from thawline.activations.fill import fill
from thawline.activations.store import ActivationKey, ActivationStore, StoredType
from thawline.backbones import Backbone, Preprocessing, section
from thawline.config import TrainConfig
from thawline.training import (
    CheckpointFolder,
    Decision,
    Hyperparameters,
    ImageInputs,
    Inputs,
    Runtime,
    fit,
    predict,
    runtime_for,
    set_up_process,
)
from thawline.training.runtime import on_device

UNIQUE = 512
"""Number of distinct images."""
CLASSES = 10


@dataclass(frozen=True)
class Card:
    """The limits of the device."""

    operations: float
    """Operations per second, in the precision of training."""
    bytes: float
    """Bytes read and written per second."""

    def floor(self, operations: float, moved: float) -> tuple[float, str]:
        """Minimum seconds, and the limiting factor."""
        computing, moving = operations / self.operations, moved / self.bytes
        return max(computing, moving), "computing" if computing > moving else "memory"


class Repeated:
    """Many rows, few of which are distinct; on the device, like cached activations."""

    lengths: np.ndarray | None = None

    def __init__(self, rows: Tensor, count: int, boundary: int) -> None:
        self._rows, self.boundary = rows, boundary
        self.labels = np.arange(count, dtype=np.int64) % CLASSES

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, rows: np.ndarray, epoch: int) -> Tensor:
        """Some rows."""
        return self._rows[on_device(rows % len(self._rows), self._rows.device)]

    def prepare(self, read: Tensor, rows: np.ndarray, epoch: int) -> Tensor:
        """The same, with half precision converted to single precision, as everywhere."""
        return read.float() if read.dtype == torch.float16 else read


class RepeatedImages(ImageInputs):
    """The same for decoded images on the host."""

    def __init__(self, images: np.ndarray, count: int, preprocessing: Preprocessing, runtime: Runtime) -> None:
        super().__init__(images, np.arange(count, dtype=np.int64) % CLASSES, preprocessing, runtime)

    def read(self, rows: np.ndarray, epoch: int) -> Tensor:
        """uint8 ``[n, S, S, 3]``."""
        return super().read(rows % len(self.images), epoch)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet50", "vit_b_16"])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=20.0, help="approximate seconds of training at each depth")
    parser.add_argument("--tiny", action="store_true", help="a small network with few small images")
    options = parser.parse_args()
    if options.tiny:
        options.networks, options.images, options.batch_size, options.image_size = ["squeezenet1_1"], 32, 8, 64
        options.precision, options.device, options.seconds = "fp32", "cpu", 1.0
    config = TrainConfig(
        epochs=1, batch_size=options.batch_size, precision=options.precision, device=options.device, head="fresh"
    )
    runtime = runtime_for(config)
    set_up_process(threads=None, seed=0, exact=False)
    card = card_of(runtime, tiny=options.tiny)
    name = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else "CPU"
    rates = f"{card.operations / 1e12:.3g} T operations/s in a matrix product, {card.bytes / 1e9:.3g} GB/s in a copy"
    print(f"{name}, torch {torch.__version__}, {runtime}: {rates}\n")
    print("| network | freeze depth | what | images/s | floor | share of the floor | limited by |")
    print("|---|---|---|---|---|---|---|")
    for network in options.networks:
        measure(network, card, config, runtime, options)
    print("\n| network | clients | images/s | p50, ms | p95, ms |\n|---|---|---|---|---|")
    for network in options.networks:
        asyncio.run(serve(network, runtime, options))


def card_of(runtime: Runtime, *, tiny: bool) -> Card:
    """Measure the rates of a large matrix product and of a large copy."""
    side, length = (512, 2**22) if tiny else (8192, 2**30)
    kind = runtime.autocast_dtype or torch.float32
    matrix = torch.randn(side, side, device=runtime.device, dtype=kind)
    block = torch.zeros(length, dtype=torch.uint8, device=runtime.device)
    other = torch.empty_like(block)
    product, copy = (seconds_of(call, runtime) for call in (lambda: matrix @ matrix, lambda: other.copy_(block)))
    return Card(2 * side**3 / product, 2 * length / copy)


def seconds_of(call: Callable[[], object], runtime: Runtime, rounds: int = 10) -> float:
    """Median seconds of a call, including the device's work."""
    taken = []
    for _ in range(rounds + 2):
        wait(runtime)
        began = time.perf_counter()
        call()
        wait(runtime)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:])


def wait(runtime: Runtime) -> None:
    """Sync with the device."""
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)


def network_of(name: str, options: argparse.Namespace) -> Backbone:
    """A network with random weights, whose arithmetic is the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return backbones.create(name, num_classes=CLASSES, weights="none", image_size=options.image_size)


def images_of(options: argparse.Namespace) -> np.ndarray:
    """Random images, uint8 ``[n, S, S, 3]``."""
    shape = (min(UNIQUE, options.images), options.image_size, options.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def measure(name: str, card: Card, config: TrainConfig, runtime: Runtime, options: argparse.Namespace) -> None:
    """Print a row for each depth and loop."""
    backbone = network_of(name, options)
    deepest, images = len(backbone.layer_groups), images_of(options)
    assert isinstance(backbone.preprocessing, Preprocessing)
    backbone.module.to(runtime.device).to(memory_format=runtime.memory_format).eval()
    whole = RepeatedImages(images, options.images, backbone.preprocessing, runtime)
    for depth in (0, deepest // 2, deepest):
        inputs: Inputs = whole
        if depth:
            inputs = Repeated(passed(backbone, whole, depth, len(images), config, runtime), options.images, depth)
        train(backbone, name, depth, inputs, card, config, runtime, options)
        if runtime.device.type == "cuda" and depth < deepest:
            compiled = config.model_copy(update={"compile": True, "epochs": 2})  # the first epoch compiles
            train(backbone, name, depth, inputs, card, compiled, runtime, options, what="training, compiled")
        print_row(name, depth, "evaluation", *evaluated(backbone, inputs, card, config, runtime, options))
    print_row(name, deepest // 2, "fill", *filled(backbone, whole, deepest // 2, card, config, runtime, options))


@torch.inference_mode()
def passed(backbone: Backbone, whole: Inputs, depth: int, count: int, config: TrainConfig, runtime: Runtime) -> Tensor:
    """Activations of the distinct images at a depth."""
    prefix, parts = section(backbone, 0, depth), []
    for rows in np.array_split(np.arange(count), max(1, count // config.batch_size)):
        with runtime.autocast():
            parts.append(prefix(whole.prepare(whole.read(rows, 0), rows, 0)))
    return torch.cat(parts).clone()


def train(
    backbone: Backbone,
    name: str,
    depth: int,
    inputs: Inputs,
    card: Card,
    config: TrainConfig,
    runtime: Runtime,
    options: argparse.Namespace,
    what: str = "training",
) -> None:
    """Train epochs of some seconds each, after one for warm-up."""
    rows = min(len(inputs), 4 * config.batch_size)
    rates, checkpoints = [], list[_Timed]()
    for number in range(3):
        part = _First(inputs, rows)
        with tempfile.TemporaryDirectory() as folder, counted_waits(runtime) as waits:
            kept = _Timed(Path(folder), keep=1, maximise=True)
            result = fit(
                backbone,
                partial(_both, part, _First(inputs, min(len(inputs), 2 * config.batch_size))),
                hyperparameters=Hyperparameters(name, depth, 1e-3, 0.01, 1.0, "adamw", batch_norm="frozen_eval"),
                config=config,
                metric="accuracy",
                runtime=runtime,
                checkpoints=kept,
                seed=0,
                on_epoch=lambda _: Decision.CONTINUE,
            )
        rates.append(result.history[-1].metrics["train/rows_per_second"])
        checkpoints.append(kept)
        if number == 0:
            rows = min(
                len(inputs), max(rows, int(rates[0] * options.seconds / 2) // config.batch_size * config.batch_size)
            )
    floor, limit = floor_of(backbone, depth, inputs, card, config, runtime, training=True)
    print_row(name, depth, f"{what} ({waits.steps(config.epochs * rows / config.batch_size)})", rates[-1], floor, limit)
    written, held = (
        1000 * statistics.median(getattr(kept, which) for kept in checkpoints) for which in ("seconds", "held")
    )
    print(f"| {name} | {depth} | checkpoint | {written:.0f} ms | holds training up {held:.0f} ms | | |", flush=True)


def _both(train: Inputs, validation: Inputs, depth: int) -> tuple[Inputs, Inputs]:
    return train, validation


class _First:
    """The first rows of other inputs."""

    def __init__(self, inputs: Inputs, count: int) -> None:
        self._inputs, self.boundary, self.lengths = inputs, inputs.boundary, None
        self.labels = inputs.labels[:count]
        self.read, self.prepare = inputs.read, inputs.prepare

    def __len__(self) -> int:
        return len(self.labels)


class _Timed(CheckpointFolder):
    """Measures how long a checkpoint takes to reach the disk, and how long it blocks training."""

    seconds = held = began = 0.0

    def keep(self, checkpoint: Any) -> None:
        """See the base class."""
        self.began = time.perf_counter()
        super().keep(checkpoint)
        self.held = max(self.held, time.perf_counter() - self.began)

    def _write(self, checkpoint: Any, target: Path) -> None:
        super()._write(checkpoint, target)
        self.seconds = max(self.seconds, time.perf_counter() - self.began)


class counted_waits:  # noqa: N801  a context manager
    """Count host syncs with a GPU by PyTorch's own warnings; unknown on a CPU."""

    def __init__(self, runtime: Runtime) -> None:
        self._on_gpu = runtime.device.type == "cuda"
        self._seen: list[warnings.WarningMessage] = []

    def __enter__(self) -> "counted_waits":
        self._catch = warnings.catch_warnings(record=True)
        self._seen = self._catch.__enter__() or []
        warnings.simplefilter("always")
        if self._on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *error: object) -> None:
        if self._on_gpu:
            torch.cuda.set_sync_debug_mode("default")
        self._catch.__exit__(None, None, None)

    def steps(self, steps: float) -> str:
        """Describe the count."""
        if not self._on_gpu:
            return "waits not counted"
        waits = sum("synchronizing" in str(each.message) for each in self._seen)
        return f"{waits} waits in {steps:.0f} steps"


def evaluated(
    backbone: Backbone, inputs: Inputs, card: Card, config: TrainConfig, runtime: Runtime, options: argparse.Namespace
) -> tuple[float, float, str]:
    """Images per second of evaluation, the limit, and the limiting factor."""
    part = _First(inputs, min(len(inputs), (8 if options.tiny else 40) * config.batch_size))
    seconds = seconds_of(lambda: predict(backbone, part, runtime, config.batch_size), runtime, rounds=2)
    return len(part) / seconds, *floor_of(backbone, inputs.boundary, inputs, card, config, runtime, training=False)


def filled(
    backbone: Backbone,
    whole: Inputs,
    boundary: int,
    card: Card,
    config: TrainConfig,
    runtime: Runtime,
    options: argparse.Namespace,
) -> tuple[float, float, str]:
    """Images per second of filling the store, the limit, and the limiting factor."""
    part = _First(whole, min(len(whole), (2 if options.tiny else 16) * config.batch_size))
    assert isinstance(backbone.preprocessing, Preprocessing)
    kinds: dict[torch.dtype | None, StoredType] = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
    kind = kinds.get(runtime.autocast_dtype, "float32")
    key = ActivationKey(
        "benchmark", "train", "plain", backbone.name, "none", boundary, backbone.preprocessing, str(runtime), kind, ""
    )
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        refused = fill(
            ActivationStore(Path(folder), budget=None),
            backbone,
            part,
            0,
            {boundary: key},
            runtime,
            batch_size=config.batch_size,
        )
        seconds = time.perf_counter() - began
    assert not refused, refused
    return len(part) / seconds, *floor_of(backbone, 0, whole, card, config, runtime, training=False, stop=boundary)


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes that operations read and write separately, as without a compiler; views move nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            for each in tree_leaves((args, kwargs, found)):
                self.bytes += each.numel() * each.element_size() if isinstance(each, Tensor) else 0
        return found


def floor_of(
    backbone: Backbone,
    start: int,
    inputs: Inputs,
    card: Card,
    config: TrainConfig,
    runtime: Runtime,
    *,
    training: bool,
    stop: int | None = None,
) -> tuple[float, str]:
    """The card's limit in images per second, and its factor: operations of one batch, or bytes to move."""
    rows = np.arange(min(config.batch_size, len(inputs)))
    part = section(backbone, start, stop) if start or stop else backbone.module
    batch = inputs.prepare(inputs.read(rows, 0), rows, 0)
    parameters = [each for each in part.parameters() if each.requires_grad]
    grad = torch.set_grad_enabled(training)
    with _Traffic() as traffic, FlopCounterMode(display=False) as counter, runtime.autocast(), grad:
        answers = part(batch)
        if training and answers.requires_grad:
            answers.float().sum().backward()
    for each in parameters:
        each.grad = None
    seconds, limit = card.floor(counter.get_total_flops(), traffic.bytes)
    return len(rows) / seconds, limit


def print_row(name: str, depth: int, what: str, rate: float, floor: float, limit: str) -> None:
    """One line of the table."""
    print(f"| {name} | {depth} | {what} | {rate:,.0f} | {floor:,.0f} | {rate / floor:.0%} | {limit} |", flush=True)


class _Model:
    """A model for the server's batcher."""

    def __init__(self, backbone: Backbone, runtime: Runtime) -> None:
        self._backbone, self._runtime = backbone, runtime
        assert isinstance(backbone.preprocessing, Preprocessing)
        self._size = backbone.preprocessing.image_size
        self._inputs = ImageInputs(
            np.zeros((1, 1, 1, 3), np.uint8), np.zeros(1, np.int64), backbone.preprocessing, runtime
        )

    def prepare(self, item: bytes) -> np.ndarray:
        """Decode."""
        return np.asarray(Image.open(io.BytesIO(item)).convert("RGB").resize((self._size, self._size)))

    @torch.inference_mode()
    def answers(self, prepared: Sequence[np.ndarray]) -> list[list[float]]:
        """One forward pass."""
        batch = self._inputs.prepare(torch.from_numpy(np.stack(prepared)), np.arange(len(prepared)), 0)
        with self._runtime.autocast():
            found: list[list[float]] = self._backbone.module(batch).float().softmax(1).tolist()
        return found


async def serve(name: str, runtime: Runtime, options: argparse.Namespace) -> None:
    """Clients in this process that each request one image after another, without HTTP and parsing."""
    from thawline.serving.batcher import Batcher

    backbone = network_of(name, options)
    backbone.module.to(runtime.device).to(memory_format=runtime.memory_format).eval()
    model: Any = _Model(backbone, runtime)
    buffer = io.BytesIO()
    Image.fromarray(images_of(options)[0]).save(buffer, "JPEG")
    item, each = buffer.getvalue(), 4 if options.tiny else 40
    for clients in (1, 4) if options.tiny else (1, 32, 256):
        batcher = Batcher(max_batch=64, max_delay=0.002, max_waiting=4096, on_batch=lambda size, seconds: None)
        running = asyncio.create_task(batcher.run())
        taken: list[float] = []

        async def ask(batcher: Any = batcher, taken: list[float] = taken) -> None:
            for _ in range(each):
                began = time.perf_counter()
                await batcher.classify(model, [item])
                taken.append(time.perf_counter() - began)

        await batcher.classify(model, [item])
        began = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(clients)))
        seconds = time.perf_counter() - began
        running.cancel()
        batcher.close()
        middle, late = (1000 * float(np.quantile(taken, share)) for share in (0.5, 0.95))
        print(f"| {name} | {clients} | {len(taken) / seconds:,.0f} | {middle:.1f} | {late:.1f} |", flush=True)


if __name__ == "__main__":
    main()
