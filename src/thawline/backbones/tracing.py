"""Find where a network can be cut in two, from its traced graph, without running it on real values.

A *cut* is an operation after which exactly one tensor is still needed. Everything up to it is a function from images to
that tensor, and everything after it is a function of that tensor only. So the first part can be frozen, its results can
be stored, and the two parts in sequence give exactly the same results as the whole.

The idea of cutting at single live values comes from register allocation in compilers ("liveness"); tracing uses
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
"""Stands for the number of images in place of a size."""


class _Held(fx.Proxy):
    """A parameter or buffer while tracing. Everything except its values is known, and networks branch on it.

    (Does the table of positions have the right size? On which device is a new one created?) ``fx`` only offers this for
    shapes of parameters, as ``param_shapes_constant``.
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
    """Treats modules and functions as single operations if they are marked as not to be traced.

    These are the modules of ``torchvision.ops`` (stochastic depth, deformable convolution), and the modules and
    functions that timm registers (drop path, padding by the image size).
    """

    # Keeps buffers named in the graph; otherwise values computed only from them become attributes of the module.
    proxy_buffer_attributes = True

    def __init__(self) -> None:
        # timm need not be installed; if one of its networks is traced, it is already imported.
        layers = sys.modules.get("timm.layers")
        self._opaque = tuple(layers.get_notrace_modules()) if layers else ()
        functions = tuple(layers.get_notrace_functions()) if layers else ()
        super().__init__((math, torchvision.ops), functions)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Only the images are an input; other arguments of ``forward`` (an attention mask) keep their default.

        Otherwise they would be additional values to pass on at every border.
        """
        _, images, *_ = inspect.signature(root_fn).parameters
        return root_fn, [self.root, self.create_proxy("placeholder", images, (), {})]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A parameter or buffer read by its own module."""
        found = super().getattr(attr, attr_val, parameter_proxy_cache)
        return _Held(found, attr_val) if isinstance(found, fx.Proxy) and isinstance(attr_val, Tensor) else found

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.startswith("torchvision.ops.") and not isinstance(m, nn.Sequential)
        return ours or isinstance(m, self._opaque) or super().is_leaf_module(m, module_qualified_name)


def trace(module: nn.Module) -> fx.Graph:
    """The operations of ``module`` in the order of execution, in its current mode."""
    _forget_attention_biases(module)
    try:
        return _Tracer().trace(module)
    finally:
        _forget_attention_biases(module)


def forget_biases_on_load(module: nn.Module) -> None:
    """Clear the cached attention biases of transformers' LeViT after loading a state_dict: in evaluation mode it would
    keep outdated ones. timm's clears them itself."""
    for part in module.modules():
        if isinstance(getattr(part, "attention_bias_cache", None), dict):
            part.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
                lambda part, _: _forget_attention_biases(part)
            )


def _forget_attention_biases(module: nn.Module) -> None:
    """Clear the biases that LeViT and similar networks cache in evaluation mode; during tracing, these are symbols."""
    for part in module.modules():
        kept = getattr(part, "attention_bias_cache", None)
        if isinstance(kept, dict):
            kept.clear()


def _path_of(node: fx.Node) -> str:
    """Path of an operation's module or, for a function (``flatten``), of the module whose ``forward`` calls it."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


@dataclass(frozen=True)
class Step:
    """One operation of the network."""

    node: fx.Node
    path: str
    """Path of its module."""
    tensors: tuple[str, ...]
    """Parameters and buffers first used by it."""
    shape: torch.Size | None
    """Shape of its result for one image; None unless that is one floating-point tensor."""
    is_cut: bool
    """Whether the network can be cut after it."""
    is_tensor: bool
    """Whether its result is one or more tensors, not a size or a check of one."""
    is_given: bool
    """Whether its result is the same for all images of that size: a size, their number, or a table computed from these
    and buffers (rotary position embeddings). It need not be passed on."""
    value: Any
    """For such a size: its value, or ``COUNT``."""


def steps_of(module: nn.Module, image_size: int) -> list[Step]:
    """All operations of ``module``, in the order of execution.

    Args:
        module: on the ``meta`` device, in evaluation mode; images ``[N, 3, H, W]`` to logits ``[N, classes]``.
        image_size: height and width of the images in pixels.

    Raises:
        Exception: any error of tracing or of the network for images of this size.
    """
    graph = trace(module)
    network = fx.GraphModule(module, graph)
    recorder = _run(network, 1, image_size)
    nodes = [node for node in graph.nodes if node.op not in {"get_attr", "output"}]
    # The effect of the number of images is detected with a second number, unless no size is read.
    reads_sizes = any(_is_size(recorder.values[node]) for node in nodes)
    of_two = _run(network, 2, image_size) if reads_sizes else recorder
    given = _given(module, nodes, recorder.values, of_two.values)
    position = {node: i for i, node in enumerate(nodes)}
    end = len(nodes)
    # Index of the last operation that needs each result; the network's output is needed to the end.
    last_use = [
        i if node in given else max((position.get(user, end) for user in node.users), default=i)
        for i, node in enumerate(nodes)
    ]
    used = [_tensors_of(module, node) for node in nodes]
    trained = {name for name, _ in module.named_parameters()}
    last_use_of = {name: i for i, names in enumerate(used) for name in names if name in trained}

    steps = []
    seen: set[str] = set()
    needed_until = -1  # earlier results, and parameters shared with a later operation
    for i, node in enumerate(nodes):
        tensors = tuple(dict.fromkeys(name for name in used[i] if name not in seen))
        seen.update(tensors)
        needed_until = max([needed_until, *(last_use_of.get(name, -1) for name in tensors)])
        value = recorder.values[node]
        alone = needed_until <= i < last_use[i] and node.op != "placeholder"
        # A later in-place operation, through any view, would overwrite a stored result.
        shape = value.shape if isinstance(value, Tensor) and value.is_floating_point() else None
        of_one_image = shape is not None and shape[:1] == (1,)  # not split into windows
        is_cut = alone and of_one_image and value._version == recorder.versions[node]
        size = None
        if node in given and not _is_tensor(value):
            size = value if value == of_two.values[node] else COUNT
        steps.append(Step(node, _path_of(node), tensors, shape, is_cut, _is_tensor(value), node in given, size))
        needed_until = max(needed_until, last_use[i])
    return steps


def sizes_read_behind(steps: Sequence[Step], end: int) -> dict[str, Any]:
    """Sizes computed up to step ``end`` that later operations read, by the names of their operations.

    They are read directly, or to recompute a table.
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
    """The operations whose result depends only on the number and size of the images, not on their content.

    Args:
        module: the network.
        nodes: its operations in the order of execution.
        of_one: their results for one image.
        of_two: their results for two images.
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
    """Runs a graph and keeps every result with its version, PyTorch's count of writes to its storage."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}
        self.versions: dict[fx.Node, int] = {}

    def call_module(self, target: fx.node.Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a layer, computed here for the most frequent types, which saves a third of the total time.

        PyTorch infers a layer's result without values in Python, operation by operation.
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
    """A layer's result for a valid input; ``None`` except for three types, excluding their subclasses."""
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
    """Names of the parameters and buffers used by an operation: its module's, or its arguments."""
    names = []
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        names += [f"{node.target}.{name}" for name in called.state_dict(keep_vars=True)]
    names += [str(source.target) for source in node.all_input_nodes if source.op == "get_attr"]
    return names
