"""Skip unused tokens: a vision transformer's head only uses the class token.

So in the last block, only that token's query, sum and MLP matter; keys and values still come from all tokens. That is
about a sixth of the block's cost.
"""

import operator

from torch import fx, nn

__all__ = ["for_one_token_alone"]

# Modules that process every token separately.
_TOKEN_WISE = (nn.Linear, nn.LayerNorm, nn.Dropout, nn.GELU, nn.ReLU, nn.SiLU, nn.Identity)


def for_one_token_alone(module: fx.GraphModule) -> None:
    """If ``module`` selects one token of ``[N, tokens, C]``, compute only that token before the selection.

    This extends back to the previous attention, whose keys and values need all tokens. Results differ only in the last
    bits. A module that does not select a token is unchanged.
    """
    graph = module.graph
    for picked in [node for node in graph.nodes if _token_of(node) is not None]:
        token, source = _token_of(picked), picked.args[0]
        assert token is not None  # noqa: S101  narrows the types
        assert isinstance(source, fx.Node)  # noqa: S101
        behind = _ancestors(source)
        attentions = [node for node in graph.nodes if node in behind and _is_attention(module, node)]
        if not attentions:
            continue
        needed = set().union(*(_ancestors(node) for node in attentions[-1].args[1:] if isinstance(node, fx.Node)))
        narrowed = _Narrowing(module, token, needed)(source)
        with graph.inserting_before(picked):
            picked.replace_all_uses_with(graph.call_function(operator.getitem, (narrowed, (slice(None), 0))))
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """A result and everything it was computed from."""
    found, waiting = {node}, [node]
    while waiting:
        new = set(waiting.pop().all_input_nodes) - found
        found |= new
        waiting += new
    return found


def _token_of(node: fx.Node) -> int | None:
    """The ``i`` of ``tokens[:, i]``."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return None
    index = node.args[1]
    if isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None) and isinstance(index[1], int):
        return index[1]
    return None


def _is_attention(module: nn.Module, node: object) -> bool:
    """Whether this calls ``nn.MultiheadAttention`` with query, key and value, and nothing else per token."""
    if not (isinstance(node, fx.Node) and node.op == "call_module"):
        return False
    called = module.get_submodule(str(node.target))
    plain = len(node.args) == 3 and node.kwargs.keys() <= {"need_weights"}
    return isinstance(called, nn.MultiheadAttention) and called.batch_first and plain


class _Narrowing:
    """Copies operations so that they use ``[:, token:token + 1]``; slices results that are ``needed`` in full."""

    def __init__(self, module: fx.GraphModule, token: int, needed: set[fx.Node]) -> None:
        self.graph, self.module, self.token, self.needed = module.graph, module, token, needed
        self._done: dict[fx.Node, fx.Node] = {}

    def __call__(self, node: fx.Node) -> fx.Node:
        if node not in self._done:
            self._done[node] = self._cut(node) if node in self.needed else self._narrow(node)
        return self._done[node]

    def _narrow(self, node: fx.Node) -> fx.Node:
        if node.op == "call_module" and isinstance(self.module.get_submodule(str(node.target)), _TOKEN_WISE):
            return self._copy(node)
        if node.target is operator.add and all(_is_computed(argument) for argument in node.args):
            return self._copy(node)
        if node.target is operator.getitem and _is_attention(self.module, node.args[0]) and node.args[1] == 0:
            return self._attention(node)
        return self._cut(node)

    def _cut(self, node: fx.Node) -> fx.Node:
        stop = None if self.token == -1 else self.token + 1
        with self.graph.inserting_after(node):
            return self.graph.call_function(operator.getitem, (node, (slice(None), slice(self.token, stop))))

    def _copy(self, node: fx.Node) -> fx.Node:
        sources = {source: self(source) for source in node.all_input_nodes}
        with self.graph.inserting_after(node):
            return self.graph.node_copy(node, sources.__getitem__)

    def _attention(self, result: fx.Node) -> fx.Node:
        """The same attention with one token as the query; all tokens are keys and values."""
        attention = result.args[0]
        assert isinstance(attention, fx.Node)  # noqa: S101  _is_attention said so
        query, key, value = attention.args
        asking = self(query)  # type: ignore[arg-type]
        with self.graph.inserting_after(result):
            asked = self.graph.call_module(str(attention.target), (asking, key, value), dict(attention.kwargs))
        with self.graph.inserting_after(asked):
            return self.graph.call_function(operator.getitem, (asked, 0))


def _is_computed(argument: object) -> bool:
    """Whether it is a result, not a number or a parameter, so that both sides of a sum have the same tokens."""
    return isinstance(argument, fx.Node) and argument.op != "get_attr"
