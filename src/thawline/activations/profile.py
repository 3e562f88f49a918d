"""Measure a backbone's costs on this machine with a few batches of the real data, in a few seconds."""

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thawline.activations.plan import Compilation, Profile
from thawline.activations.store import StoredType
from thawline.backbones import Backbone, Section, section, sections
from thawline.config import BatchNorm, TrainConfig
from thawline.freezing import freeze_to, train_mode
from thawline.training import Hyperparameters, Inputs, Runtime, batches, runtime_for
from thawline.training.compiled import Compiled
from thawline.training.optim import build_optimizer, is_fused
from thawline.training.resident import room_on
from thawline.training.runtime import on_device

__all__ = ["profile"]

_MODE_ROWS = 4
"""Number of rows for choosing precision and memory format. For SqueezeNet, ResNet-18, MobileNetV3, EfficientNet-Lite0
and a ViT on a CPU, the choice is the same as with 8 rows, in half the time, for which every search waits."""
_SHORTER_PRECISION_GAIN, _OTHER_ORDER_GAIN = 1.3, 1.15
"""Minimum speed-up for choosing a different precision or memory format: a choice by a few per cent would vary between
runs, and with it the last digits of all results. bf16 costs more digits."""
_FAR_SLOWER = 4
"""A way whose first run takes this many times as long as the usual one is not run again, nor tried in another memory
format: bf16 without support by the CPU is ten times slower in depthwise convolutions, and measuring it took half of the
profile's time. A first run takes up to twice as long as later ones."""
_PASS_SECONDS, _CPU_ROWS = 0.5, 16
"""Maximum duration of one pass through the network, and its rows on a CPU: with 16, the time per row is within 5 % of
that with 32; with 8 it is up to 50 % longer in the last groups of a ResNet-18, whose maps are small."""
_TYPES: dict[torch.dtype, StoredType] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
_DISK_SAMPLE = 16 * 2**20


def profile(
    make_backbone: Callable[[], Backbone],
    make_inputs: Callable[[Runtime], Inputs],
    hyperparameters: Hyperparameters,
    config: TrainConfig,
    folder: Path,
) -> Profile:
    """Measure one backbone.

    Args:
        make_backbone: builds the backbone; its time counts, as every trial builds one.
        make_inputs: returns training images or tokens for a runtime.
        hyperparameters: hyperparameters of any trial; only the optimizer and the batch-norm setting matter.
        config: ``auto`` in ``precision`` and ``channels_last`` is resolved here, on a CPU by measurement.
        folder: a folder on the disk for checkpoints and activations.
    """
    started = time.perf_counter()
    backbone = make_backbone()
    start_seconds = time.perf_counter() - started
    batch_norm = hyperparameters.batch_norm
    runtime, input_seconds = _fastest(backbone, make_inputs, config, batch_norm)
    most = config.batch_size if runtime.device.type != "cpu" else min(config.batch_size, _CPU_ROWS)
    count = int(np.clip(_PASS_SECONDS / input_seconds, 2, most))
    inputs = make_inputs(runtime)
    rows = _typical(inputs, count)
    with _settled(backbone, runtime, batch_norm):
        forward, passed = _forward(backbone, inputs, rows, runtime, config.exact)
        train_mode(backbone, 0, batch_norm=batch_norm)
        training = _training(backbone, passed, runtime, config.exact)
        groups = [*backbone.layer_groups, backbone.head]
        named = dict(backbone.module.named_parameters())
        parameters = [sum(named[name].numel() for name in group.tensors if name in named) for group in groups]
        activations = passed[1:]
        return Profile(
            precision=runtime.precision,
            channels_last=runtime.channels_last,
            groups=tuple(group.name for group in backbone.layer_groups),
            forward=tuple(forward),
            training=tuple(training),
            parameters=tuple(parameters),
            numbers=tuple(_numbers(batch, inputs.lengths is not None) for batch in activations),
            computed_as=tuple(_TYPES[batch.dtype] for batch in activations),
            largest=tuple(float(batch.abs().max()) for batch in activations),
            input_seconds=_median(lambda: _read(inputs, rows, runtime), runtime) / len(rows),
            step_seconds=_step_seconds(backbone, hyperparameters, config, runtime) / sum(parameters),
            read_bytes_per_second=_read_speed(activations[0], runtime),
            resident_bytes=room_on(runtime.device),
            resident_bytes_per_second=_resident_speed(activations[0], runtime),
            write_bytes_per_second=_write_speed(folder),
            start_seconds=start_seconds,
            **(_compilation(backbone, passed[0], runtime) if config.compile else {}),
        )


