"""A network as a graph for display, with its frozen part marked."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import count

from torch import fx, nn

from thawline.backbones import networks
from thawline.backbones._base import Backbone, Graph, GraphNode, LayerGroup, Preprocessing
from thawline.backbones._windows import is_windowed, layout_of
from thawline.backbones.building import build_without_memory
from thawline.backbones.tracing import Step, steps_of
from thawline.exceptions import BackboneError

__all__ = ["outline"]


def outline(backbone: Backbone, freeze_depth: int) -> Graph:
    """The tensor operations of ``backbone`` in evaluation mode; operations on sizes are omitted.

    The network is traced without real values, once per process: this takes up to a second or two, and no time for other
    depths. The backbone is unchanged. Unlike PyTorch's own graph for TensorBoard, which runs the network, it also works
    for transformers.

    For Hugging Face's networks, which cannot be traced, it is the chain of their blocks.

    Args:
        backbone: any backbone.
        freeze_depth: number of frozen layer groups, ``0 <= freeze_depth <= len(layer_groups)``.

    Raises:
        BackboneError: if the depth is out of range.
    """
    deepest = len(backbone.layer_groups)
    if not 0 <= freeze_depth <= deepest:
        raise BackboneError(f"`0 <= depth <= {deepest}` must hold, but got depth={freeze_depth}.")
    nodes = _chain(backbone) if is_windowed(backbone) else _operations(backbone)
    frozen = {group.name for group in backbone.layer_groups[:freeze_depth]}
    return Graph(tuple(replace(node, frozen=node.name.partition("/")[0] in frozen) for node in nodes))


def _chain(backbone: Backbone) -> tuple[GraphNode, ...]:
    """The chain of modules with parameters from the input to the head, none marked as frozen."""
    layout = layout_of(backbone)
    groups = (*backbone.layer_groups, backbone.head)
    group_of = {path: group.name for group in groups for path in group.modules}
    name = "images" if isinstance(backbone.preprocessing, Preprocessing) else "tokens"
    nodes = [GraphNode(name, name, (), frozen=False)]
    for path in sorted(layout.places, key=layout.places.__getitem__):
        part = backbone.module.get_submodule(path)
        if any(True for _ in part.parameters()):
            operation, own = type(part).__name__, path.rpartition(".")[2]
            name = f"{group_of[path]}/{f'{own}.{operation}' if own.isdigit() else own}"
            shape = (backbone.architecture["num_classes"],) if path == layout.head else layout.shape_of(path)
            nodes.append(GraphNode(name, operation, (nodes[-1].name,), frozen=False, shape=shape))
    return tuple(nodes)


def _operations(backbone: Backbone) -> tuple[GraphNode, ...]:
    preprocessing = backbone.preprocessing
    assert isinstance(preprocessing, Preprocessing)  # noqa: S101  no network of texts is traced
    groups = (*backbone.layer_groups, backbone.head)
    return _trainable(json.dumps(backbone.architecture), preprocessing.image_size, groups)


@lru_cache(maxsize=32)
def _trainable(architecture: str, image_size: int, groups: tuple[LayerGroup, ...]) -> tuple[GraphNode, ...]:
    """All nodes, none marked as frozen; the architecture is given as JSON, the head as the last group."""
    module = build_without_memory(lambda: networks.build(json.loads(architecture)))
    nodes: list[GraphNode] = []
    names: dict[fx.Node, str] = {}
    taken: set[str] = set()
    remaining = iter(groups)
    group = next(remaining)
    for step in steps_of(module, image_size):
        if step.is_tensor:
            operation = _operation(module, step.node)
            names[step.node] = next(name for name in _names(step, operation, group.name) if name not in taken)
            taken.add(names[step.node])
            inputs = tuple(names[source] for source in step.node.all_input_nodes if source in names)
            shape = None if step.shape is None else tuple(step.shape[1:])
            nodes.append(GraphNode(names[step.node], operation, inputs, frozen=False, shape=shape))
        if step.node.name == group.output:
            group = next(remaining, group)
    return tuple(nodes)


def _operation(module: nn.Module, node: fx.Node) -> str:
    match node.op:
        case "placeholder":
            return "images"
        case "call_module":
            return type(module.get_submodule(str(node.target))).__name__
        case "call_method":
            return str(node.target)
    return str(getattr(node.target, "__name__", node.target))


def _names(step: Step, operation: str, group: str) -> Iterator[str]:
    """``layer1/0/conv1`` in the group ``layer1``, ``features.4-6/4/block/0.Conv2d`` in ``features.4-6``.

    If that is taken, because a module runs twice, a number is appended.
    """
    if step.node.op == "placeholder":
        yield "images"
        return
    path = step.path.split(".") if step.path else []
    inner = path[_shared(path, group.split(".")) :]
    if step.node.op != "call_module":
        inner.append(operation)
    elif path[-1].isdigit():  # an index in a sequence is not informative
        inner[-1:] = [f"{path[-1]}.{operation}"]
    name = "/".join([group, *(inner or path[-1:])])
    yield name
    yield from (f"{name}_{i}" for i in count(1))


def _shared(path: list[str], group: list[str]) -> int:
    """Length of the common prefix."""
    return next((i for i, (a, b) in enumerate(zip(path, group, strict=False)) if a != b), min(len(path), len(group)))
