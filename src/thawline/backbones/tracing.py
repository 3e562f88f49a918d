"""Where a network can be cut in two: its graph of operations, traced once, without running it on real numbers.

A *cut* is an operation after which exactly one tensor is still needed. Everything up to it is a function from images
to that tensor, and everything after it is a function of that tensor alone, so the first part can be frozen, its results
can be stored, and the two parts one after the other give exactly the same numbers as the whole.

The idea of cutting at single live values comes from register allocation in compilers ("liveness"); tracing comes from
``torch.fx``, as in torchvision's feature extraction.
"""

import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from thawline.backbones._vision import torchvision

__all__ = ["COUNT", "Step", "forget_biases_on_load", "sizes_read_behind", "steps_of", "trace"]


COUNT = "count"
"""In place of a size: it is the number of images."""


class _Held(fx.Proxy):
    """A parameter or buffer while tracing. All but its numbers is known, and networks decide by it.

    (Is the table of positions of the right size? Where must another be made?) ``fx`` offers this by
    ``param_shapes_constant``, for parameters and their shape alone.
    """

    def __init__(self, held: fx.Proxy, tensor: Tensor) -> None:
        super().__init__(held.node, held.tracer)
        self.shape, self.dtype, self.device, self.ndim = tensor.shape, tensor.dtype, tensor.device, tensor.ndim

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return self.ndim

    def numel(self) -> int:
        return self.shape.numel()


class _Tracer(fx.Tracer):
    """Takes as one operation each what says of itself that it cannot be traced, or need not be.

    Those are the modules of ``torchvision.ops`` (stochastic depth, deformable convolution), and the modules and
    functions that timm registers as such (drop path, padding by the size of the image).
    """

    # Buffers stay named in the graph; without it, what is computed from them alone becomes an attribute of the module.
    proxy_buffer_attributes = True

    def __init__(self) -> None:
        # timm need not be installed, and where a network of it is traced, it is imported.
        layers = sys.modules.get("timm.layers")
        self._opaque = tuple(layers.get_notrace_modules()) if layers else ()
        functions = tuple(layers.get_notrace_functions()) if layers else ()
        super().__init__((math, torchvision.ops), functions)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """The images alone are an input; what else ``forward`` takes (an attention mask) stays at its default.

        As an input it would be one more value to pass on at every border.
        """
        _, images, *_ = inspect.signature(root_fn).parameters
        return root_fn, [self.root, self.create_proxy("placeholder", images, (), {})]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A parameter or buffer that is read by its own module."""
        found = super().getattr(attr, attr_val, parameter_proxy_cache)
        return _Held(found, attr_val) if isinstance(found, fx.Proxy) and isinstance(attr_val, Tensor) else found

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.startswith("torchvision.ops.") and not isinstance(m, nn.Sequential)
        return ours or isinstance(m, self._opaque) or super().is_leaf_module(m, module_qualified_name)


def trace(module: nn.Module) -> fx.Graph:
    """The operations of ``module`` in the order in which they run, in the mode that it is in."""
    _forget_attention_biases(module)
    try:
        return _Tracer().trace(module)
    finally:
        _forget_attention_biases(module)


def forget_biases_on_load(module: nn.Module) -> None:
    """LeViT of transformers keeps, in evaluation mode, attention biases that it computed once, also when others are
    loaded over those that they came from. timm's forgets them by itself."""
    for part in module.modules():
        if isinstance(getattr(part, "attention_bias_cache", None), dict):
            part.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
                lambda part, _: _forget_attention_biases(part)
            )


def _forget_attention_biases(module: nn.Module) -> None:
    """LeViT and its kin keep, in evaluation mode, biases that they computed once; while traced, symbols for them."""
    for part in module.modules():
        kept = getattr(part, "attention_bias_cache", None)
        if isinstance(kept, dict):
            kept.clear()


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
    is_given: bool
    """Whether its result is the same for all images of that size: a size, their number, or a table that is computed
    from these and buffers (rotary position embeddings). It need not be passed on."""
    value: Any
    """Of a size that is given: itself, or ``COUNT``."""