def _fastest(
    backbone: Backbone, make_inputs: Callable[[Runtime], Inputs], config: TrainConfig, batch_norm: BatchNorm
) -> tuple[Runtime, float]:
    """The fastest runtime for training the whole network, and its seconds per row."""
    usual = runtime_for(config)
    if not any(parameter.ndim == 4 for parameter in backbone.module.parameters()):  # without convolutions
        usual = replace(usual, channels_last=False)
    measured: dict[Runtime, float] = {}
    for runtime in _ways(usual, config):
        usual_order = replace(runtime, channels_last=usual.channels_last)
        if measured.get(usual_order, 0.0) > _FAR_SLOWER * measured.get(usual, float("inf")):
            continue
        with _settled(backbone, runtime, batch_norm):
            inputs = make_inputs(runtime)
            ((_, batch),) = batches(inputs, [_typical(inputs, _MODE_ROWS)], 0, runtime)
            train_mode(backbone, 0, batch_norm=batch_norm)
            whole = section(backbone, 0, exact=config.exact)
            hopeless = measured.get(usual, float("inf")) * len(batch)
            seconds = _median(lambda: _train(whole, batch, runtime), runtime, repeats=2, hopeless=hopeless)  # noqa: B023
            measured[runtime] = seconds / len(batch)
    gains = {
        runtime: measured[usual] / seconds
        for runtime, seconds in measured.items()
        if measured[usual] / seconds
        > (_OTHER_ORDER_GAIN if runtime.autocast_dtype == usual.autocast_dtype else _SHORTER_PRECISION_GAIN)
    }
    chosen = max(gains, key=gains.__getitem__, default=usual)
    return chosen, measured[chosen]


def _ways(usual: Runtime, config: TrainConfig) -> list[Runtime]:
    """Combinations of precision and memory format to try; on GPUs the choice of ``runtime_for`` is known to be fast."""
    free = usual.device.type == "cpu" and not config.exact
    types = [usual.autocast_dtype]
    if free and config.precision == "auto":
        types.append(torch.bfloat16)
    orders = [True, False] if free and usual.channels_last and config.channels_last == "auto" else [usual.channels_last]
    return [replace(usual, autocast_dtype=kind, channels_last=order) for kind, order in product(types, orders)]


def _typical(inputs: Inputs, count: int) -> np.ndarray:
    """Rows to measure with: the first images, or texts of about the mean length, which have about the mean cost."""
    if inputs.lengths is None:
        return np.arange(min(count, len(inputs)))
    return np.sort(np.argsort(np.abs(inputs.lengths - inputs.lengths.mean()), kind="stable")[:count])


def _numbers(batch: Tensor, is_of_texts: bool) -> int:
    """Number of stored values per row, without the channel that marks a text's tokens."""
    per_row = batch[0].numel()
    return per_row - batch.shape[1] if is_of_texts and batch.ndim == 3 else per_row


@contextmanager
def _settled(backbone: Backbone, runtime: Runtime, batch_norm: BatchNorm) -> Iterator[None]:
    """Thaw the backbone as in a trial at depth 0, on the device and in the memory format of ``runtime``."""
    backbone.module.to(runtime.device).to(memory_format=runtime.memory_format)
    freeze_to(backbone, 0, batch_norm=batch_norm)
    yield
    backbone.module.zero_grad(set_to_none=True)


def _forward(
    backbone: Backbone, inputs: Inputs, rows: np.ndarray, runtime: Runtime, exact: bool
) -> tuple[list[float], list[Tensor]]:
    """Seconds per row for each group and the head, and the input of each."""
    backbone.module.eval()
    ((_, batch),) = batches(inputs, [rows], 0, runtime)
    seconds, passed = [], [batch]
    with torch.inference_mode():
        for part in _parts(backbone, exact):
            seconds.append(_median(lambda: _run(part, passed[-1], runtime), runtime) / len(batch))  # noqa: B023
            passed.append(_run(part, passed[-1], runtime))
    return seconds, passed[:-1]


