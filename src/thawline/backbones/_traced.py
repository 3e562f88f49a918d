"""Sections of a traced network: subgraphs of its operations."""

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from thawline.backbones._base import Backbone
from thawline.backbones._class_token import for_one_token_alone
from thawline.backbones._section import Section
from thawline.backbones.tracing import COUNT, trace

__all__ = ["TracedSection", "traced_sections"]


class TracedSection(Section, fx.GraphModule):
    """The operations between two borders."""

    def __init__(self, backbone: Backbone, graph: fx.Graph) -> None:
        """Create a section from a part of the backbone's graph."""
        fx.GraphModule.__init__(self, backbone.module, graph)
        self._outputs = tuple(group.output for group in backbone.layer_groups)
        self._head = backbone.head.name

    def probe(self, border: int, probe: nn.Module) -> None:
        """See :meth:`Section.probe`."""
        node, path = self._crossing(border), f"border_probe_{border}"
        self.add_submodule(path, probe)
        users = list(node.users)
        with self.graph.inserting_after(node):
            probing = self.graph.call_module(path, (node,))
        for user in users:
            user.replace_input_with(node, probing)
        self.recompile()

    def _crossing(self, border: int) -> fx.Node:
        """The operation whose result is passed on at a border."""
        nodes: dict[str, fx.Node] = {node.name: node for node in self.graph.nodes}
        deepest = len(self._outputs)
        if border > deepest:
            return _logits(self.graph)
        if border < deepest:
            return nodes[self._outputs[border - 1]]
        # Not the last group's output: an in-place dropout may follow, and a transformer's may be reduced to one token.
        (head,) = (node for node in nodes.values() if node.op == "call_module" and node.target == self._head)
        features: fx.Node
        (features,) = head.all_input_nodes
        return features


def traced_sections(backbone: Backbone, spans: Sequence[tuple[int, int | None]], *, exact: bool) -> list[TracedSection]:
    """See :func:`thawline.backbones.sections`, which checks the borders."""
    whole = trace(backbone.module)  # only once: tracing takes longer than cutting
    return [_cut_out(backbone, whole, start, stop, exact) for start, stop in spans]


def _cut_out(backbone: Backbone, whole: fx.Graph, start: int, stop: int | None, exact: bool) -> TracedSection:
    """Cut out a section; the graph of the whole network is unchanged."""
    nodes = {node.name: node for node in whole.nodes}
    begin = nodes[backbone.layer_groups[start - 1].output] if start else _images(whole)
    end = nodes[backbone.layer_groups[stop - 1].output] if stop is not None else _logits(whole)

    sizes = dict(backbone.layer_groups[start - 1].sizes) if start else {}
    part = fx.Graph()
    given = part.placeholder("images" if start == 0 else "activations")
    copies: dict[fx.Node, Any] = {begin: given}

    def copy_of(source: fx.Node) -> Any:
        if source not in copies:  # from before the section: a size, or a table to recompute
            copies[source] = sizes[source.name] if source.name in sizes else part.node_copy(source, copy_of)
            if copies[source] == COUNT:
                copies[source] = part.call_method("size", (given, 0))
        return copies[source]

    inside = False
    for node in whole.nodes:
        if node.op == "get_attr" or inside:
            copies[node] = part.node_copy(node, copy_of)
        if node is begin:
            inside = True
        if node is end:
            break
    part.output(copies[end])
    for node in [node for node in part.nodes if node.op == "get_attr" and not node.users]:
        part.erase_node(node)
    made = TracedSection(backbone, part)
    if not exact:
        for_one_token_alone(made)
    return made


def _images(graph: fx.Graph) -> fx.Node:
    images: fx.Node
    (images,) = graph.find_nodes(op="placeholder")
    return images


def _logits(graph: fx.Graph) -> fx.Node:
    logits: fx.Node
    (output,) = graph.find_nodes(op="output")
    (logits,) = output.all_input_nodes
    return logits