def steps_of(module: nn.Module, image_size: int) -> list[Step]:
    """All operations of ``module``, in the order in which they run.

    Args:
        module: on the ``meta`` device, in evaluation mode; images ``[N, 3, H, W]`` to logits ``[N, classes]``.
        image_size: height and width of the images in pixels.

    Raises:
        Exception: whatever tracing or the network raises for images of that size.
    """
    graph = trace(module)
    network = fx.GraphModule(module, graph)
    recorder = _run(network, 1, image_size)
    nodes = [node for node in graph.nodes if node.op not in {"get_attr", "output"}]
    # What a number of images changes is seen with another number; where no size is read, there is nothing to see.
    reads_sizes = any(_is_size(recorder.values[node]) for node in nodes)
    of_two = _run(network, 2, image_size) if reads_sizes else recorder
    given = _given(module, nodes, recorder.values, of_two.values)
    position = {node: i for i, node in enumerate(nodes)}
    end = len(nodes)
    # Position of the last operation that needs each result; the network's output is needed to the end.
    last_use = [
        i if node in given else max((position.get(user, end) for user in node.users), default=i)
        for i, node in enumerate(nodes)
    ]
    used = [_tensors_of(module, node) for node in nodes]
    trained = {name for name, _ in module.named_parameters()}
    last_use_of = {name: i for i, names in enumerate(used) for name in names if name in trained}

    steps = []
    seen: set[str] = set()
    needed_until = -1  # by the results before this one, and by parameters that a later operation shares
    for i, node in enumerate(nodes):
        tensors = tuple(dict.fromkeys(name for name in used[i] if name not in seen))
        seen.update(tensors)
        needed_until = max([needed_until, *(last_use_of.get(name, -1) for name in tensors)])
        value = recorder.values[node]
        alone = needed_until <= i < last_use[i] and node.op != "placeholder"
        # An operation in place, however much later and through whatever view, would overwrite a stored result.
        shape = value.shape if isinstance(value, Tensor) and value.is_floating_point() else None
        of_one_image = shape is not None and shape[:1] == (1,)  # not of the windows that it was taken apart into
        is_cut = alone and of_one_image and value._version == recorder.versions[node]
        size = None
        if node in given and not _is_tensor(value):
            size = value if value == of_two.values[node] else COUNT
        steps.append(Step(node, _path_of(node), tensors, shape, is_cut, _is_tensor(value), node in given, size))
        needed_until = max(needed_until, last_use[i])
    return steps


def sizes_read_behind(steps: Sequence[Step], end: int) -> dict[str, Any]:
    """Sizes found up to step ``end`` that later operations read, by the names of the operations that found them.

    They are read by these themselves, or to compute a table once more.
    """
    before = {step.node: step for step in steps[: end + 1] if step.is_given}
    waiting = [source for step in steps[end + 1 :] for source in step.node.all_input_nodes if source in before]
    reached: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            if before[node].is_tensor:
                waiting += [source for source in node.all_input_nodes if source in before]
    return {node.name: before[node].value for node in before if node in reached and not before[node].is_tensor}


def _given(
    module: nn.Module, nodes: Sequence[fx.Node], of_one: Mapping[fx.Node, Any], of_two: Mapping[fx.Node, Any]
) -> set[fx.Node]:
    """The operations whose result depends on the number of images and their size alone, not on what they show.

    Args:
        module: the network.
        nodes: its operations in the order in which they run.
        of_one: their results for one image.
        of_two: those for two.
    """
    parameters = {name for name, _ in module.named_parameters()}
    given: set[fx.Node] = set()
    for node in nodes:
        if _is_size(of_one[node]):
            if of_one[node] == of_two[node] or (of_one[node], of_two[node]) == (1, 2):
                given.add(node)
        elif node.op not in {"placeholder", "call_module"} and isinstance(of_one[node], Tensor):
            sources = [source for source in node.all_input_nodes if source not in given]
            if all(source.op == "get_attr" and str(source.target) not in parameters for source in sources):
                given.add(node)
    return given


def _is_size(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_size, value))
    return value is None or isinstance(value, bool | int | float | torch.dtype)


def _run(network: fx.GraphModule, count: int, image_size: int) -> "_Recorder":
    recorder = _Recorder(network)
    with torch.no_grad():
        recorder.run(torch.empty(count, 3, image_size, image_size, device="meta"))
    return recorder


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps every result with its version: PyTorch counts how often each storage was written to."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}
        self.versions: dict[fx.Node, int] = {}

    def call_module(self, target: fx.node.Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a layer. Of the most frequent ones it is known, which saves a third of all the time.

        PyTorch finds out in Python, operation by operation, what such a layer makes of a tensor without numbers.
        """
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            known = _known_result(self.fetch_attr(str(target)), args[0])
            if known is not None:
                return known
        return super().call_module(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.values[n] = result
        self.versions[n] = result._version if isinstance(result, Tensor) else 0
        return result


def _known_result(layer: object, given: Tensor) -> Tensor | None:
    """What a layer makes of a tensor that fits it; ``None`` for all but three kinds, whose subclasses may differ."""
    if type(layer) is nn.BatchNorm2d and given.ndim == 4 and given.shape[1] == layer.num_features:
        return torch.empty_like(given)
    if type(layer) is nn.LayerNorm and given.shape[-len(layer.normalized_shape) :] == layer.normalized_shape:
        return given.new_empty(given.shape)
    if type(layer) is nn.Linear and given.shape[-1:] == (layer.in_features,):
        return given.new_empty((*given.shape[:-1], layer.out_features))
    return None


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
