"""A simulated GPU: CPU tensors that pretend to be on ``cuda:0``.

Two PyTorch modes intercept every call (``TorchFunctionMode``) and every operation (``TorchDispatchMode``). They track
which storages are "on the device", and

* refuse operations on tensors of different devices, like CUDA, except for zero-dimensional host tensors;
* answer ``tensor.device`` and similar, so that code takes the same branches as on a GPU;
* fill a non-blocking copy to the host with garbage until a sync with a later event;
* record each host sync with the line of Thawline that caused it.

Syncs are caused by values on the host (``.item()``, ``float(…)``, ``.tolist()``), data-dependent sizes (``nonzero``, a
boolean mask as an index), and blocking copies: without ``non_blocking``, or from unpinned memory. Waiting for an event
is not counted, as code does that after giving the device more work.

It computes real values with CPU kernels. It does not model time, memory, or syncs within CUDA's kernels.
"""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import thawline
from thawline.training import Runtime

__all__ = ["DEVICE", "PretendedGpu", "pretended"]

DEVICE = torch.device("cuda", 0)
_HOST = torch.device("cpu")
_OURS = str(Path(thawline.__file__).parent)
_NOT_ARRIVED = 113
"""Content of a copy before a sync."""
_COUNTING = ("nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal", "is_nonzero")
"""Operations whose result, or its size, is needed on the host."""
_COPIES = ("copy_", "_to_copy", "set_")
_INDEXING = ("index", "index_put", "index_put_")


class _Marks:
    """Marked storages. Weak references detect reuse of their addresses."""

    def __init__(self) -> None:
        self._marked: dict[int, StorageWeakRef] = {}

    def add(self, tensor: Tensor) -> Tensor:
        storage = _plain(tensor).untyped_storage()
        self._marked[storage._cdata] = StorageWeakRef(storage)
        return tensor

    def remove(self, tensor: Tensor) -> None:
        self._marked.pop(_plain(tensor).untyped_storage()._cdata, None)

    def __contains__(self, tensor: Tensor) -> bool:
        return _plain(tensor).untyped_storage()._cdata in self._marked


def _plain(tensor: Tensor) -> Tensor:
    """Remove the wrappers of ``vmap``."""
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor


class PretendedGpu:
    """The state of the simulated device, and counts of syncs."""

    runtime = Runtime(DEVICE, None, channels_last=True)

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        """Number of host syncs, by kind and line of Thawline."""
        self.behind: Counter[str] = Counter()
        """The same in threads other than the first."""
        self.arriving: list[tuple[Tensor, Tensor]] = []
        """Copies to the host without a sync yet, and their final content."""
        self._arrivals = threading.Lock()
        """Held where ``arriving`` changes: one thread copies while another waits for earlier copies."""
        self._marked, self._pinned = _Marks(), _Marks()
        self._calls = threading.local()

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the device."""
        return tensor in self._marked

    def put(self, tensor: Tensor) -> Tensor:
        """A copy on the device."""
        return self._marked.add(tensor.detach().clone())

    @contextmanager
    def modes(self) -> Iterator[None]:
        """Intercept every operation of this thread."""
        with _Calls(self), _Operations(self):
            yield

    def counted(self, run: Callable[[], object]) -> "Counter[str]":
        """Count the syncs of a call in this thread."""
        self.waits.clear()
        with self.modes():
            run()
        return Counter(self.waits)

    # ------------------------------------------------------------------------------------------------------ calls

    def called(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Handle one PyTorch call."""
        if func in _ANSWERS and self.holds(args[0]):
            return _ANSWERS[func]
        name = getattr(func, "__name__", "")
        if name in ("to", "cpu", "cuda"):
            return self._moved(name, func, args, kwargs)
        if name in ("pin_memory", "is_pinned"):
            return self._pinned.add(args[0].clone()) if name == "pin_memory" else args[0] in self._pinned
        if name == "record_stream":
            return None
        on_device = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor) and self.holds(each)]
        if on_device and name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if on_device and name == "tolist" and args[0].ndim:  # for a single value PyTorch calls item() itself
            self.waited("values on the host")
        if name in ("__getitem__", "__setitem__") and self.holds(args[0]):
            self._indexed(args[1])
        place, pinned = kwargs.pop("device", None), kwargs.pop("pin_memory", False)
        if place is not None:
            kwargs["device"] = _HOST
        is_there = torch.device(place).type == "cuda" if place is not None else bool(on_device)
        with self._making(is_there):
            made = func(*args, **kwargs)
        if isinstance(made, Tensor) and place is not None and is_there:
            if name in ("tensor", "as_tensor") and not on_device:
                self.waited("copy to the device")
            made = self._marked.add(made if name != "as_tensor" else made.clone())
        return self._pinned.add(made) if pinned else made

    def _moved(self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensor, *rest = args
        was_there = self.holds(tensor)
        copies = kwargs.pop("copy", False)
        if name == "cuda":
            place, dtype, non_blocking, order = DEVICE, None, kwargs.get("non_blocking", False), None
        elif name == "cpu":
            place, dtype, non_blocking, order = _HOST, None, False, None
        elif rest and isinstance(rest[0], Tensor):
            place = DEVICE if self.holds(rest[0]) else _HOST
            dtype, non_blocking, order = rest[0].dtype, kwargs.get("non_blocking", False), None
        else:
            place, dtype, non_blocking, order = torch._C._nn._parse_to(*rest, **kwargs)
        is_there = was_there if place is None else place.type == "cuda"
        with self._making(was_there):
            moved = tensor.to(
                _HOST,
                tensor.dtype if dtype is None else dtype,
                copy=copies or is_there != was_there,
                memory_format=torch.preserve_format if order is None else order,
            )
        if is_there != was_there:
            self._copied(tensor, moved, is_there=is_there, non_blocking=non_blocking)
        return moved

    def _copied(self, source: Tensor, moved: Tensor, *, is_there: bool, non_blocking: bool) -> None:
        """Copy a tensor between host and device."""
        if is_there:
            self._marked.add(moved)
            if not (non_blocking and source in self._pinned):
                self.waited("copy to the device")
            return
        self._marked.remove(moved)
        self.left(source)
        if non_blocking:  # PyTorch uses pinned memory for it
            self._pinned.add(moved)
            content = moved.clone()
            moved.fill_(_NOT_ARRIVED)
            with self._arrivals:
                self.arriving.append((moved, content))
        else:
            self.waited("copy to the host")

    def arrived(self, copies: list[tuple[Tensor, Tensor]]) -> None:
        """Complete these copies to the host after a sync."""
        with torch.inference_mode():
            for moved, content in copies:
                moved.copy_(content)
        with self._arrivals:
            self.arriving = [each for each in self.arriving if not any(each is copy for copy in copies)]

    def left(self, tensor: Tensor) -> None:
        """Called when a tensor is copied to the host, with or without a sync; tests may replace it."""

    def _indexed(self, index: Any) -> None:
        """Count the transfer of lists or host tensors that index a tensor on the device."""
        parts = index if isinstance(index, tuple) else (index,)
        if any(
            isinstance(part, list | np.ndarray) or (isinstance(part, Tensor) and part.ndim and not self.holds(part))
            for part in parts
        ):
            self.waited("copy to the device")

    # ------------------------------------------------------------------------------------------------- operations

    def operated(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Handle one core operation of the forward or backward pass."""
        name = func.overloadpacket.__name__
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        there = [tensor for tensor in given if self.holds(tensor)]
        here = [tensor for tensor in given if tensor.ndim and not self.holds(tensor)]
        if there and here and not self._may_mix(name, args):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"(in {name}, at {_line()})"
            )
        if name == "copy_" and self.holds(args[0]) != self.holds(args[1]):
            self._copied_over(args[0], args[1], non_blocking=(len(args) > 2 and args[2]) or kwargs.get("non_blocking"))
        if there and name == "_local_scalar_dense":
            self.waited("value on the host")
        if there and (name in _COUNTING or (name in _INDEXING and self._by_mask(name, args))):
            self.waited(f"number of places ({name})")
        made = func(*args, **kwargs)
        if name not in _COPIES and (there or (not given and getattr(self._calls, "there", False))):
            known = {tensor.untyped_storage()._cdata for tensor in given}
            for each in tree_leaves(made):
                if isinstance(each, Tensor) and each.untyped_storage()._cdata not in known:
                    self._marked.add(each)
        elif name == "_to_copy" and there:
            self._marked.add(made)
        return made

    def _may_mix(self, name: str, args: tuple[Any, ...]) -> bool:
        """Whether devices may differ: in copies, and in indexing from the host (already counted)."""
        return name in _COPIES or (name in _INDEXING and self.holds(args[0]))

    def _by_mask(self, name: str, args: tuple[Any, ...]) -> bool:
        masked = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1])
        # Writing a number at a mask's positions does not need their count.
        return masked and not (name != "index" and args[2].ndim == 0 and not self.holds(args[2]))

    def _copied_over(self, target: Tensor, source: Tensor, *, non_blocking: bool | None) -> None:
        on_host = source if self.holds(target) else target
        if not (non_blocking and on_host in self._pinned):
            self.waited("copy to the device" if self.holds(target) else "copy to the host")

    # -------------------------------------------------------------------------------------------------------- notes

    def waited(self, kind: str) -> None:
        """Record a host sync."""
        counter = self.waits if threading.current_thread() is threading.main_thread() else self.behind
        counter[f"{kind} at {_line()}"] += 1
        self.arrived(list(self.arriving))

    @contextmanager
    def _making(self, there: bool) -> Iterator[None]:
        """Set the device of tensors created within a call: that of the call's tensors."""
        before, self._calls.there = getattr(self._calls, "there", False), there
        try:
            yield
        finally:
            self._calls.there = before


_ANSWERS: dict[Any, Any] = {
    Tensor.device.__get__: DEVICE,  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__: True,  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: False,  # type: ignore[attr-defined]
    Tensor.get_device: 0,
}
"""Attributes of a tensor on the device."""


class _Calls(TorchFunctionMode):
    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._gpu.called(func, args, dict(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._gpu.operated(func, args, dict(kwargs or {}))


def _line() -> str:
    """The innermost line of Thawline, or else of the test."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_OURS) or (Path(file).name.startswith("test_") and "tests" in file):
            return f"{Path(file).name}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


class _Event:
    """The used part of CUDA's event interface."""

    def __init__(self, gpu: PretendedGpu) -> None:
        self._gpu = gpu
        self._before: list[tuple[Tensor, Tensor]] = []

    def record(self, stream: Any = None) -> None:
        """Record the copies so far."""
        self._before = list(self._gpu.arriving)

    def synchronize(self) -> None:
        """Complete these copies; not counted, see above."""
        self._gpu.arrived(self._before)


@contextmanager
def pretended(patch: pytest.MonkeyPatch, *, free: int = 10**9) -> Iterator[PretendedGpu]:
    """Simulate the device with this many free bytes, also for threads that start within the block.

    Args:
        patch: the test's monkeypatch, for replacing parts of ``torch.cuda``.
        free: number of free bytes.
    """
    gpu = PretendedGpu()
    run, autocast, generators = threading.Thread.run, torch.autocast, torch.get_rng_state
    group = torch._C._group_tensors_by_device_and_dtype

    def run_with_it(thread: threading.Thread) -> None:
        with gpu.modes():
            run(thread)

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        """Group tensors by simulated device; foreach optimizers and clipping use C++ for this."""
        return {
            (found[0][0].device, kind): (found, at) for (_, kind), (found, at) in group(lists, with_indices).items()
        }

    with ExitStack() as stack:
        patch.setattr(threading.Thread, "run", run_with_it)
        patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", grouped)
        patch.setattr(torch, "autocast", lambda kind, **more: autocast("cpu", **more))
        patch.setattr(torch.cuda, "get_rng_state", lambda device=None: generators())
        patch.setattr(torch.cuda, "set_rng_state", lambda state, device=None: None)
        patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free, free))
        patch.setattr(torch.cuda, "empty_cache", lambda: None)
        patch.setattr(torch.cuda, "Event", lambda **options: _Event(gpu))
        patch.setattr(torch.cuda, "current_stream", lambda device=None: SimpleNamespace(synchronize=lambda: None))
        stack.callback(patch.undo)
        yield gpu