def _training(backbone: Backbone, passed: list[Tensor], runtime: Runtime, exact: bool) -> list[float]:
    """Seconds per row for forward and backward through each group and the head, in their current mode."""
    return [
        _median(lambda: _train(part, batch, runtime), runtime) / len(batch)  # noqa: B023
        for part, batch in zip(_parts(backbone, exact), passed, strict=True)
    ]


def _parts(backbone: Backbone, exact: bool) -> Sequence[Section]:
    """Each layer group and, finally, the head."""
    deepest = len(backbone.layer_groups)
    return sections(backbone, [*pairwise(range(deepest + 1)), (deepest, None)], exact=exact)


def _run(part: nn.Module, batch: Tensor, runtime: Runtime) -> Tensor:
    with runtime.autocast():
        result: Tensor = part(batch)
    return result


def _train(part: nn.Module, batch: Tensor, runtime: Runtime) -> None:
    # Cloned twice: inference tensors take no gradient, and in-place dropout would modify a leaf.
    if batch.is_floating_point():  # tokens take no gradient
        batch = batch.clone().requires_grad_().clone()
    result = _run(part, batch, runtime)
    result.backward(torch.ones_like(result))  # type: ignore[no-untyped-call]


def _compilation(backbone: Backbone, batch: Tensor, runtime: Runtime) -> dict[str, Any]:
    """The cost and speed-up of compiling everything, or why it cannot be compiled."""

    def train(network: nn.Module) -> None:  # images take no gradient
        result = _run(network, batch, runtime)
        result.backward(torch.ones_like(result))  # type: ignore[no-untyped-call]

    network = section(backbone, 0)
    eager = _median(lambda: train(network), runtime)
    problems: list[str] = []
    compiled = Compiled(network, len(batch), None, problems.append)
    started = time.perf_counter()
    train(compiled)
    if problems:
        return {"not_compiled": problems[0]}
    seconds = time.perf_counter() - started
    gain = eager / _median(lambda: train(compiled), runtime)
    return {"compilation": Compilation(seconds=seconds, gain=gain)}


def _read(inputs: Inputs, rows: np.ndarray, runtime: Runtime) -> None:
    for _ in batches(inputs, [rows], 0, runtime):
        pass


def _step_seconds(backbone: Backbone, hyperparameters: Hyperparameters, config: TrainConfig, runtime: Runtime) -> float:
    """Seconds of one optimizer step over everything, including clipping; at learning rate 0, to keep the weights."""
    parameters = {name: p for name, p in backbone.module.named_parameters() if p.grad is not None}
    at_no_rate, fused = replace(hyperparameters, learning_rate=0.0), is_fused(config, runtime)
    optimizer = build_optimizer(parameters, backbone, at_no_rate, fused=fused)

    def step() -> None:
        nn.utils.clip_grad_norm_(parameters.values(), config.gradient_clip or float("inf"))
        optimizer.step()

    return _median(step, runtime)


def _read_speed(batch: Tensor, runtime: Runtime) -> float:
    """Bytes per second from memory into a batch, as for stored activations in the page cache."""
    rows = batch.detach().float().cpu().contiguous()
    seconds = _median(lambda: on_device(rows[torch.randperm(len(rows))], runtime.device), runtime)
    return rows.nbytes / max(seconds, 1e-9)


def _resident_speed(batch: Tensor, runtime: Runtime) -> float | None:
    """The same for activations cached on a GPU; ``None`` on a CPU."""
    if runtime.device.type != "cuda":
        return None
    rows = batch.detach().float().contiguous()
    seconds = _median(lambda: rows[on_device(torch.randperm(len(rows)), runtime.device)], runtime)
    return rows.nbytes / max(seconds, 1e-9)


def _write_speed(folder: Path) -> float:
    """Bytes per second when writing to disk with a checksum."""
    data = os.urandom(_DISK_SAMPLE)
    folder.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            hashlib.sha256(data).digest()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    return _DISK_SAMPLE / _median(write, None)


def _median(
    run: Callable[[], object], runtime: Runtime | None, *, repeats: int = 3, hopeless: float = float("inf")
) -> float:
    """Median seconds of a few runs after a warm-up; stops after one that takes longer than ``hopeless``.

    The warm-up may take :data:`_FAR_SLOWER` times as long.
    """
    seconds: list[float] = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        run()
        if runtime is not None and runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)
        seconds.append(time.perf_counter() - started)
        if seconds[-1] > (hopeless if len(seconds) > 1 else _FAR_SLOWER * hopeless):
            break
    return statistics.median(seconds[1:] or seconds)
