"""Where a network can be cut in two: its graph of operations, traced once, without running it on real numbers.

A *cut* is an operation after which exactly one tensor is still needed. Everything up to it is a function from images
to that tensor, and everything after it is a function of that tensor alone, so the first part can be frozen, its results
can be stored, and the two parts one after the other give the very same numbers as the whole.

The idea of cutting at single live values comes from register allocation in compilers ("liveness"); tracing comes from
``torch.fx``, as in torchvision's feature extraction.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Step", "build_without_memory", "steps_of", "trace"]


class _EmptyOnMeta(TorchFunctionMode):
    """Give every ``torch.empty`` no storage: all weights of all torchvision models are made by it.

    ``with torch.device("meta")`` would be shorter but takes everything, also the small tensors that regnets compute
    their widths from, and so fails on 15 of the 80 models.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def build_without_memory(builder: Callable[[], nn.Module]) -> nn.Module:
    """What ``builder`` builds, in evaluation mode, with shapes but no numbers (PyTorch's ``meta`` device).

    Takes milliseconds and no memory where the real network takes seconds and gigabytes. The global random state is
    left as it was.
    """
    with torch.random.fork_rng(devices=[]), _EmptyOnMeta():
        module = builder()
    return module.to("meta").eval()


class _Tracer(fx.Tracer):
    """Takes the modules of ``torchvision.ops`` (stochastic depth, deformable convolution) as one operation each."""

    # Buffers stay named in the graph; without it, what is computed from them alone becomes an attribute of the module.
    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__(autowrap_modules=(math, torchvision.ops))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.startswith("torchvision.ops.") and not isinstance(m, nn.Sequential)
        return ours or super().is_leaf_module(m, module_qualified_name)


def trace(module: nn.Module) -> fx.Graph:
    """The operations of ``module`` in the order in which they run, in the mode that it is in."""
    return _Tracer().trace(module)


def _path_of(node: fx.Node) -> str:
    """Path of the module that an operation is, or, for a bare one (``flatten``), of that whose ``forward`` has it."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


@dataclass(frozen=True)
class Step:
    """One operation of the network."""

    node: fx.Node
    path: str
    """Path of the module that it belongs to."""
    tensors: tuple[str, ...]
    """Parameters and buffers that it is the first to use."""
    shape: torch.Size | None
    """Shape of its result for one image, None if that is not one floating-point tensor."""
    is_cut: bool
    """Whether the network can be cut after it."""
    is_tensor: bool
    """Whether its result is a tensor, or several: not a size, or a check of one."""


def steps_of(module: nn.Module, image_size: int) -> list[Step]:
    """All operations of ``module``, in the order in which they run.

    Args:
        module: on the ``meta`` device, in evaluation mode; images ``[N, 3, H, W]`` to logits ``[N, classes]``.
        image_size: height and width of the images in pixels.

    Raises:
        Exception: whatever the network raises for images of that size.
    """
    graph = trace(module)
    recorder = _Recorder(fx.GraphModule(module, graph))
    with torch.no_grad():
        recorder.run(torch.empty(1, 3, image_size, image_size, device="meta"))

    nodes = [node for node in graph.nodes if node.op not in {"get_attr", "output"}]
    position = {node: i for i, node in enumerate(nodes)}
    end = len(nodes)
    # Position of the last operation that needs each result; the network's output is needed to the end.
    last_use = [max((position.get(user, end) for user in node.users), default=i) for i, node in enumerate(nodes)]

    steps = []
    seen: set[str] = set()
    needed_until = -1  # by the results before this one
    for i, node in enumerate(nodes):
        tensors = tuple(dict.fromkeys(name for name in _tensors_of(module, node) if name not in seen))
        seen.update(tensors)
        value = recorder.values[node]
        alone = needed_until <= i < last_use[i] and node.op != "placeholder"
        # An operation in place, however far behind and through whatever view, would overwrite a stored result.
        shape = value.shape if isinstance(value, Tensor) and value.is_floating_point() else None
        is_cut = alone and shape is not None and value._version == recorder.versions[node]
        steps.append(Step(node, _path_of(node), tensors, shape, is_cut, _is_tensor(value)))
        needed_until = max(needed_until, last_use[i])
    return steps


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps every result with its version: PyTorch counts how often each storage was written to."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}
        self.versions: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.values[n] = result
        self.versions[n] = result._version if isinstance(result, Tensor) else 0
        return result


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(map(_is_tensor, value)))


def _tensors_of(module: nn.Module, node: fx.Node) -> list[str]:
    """Names of the parameters and buffers that an operation uses: its module's, or those that it is called with."""
    names = []
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        names += [f"{node.target}.{name}" for name in called.state_dict(keep_vars=True)]
    names += [str(source.target) for source in node.all_input_nodes if source.op == "get_attr"]
    return names
