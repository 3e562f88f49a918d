"""The device and precision of training. The only module that modifies torch's global state."""

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thawline.config import TrainConfig
from thawline.exceptions import ConfigError

__all__ = [
    "HostCopy",
    "Runtime",
    "forget_peak_memory",
    "is_device_lost",
    "is_out_of_memory",
    "on_cpu",
    "on_device",
    "peak_memory",
    "random_states",
    "release_memory",
    "restore_random_states",
    "runtime_for",
    "set_up_process",
]


_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed")
"""Parts of error messages in lower case; CUDA libraries allocate memory themselves."""
_DEVICE_LOST = ("cuda error:", "hip error:", "device-side assert", "cudnn_status_execution_failed")


@dataclass(frozen=True)
class Runtime:
    """The device and precision of computations."""

    device: torch.device
    autocast_dtype: torch.dtype | None
    """``None`` computes in fp32."""
    channels_last: bool

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of images and convolution weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def needs_loss_scaling(self) -> bool:
        """Whether gradients would underflow without a loss scaler: only in fp16, because of its small range."""
        return self.autocast_dtype == torch.float16

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run the forward pass in :attr:`autocast_dtype`."""
        with torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None):
            yield

    @property
    def precision(self) -> str:
        """``fp32``, ``bf16`` or ``fp16``, as in :class:`thawline.config.TrainConfig`."""
        return {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.autocast_dtype]

    def __str__(self) -> str:
        return f"{self.device} {self.precision}"


def runtime_for(config: TrainConfig) -> Runtime:
    """Choose device and precision. Without measurements, ``auto`` is single precision with channels last on a CPU.

    Raises:
        ConfigError: if the device is not available, or does not support the precision.
    """
    device = _device(config.device)
    if config.exact:
        dtype = None
    elif config.precision == "auto":
        dtype = _fast_dtype(device)
    else:
        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    if dtype == torch.float16 and device.type != "cuda":
        raise ConfigError(f"train.precision=fp16 needs a CUDA device, but the device is {device}. Use fp32 or bf16.")
    return Runtime(device, dtype, config.channels_last is not False)


def set_up_process(*, threads: int | None, seed: int, exact: bool = True) -> None:
    """Seed this process, limit its CPU threads, and choose GPU kernels.

    On a CPU, the same seed and number of threads give bit-equal results. On CUDA, results may differ in the last bits
    between runs.

    Args:
        threads: number of CPU threads; ``None`` for torch's default.
        seed: seed of torch's generators.
        exact: on CUDA, whether to use cuDNN's deterministic kernels and full single precision. Some operations (the
            backward passes of interpolation and of some pooling) have no deterministic kernels. Otherwise cuDNN
            benchmarks its kernels, and single precision uses TF32.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not exact
    torch.backends.cudnn.deterministic = exact
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not exact
    # The fused attention of inference mode differs from that of training in the last bits.
    torch.backends.mha.set_fastpath_enabled(False)  # type: ignore[no-untyped-call,unused-ignore]


def release_memory() -> None:
    """Release unused memory: unreachable tensors, and the GPU memory reserved for them.

    Call it outside of an ``except`` block, whose traceback keeps tensors alive.
    """
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def on_device(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Copy an array or a CPU tensor to a device, without a sync: GPUs copy asynchronously from pinned memory."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class HostCopy:
    """An asynchronous copy of a tensor to the host: there is no sync with a GPU before :meth:`get`."""

    def __init__(self, tensor: Tensor) -> None:
        """Start the copy; a tensor on the host is not copied."""
        on_gpu = tensor.device.type == "cuda"
        self._tensor = tensor.to("cpu", non_blocking=on_gpu)  # to pinned memory if from a GPU
        self._arrived = torch.cuda.Event(blocking=True) if on_gpu else None  # type: ignore[no-untyped-call]
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def get(self) -> Tensor:
        """Wait for the copy and return it; from any thread."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor


def on_cpu(tensors: Mapping[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Start copying tensors to the CPU; the returned function waits for the contiguous copies.

    The copies have the current values, even if the tensors are modified meanwhile. If all are on the CPU, nothing is
    copied. Tensors of one type are transferred as one copy, which temporarily takes the same amount of memory on the
    device again.
    """
    given = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    there = {name: tensor for name, tensor in given.items() if tensor.device.type != "cpu"}
    if not there:
        return lambda: given
    copied = {name: tensor.clone() for name, tensor in given.items() if name not in there}
    of_type: dict[torch.dtype, list[str]] = {}
    for name, tensor in there.items():
        of_type.setdefault(tensor.dtype, []).append(name)
    flat = [(names, HostCopy(torch.cat([there[name].reshape(-1) for name in names]))) for names in of_type.values()]
    shapes = {name: tensor.shape for name, tensor in there.items()}

    def arrived() -> dict[str, Tensor]:
        moved = dict(copied)
        for names, copy in flat:
            parts = torch.split(copy.get(), [shapes[name].numel() for name in names])
            moved |= {name: part.reshape(shapes[name]) for name, part in zip(names, parts, strict=True)}
        return moved

    return arrived


def random_states(device: torch.device) -> dict[str, Tensor]:
    """States of the generators used in training, as uint8 tensors."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Undo :func:`random_states`. A checkpoint from another kind of device restores only the common generators."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def forget_peak_memory(device: torch.device) -> None:
    """Reset the counter of :func:`peak_memory`, between trials of one process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Peak memory of this process's tensors on a GPU, in bytes; ``None`` on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the device or the machine is out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _OUT_OF_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether an exception means that this process can no longer use its GPU; another process can."""
    named = isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _DEVICE_LOST)
    return named and not is_out_of_memory(error)


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda" and torch.cuda.is_available():  # allocating takes a context of 0.5 GB
            count = torch.cuda.device_count()
            if (device.index or 0) >= count:
                raise RuntimeError(f"there are {count} GPUs, numbered from 0.")
        else:
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"train.device={name} cannot be used: {reason} Use auto or cpu.") from None
    return device


def _fast_dtype(device: torch.device) -> torch.dtype | None:
    if device.type != "cuda":
        return None
    # bf16 without matrix units (before Ampere, compute capability 8.0) is emulated and slower than fp32.
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
