"""Parts of a backbone between two borders of its layer groups, each a function of the one tensor that crosses."""

from typing import Any

from torch import fx, nn

from thawline.backbones._base import Backbone
from thawline.backbones._graph import COUNT, trace
from thawline.backbones._tokens import for_one_token_alone
from thawline.backbones._windows import is_windowed, window
from thawline.exceptions import BackboneError

__all__ = ["section"]


def section(backbone: Backbone, start: int, stop: int | None = None, *, exact: bool = True) -> nn.Module:
    """The operations from layer group ``start`` up to, but not including, layer group ``stop``.

    ``section(b, 0, d)`` is the *prefix* of depth ``d``: images ``[N, 3, H, W]`` to activations, whose shape beyond
    ``N`` depends on the architecture. ``section(b, d)`` is the *tail*: those activations to logits
    ``[N, num_classes]``. In evaluation mode, on the CPU in single precision, the parts one after the other give the
    very bits of the whole.

    The section shares parameters, buffers and modules with the backbone, under their names. In evaluation mode it
    never writes into its input; in training mode a dropout in place may. Take it after ``train_mode`` or ``eval()``
    and after moving the module: code that reads ``self.training`` by itself is recorded in the mode that it is in now,
    and bare buffers where they are now.

    Of texts, tokens int64 ``[N, T]`` go in, and activations are ``[N, T, H + 1]``, whose last channel is 1 where there
    is a token and 0 behind the end of a text; behind the last layer group they are pooled, ``[N, H]``. Networks that
    cannot be traced are cut another way, see :class:`thawline.backbones._windows.Window`.

    Args:
        backbone: any backbone.
        start: number of layer groups left out at the input, ``0 <= start <= len(layer_groups)``.
        stop: number of layer groups after which it ends, more than ``start``; ``None`` includes the head.
        exact: with False, work that cannot reach the output is left out (the other tokens in the last block of a
            vision transformer); results then differ in the last bits, as its matrices have other shapes.

    Raises:
        BackboneError: if there are no such borders.
    """
    deepest = len(backbone.layer_groups)
    if not 0 <= start <= deepest or (stop is not None and not start < stop <= deepest):
        raise BackboneError(f"`0 <= start < stop <= {deepest}` must hold, but got start={start}, stop={stop}.")
    if is_windowed(backbone):
        return window(backbone, start, stop)
    whole = trace(backbone.module)
    nodes = {node.name: node for node in whole.nodes}
    begin = nodes[backbone.layer_groups[start - 1].output] if start else _images(whole)
    end = nodes[backbone.layer_groups[stop - 1].output] if stop is not None else _logits(whole)

    sizes = dict(backbone.layer_groups[start - 1].sizes) if start else {}
    part = fx.Graph()
    given = part.placeholder("images" if start == 0 else "activations")
    copies: dict[fx.Node, Any] = {begin: given}

    def copy_of(source: fx.Node) -> Any:
        if source not in copies:  # from before the section: a size, or a table to compute once more
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
    made = fx.GraphModule(backbone.module, part)
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
