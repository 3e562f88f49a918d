"""Networks that cannot be traced, cut at the inputs of their blocks.

The forward passes of HuggingFace's networks take decisions that ``torch.fx`` cannot record. Their layout is regular
instead: something, then blocks one after the other, then something, and a linear head. A *window* from one border to
another is the network itself, seen through shallow copies of the modules on the way to the blocks: what lies outside
is passed over, the first block inside gets the given activations instead of its input, and where the next would
begin, the pass is left. So all that is done between the blocks, and all that is handed to every block besides the
activations (masks, tables of positions), is the network's own doing.

How a network is laid out, and what its blocks hand on, is learned from one pass with a tiny input; and every border is
tried: what depends on more than the one tensor that crosses a border is no border, and its neighbours stay together.
"""

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from thawline.backbones._base import Backbone, LayerGroup, Preprocessing, TextPreprocessing
from thawline.exceptions import BackboneError

__all__ = ["Layout", "Window", "example", "is_windowed", "layout_of", "learn_layout", "window"]


@dataclass(frozen=True)
class _Output:
    """What a block returns: its structure, with the shapes of its tensors in place of them."""

    leaves: tuple[Any, ...]
    structure: pytree.TreeSpec

    @classmethod
    def of(cls, value: Any) -> "_Output":
        leaves, structure = pytree.tree_flatten(value)
        return cls(tuple(_Shape.of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves), structure)

    def filled(self, make: Callable[["_Shape"], Tensor]) -> Any:
        """The same structure with other tensors."""
        leaves = [make(leaf) if isinstance(leaf, _Shape) else leaf for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.structure)


@dataclass(frozen=True)
class _Shape:
    """Of a tensor for one example."""

    sizes: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "_Shape":
        return cls(tuple(tensor.shape), tensor.dtype)

    def zeros(self, device: torch.device, count: int) -> Tensor:
        """For so many examples."""
        first, *others = self.sizes
        return torch.zeros(first * count, *others, dtype=self.dtype, device=device)


@dataclass(frozen=True)
class Layout:
    """How a network is built up. A *place* is a stretch of its forward pass.

    0 is all before the first block, ``1 + i`` is block ``i`` with what follows it before the next, and the last place
    is the head. The border of a place is the first floating-point tensor that its block, or the head, is called with.
    """

    blocks: tuple[str, ...]
    """Paths of the blocks, in the order in which they are called."""
    head: str
    """Path of the last layer."""
    input: _Shape
    """Of the example that it was learned from."""
    outputs: Mapping[str, tuple[_Output, ...]]
    """What a block returns, in each of its calls in one forward pass."""
    places: Mapping[str, int]
    """Of each module that holds no block and no head, and is in no other such one."""
    is_text: bool
    """Whether it takes texts, and not images."""
    needs_whole_batch: bool = False
    """Whether what lies before a window must see as many images as are in the batch, and one is not enough."""
    borders: tuple[int, ...] = ()
    """The places at which the layer groups begin, rising from 0, and last that of the head."""

    @property
    def head_place(self) -> int:
        return len(self.blocks) + 1

    def groups(self, module: nn.Module) -> tuple[tuple[LayerGroup, ...], LayerGroup]:
        """The layer groups, from the input on, and the head."""
        tensors: dict[int, list[str]] = {}
        modules: dict[int, list[str]] = {}
        for name, _ in (*module.named_parameters(), *module.named_buffers()):
            tensors.setdefault(self._place_of(name.rpartition(".")[0]) or 0, []).append(name)
        for path, _ in module.named_modules():
            place = self._place_of(path)
            modules.setdefault(self._last_place_in(path) if place is None else place, []).append(path)
        groups = tuple(
            LayerGroup(
                name=self._name(module, start, stop),
                tensors=tuple(name for place in range(start, stop) for name in tensors.get(place, [])),
                modules=tuple(path for place in range(start, stop) for path in modules.get(place, [])),
                output=self._last_before(stop),
            )
            for start, stop in pairwise(self.borders)
        )
        place = self.head_place
        return groups, LayerGroup(self.head, tuple(tensors[place]), tuple(modules[place]), self.head)

    def _last_before(self, stop: int) -> str:
        """Path of the last block before a place, or of what comes before all blocks."""
        if stop > 1:
            return self.blocks[stop - 2]
        return [path for path, place in self.places.items() if place == 0][-1]

    def shape_of(self, path: str) -> tuple[int, ...] | None:
        """Shape of what a block of a network of images gives for one of them; of other modules it is not known."""
        if self.is_text or path not in self.outputs:
            return None
        return next(leaf.sizes[1:] for leaf in self.outputs[path][-1].leaves if isinstance(leaf, _Shape))

    def bordered_as(self, groups: tuple[LayerGroup, ...]) -> "Layout":
        """The same layout with the borders that these layer groups have."""
        place_after = {block: i for i, block in enumerate(self.blocks, start=2)}
        borders = (0, *(place_after.get(group.output, 1) for group in groups))
        return replace(self, borders=borders, needs_whole_batch=True)  # which is right for all, if slower for most

    def _place_of(self, path: str) -> int | None:
        """The place that a module lies in as a whole."""
        while path:
            if path in self.places:
                return self.places[path]
            path = path.rpartition(".")[0]
        return None

    def _last_place_in(self, path: str) -> int:
        """The place where a module that holds blocks or the head is left."""
        inside = [place for inner, place in self.places.items() if not path or inner.startswith(f"{path}.")]
        return max(inside, default=0)

    def _name(self, module: nn.Module, start: int, stop: int) -> str:
        """``embeddings``, ``layer.3``, or ``layer.3-5`` for blocks that stay together."""
        common = _common([*self.blocks])
        short = [block.removeprefix(common.rpartition(".")[0]).lstrip(".") for block in self.blocks]
        first, last = (short[place - 1] if place else None for place in (start, stop - 1))
        if first is None:
            before = [path for path, place in self.places.items() if place == 0 and _holds_parameters(module, path)]
            first = "embeddings" if self.is_text else before[0].rpartition(".")[2] if before else short[0]
        if last is None or last == first:
            return first
        return f"{first}-{last.removeprefix(_common([first, last])).lstrip('.')}"


def _holds_parameters(module: nn.Module, path: str) -> bool:
    return any(True for _ in module.get_submodule(path).parameters())


def _common(paths: list[str]) -> str:
    """The path that all begin with; of one path, that of the module that holds it."""
    parts = [path.split(".") for path in paths]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return ".".join(parts[0][:shared])


def example(preprocessing: Preprocessing | TextPreprocessing, *, size: int = 1, length: int = 5) -> Tensor:
    """A tiny input: ``size`` images ``[N, 3, S, S]``, or texts ``[N, length]`` of which all but the last are padded."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(preprocessing, Preprocessing):
        side = preprocessing.image_size
        return torch.randn(size, 3, side, side, generator=generator)
    tokens = torch.randint(2, 6, (size, length), generator=generator)
    tokens[: size - 1, -2:] = -1
    return tokens


_LAYOUTS: "WeakKeyDictionary[nn.Module, Layout]" = WeakKeyDictionary()


def layout_of(backbone: Backbone) -> Layout:
    """The layout of a backbone's network, cut where its layer groups are.

    It was learned when the backbone was made, but is learned again for a copy of the network, which is another.
    """
    layout = _LAYOUTS.get(backbone.module)
    if layout is None:
        layout = _learned(backbone.module, backbone.preprocessing, backbone.name).bordered_as(backbone.layer_groups)
        _LAYOUTS[backbone.module] = layout
    return layout


def learn_layout(module: nn.Module, preprocessing: Preprocessing | TextPreprocessing, name: str) -> Layout:
    """Find out how a network is laid out and where it can be cut, by a tiny input through it and through its parts.

    Args:
        module: a network of blocks with one linear layer at the end, in single precision.
        preprocessing: of its inputs; for images the size is that of the tiny input, too.
        name: for the error.

    Raises:
        BackboneError: if it is not laid out in blocks, or cannot be cut between any of them.
    """
    layout = _learned(module, preprocessing, name)
    with _evaluating(module), torch.no_grad():
        layout = _with_borders(module, layout, _example_for(module, preprocessing, size=2, length=7), name)
    _LAYOUTS[module] = layout
    return layout


def _learned(module: nn.Module, preprocessing: Preprocessing | TextPreprocessing, name: str) -> Layout:
    """The layout without its borders."""
    with _evaluating(module), torch.no_grad():
        inputs = _example_for(module, preprocessing)
        recorded = _Recording.of(module, inputs)
    head = recorded.head(name)
    blocks = recorded.blocks(head, name)
    return Layout(
        blocks=blocks,
        head=head,
        input=_Shape.of(inputs),
        outputs={path: tuple(recorded.outputs[path]) for path in blocks},
        places=recorded.places(blocks, head),
        is_text=isinstance(preprocessing, TextPreprocessing),
    )


def _example_for(
    module: nn.Module, preprocessing: Preprocessing | TextPreprocessing, *, size: int = 1, length: int = 5
) -> Tensor:
    return example(preprocessing, size=size, length=length).to(next(module.parameters()).device)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put all modules into evaluation mode, and each back into the mode it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@dataclass
class _Recording:
    """One forward pass, as seen from outside."""

    module: nn.Module
    logits: Tensor = field(default_factory=lambda: torch.zeros(0))
    called: list[str] = field(default_factory=list)
    """Paths of modules, each time that one is called."""
    outputs: dict[str, list[_Output]] = field(default_factory=dict)
    results: dict[str, Tensor] = field(default_factory=dict)
    """Of layers that could be the head."""

    @classmethod
    def of(cls, module: nn.Module, inputs: Tensor) -> "_Recording":
        recording = cls(module)
        with ExitStack() as stack:
            for path, part in module.named_modules():
                stack.callback(part.register_forward_pre_hook(partial(recording._begun, path)).remove)
                stack.callback(part.register_forward_hook(partial(recording._done, path)).remove)
            recording.logits = module(inputs)
        return recording

    def _begun(self, path: str, _module: nn.Module, _args: Any) -> None:
        self.called.append(path)

    def _done(self, path: str, module: nn.Module, _args: Any, output: Any) -> None:
        self.outputs.setdefault(path, []).append(_Output.of(output))
        if isinstance(module, nn.Linear | nn.Conv2d):
            self.results[path] = output

    def head(self, name: str) -> str:
        """The linear layer whose result is the logits."""
        path = next((path for path in reversed(self.called) if path in self.results), None)
        if path is None or self.called.count(path) > 1 or not torch.equal(self.results[path], self.logits):
            raise BackboneError(f"The logits of {name!r} must be what one linear layer gives, but they are not.")
        return path

    def blocks(self, head: str, name: str) -> tuple[str, ...]:
        """The modules of the list that holds most parameters, in the order in which they are called."""
        lists = [(path, part) for path, part in self.module.named_modules() if isinstance(part, nn.ModuleList)]
        lists = [(path, part) for path, part in lists if not head.startswith(f"{path}.")]
        path, _ = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()), default=("", None))
        inside = self._called_in(path) if path else []
        order = [called for called in self.called if called in inside]
        blocks = tuple(dict.fromkeys(order))
        if not lists:
            raise BackboneError(
                f"{name!r} has no list of blocks (a torch.nn.ModuleList) between which it could be cut into layer "
                "groups. Choose another backbone; timm has many networks too, as timm/NAME."
            )
        if not blocks or [block for block, _ in _runs(order)] != list(blocks):
            raise BackboneError(
                f"The blocks of {name!r} must be called one after the other, but they are not; it cannot be cut into "
                "layer groups. Choose another backbone."
            )
        return blocks

    def _called_in(self, path: str) -> list[str]:
        """The outermost modules inside a list that are called; a list itself never is."""
        found = []
        for inner, _ in self.module.get_submodule(path).named_children():
            whole = f"{path}.{inner}"
            found += [whole] if whole in self.outputs else self._called_in(whole)
        return found

    def places(self, blocks: tuple[str, ...], head: str) -> dict[str, int]:
        """See :attr:`Layout.places`; what is never called belongs to the input."""
        own = {block: i for i, block in enumerate(blocks, start=1)} | {head: len(blocks) + 1}
        above = {""} | {path[:i] for path in own for i, sign in enumerate(path) if sign == "."}
        first: dict[str, int] = {}
        passed = 0
        for path in self.called:
            passed = max(passed, own.get(path, 0))
            first.setdefault(path, min(passed, len(blocks)))
        return {
            path: own[path] if path in own else first.get(path, 0)
            for path, _ in self.module.named_modules()
            if path not in above and (path in own or path.rpartition(".")[0] in above)
        }


def _runs(order: list[str]) -> list[tuple[str, int]]:
    """Each name once for every stretch of it, with the stretch's length."""
    runs: list[tuple[str, int]] = []
    for name in order:
        if runs and runs[-1][0] == name:
            runs[-1] = (name, runs[-1][1] + 1)
        else:
            runs.append((name, 1))
    return runs


def _with_borders(module: nn.Module, layout: Layout, inputs: Tensor, name: str) -> Layout:
    """Take the borders at which the parts give the very bits of the whole, between groups that hold parameters."""
    whole = module(inputs)

    def holds(layout: Layout) -> bool:
        passed = inputs
        try:
            for start, stop in pairwise([*layout.borders, None]):
                passed = Window(module, layout, start or 0, stop)(passed)
        except Exception:  # whatever a network raises that is given something else than it expects
            return False
        return torch.equal(passed, whole)

    end = layout.head_place
    full = {place for path, place in layout.places.items() if _holds_parameters(module, path)}
    borders = (0, *(place for place in range(1, end) if place in full and place - 1 in full), end)
    for needs_whole_batch in (False, True):
        layout = replace(layout, borders=borders, needs_whole_batch=needs_whole_batch)
        if holds(layout):
            return layout
    good = (border for border in borders[1:-1] if holds(replace(layout, borders=(0, border, end))))
    layout = replace(layout, borders=(0, *good, end))
    if len(layout.borders) == 2 or not holds(layout):
        raise BackboneError(
            f"{name!r} cannot be cut between its blocks: more than one tensor is handed from one to the next, or a "
            "text changes its length on the way. Choose another backbone."
        )
    return layout


def is_windowed(backbone: Backbone) -> bool:
    """Whether a backbone is cut here, at its blocks, and not in a traced graph."""
    return bool(backbone.architecture.get("library") == "transformers")


def window(backbone: Backbone, start: int, stop: int | None) -> "Window":
    """The part of a backbone from layer group ``start`` up to, but not including, ``stop``; None includes the head.

    ``0 <= start < stop <= len(layer_groups)`` must hold.
    """
    layout = layout_of(backbone)
    return Window(backbone.module, layout, layout.borders[start], None if stop is None else layout.borders[stop])


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""What the attributes of a module begin with in which PyTorch keeps its hooks."""


class _Left(BaseException):
    """The pass has come to the border where the window ends: no error, and no `except Exception` may catch it."""

    def __init__(self, activations: Tensor) -> None:
        self.activations = activations


class Window(nn.Module):
    """The places from ``start`` up to, but not including, ``stop`` of a network; see the module's docstring.

    What lies in it is shared with the network, under the network's names, and nothing else is registered. It takes the
    network's input, or activations, and gives activations or logits. Of images those are whatever the block takes,
    ``[N, …]``; of texts ``[N, T, H + 1]``, with 1 as the last channel where there is a token and 0 behind the end, and
    before the head ``[N, H]``. One thread at a time may run it.
    """

    _network: nn.Module

    def __init__(self, network: nn.Module, layout: Layout, start: int, stop: int | None) -> None:
        """Take two places of the layout; ``stop=None`` includes the head."""
        super().__init__()
        self._layout, self._start = layout, start
        self._stop = layout.head_place + 1 if stop is None else stop
        self._probes: dict[int, Callable[[Tensor], Tensor]] = {}
        self._calls: Counter[str] = Counter()
        self._given = torch.zeros(0)
        self._needs_gradient = False
        # Unregistered: its parts are registered by their own names.
        root = vars(self)["_network"] = self._view(network, "")
        for held in ("_modules", "_parameters", "_buffers"):
            vars(self)[held] = vars(root)[held]

    def forward(self, inputs: Tensor) -> Tensor:
        """Images, tokens or activations to activations or logits."""
        head = self._layout.head_place
        if self._start == head:
            return self._logits(self._network.get_submodule(self._layout.head)(inputs))
        is_token = inputs >= 0 if self._start == 0 else inputs[..., -1] > 0.5
        crossed = self._crossing(inputs, is_token)
        if not self._layout.is_text or self._stop >= head:
            return crossed
        return torch.cat([crossed, is_token.unsqueeze(2).to(crossed.dtype)], 2)

    def probe(self, group: int, probe: Callable[[Tensor], Tensor]) -> None:
        """Have what the layer group ``group`` begins with (of their number: the head) be what ``probe`` makes of it.

        One more than their number stands for the logits. Where the window begins or is left, nothing is probed.
        """
        self._probes[[*self._layout.borders, self._layout.head_place + 1][group]] = probe

    def _crossing(self, inputs: Tensor, is_token: Tensor) -> Tensor:
        """Run the network until the window ends; a text's activations come without the last channel."""
        self._calls.clear()
        self._needs_gradient = torch.is_grad_enabled()
        if self._start:
            # Contiguous, as in the whole: a matrix laid out otherwise may meet another kernel, with other last bits.
            self._given = inputs[..., :-1].contiguous() if self._layout.is_text else inputs
            inputs = self._stand_in(is_token)
        try:
            with torch.set_grad_enabled(self._needs_gradient and self._start == 0):
                return self._logits(self._network(inputs))
        except _Left as left:
            return left.activations
        finally:
            self._given = torch.zeros(0)

    def _stand_in(self, is_token: Tensor) -> Tensor:
        """An input for what lies before the window: images of zeros, or texts as long as those that were given."""
        if not self._layout.is_text:
            return self._zeros(self._layout.input)
        padding_id = getattr(self._network, "padding_id", 0)
        return torch.where(is_token, 0 if padding_id else 1, -1)

    def _zeros(self, shape: _Shape) -> Tensor:
        return shape.zeros(self._given.device, len(self._given) if self._layout.needs_whole_batch else 1)

    def _logits(self, logits: Tensor) -> Tensor:
        probe = self._probes.get(self._layout.head_place + 1)
        return logits if probe is None else probe(logits)

    def _view(self, module: nn.Module, path: str) -> nn.Module:
        """A module of the network as the window sees it."""
        place = self._layout.places.get(path)
        if place is None:
            return self._on_the_way(module, path)
        is_inside = self._start <= place < self._stop
        is_block = path in self._layout.outputs or path == self._layout.head
        if not is_block or self._start == self._layout.head_place:
            return module if is_inside else _outside(module)
        if place == self._stop:
            return _with_forward(_outside(module), partial(self._leave, path))
        if not is_inside:
            return _with_forward(_outside(module), partial(self._pass_over, path))
        begun = _shallow(module)
        return _with_forward(begun, partial(self._begin, path, place, partial(type(module).forward, begun)))

    def _on_the_way(self, module: nn.Module, path: str) -> nn.Module:
        """A module that holds blocks or the head; what it holds besides belongs to the input."""
        seen = _shallow(module)
        if self._start:
            _unregister(seen)
        children = {
            name: self._view(child, f"{path}.{name}" if path else name) for name, child in module.named_children()
        }
        vars(seen)["_modules"] = {name: children.get(name) for name in module._modules}
        return seen

    def _leave(self, path: str, *args: Any, **kwargs: Any) -> None:
        (_, activations), _ = _activations(args, kwargs)
        raise _Left(activations)

    def _pass_over(self, path: str, *_args: Any, **_kwargs: Any) -> Any:
        """What a block before the window returns, of zeros."""
        output = self._layout.outputs[path][self._calls[path]]
        self._calls[path] += 1
        # A text's tensors are as long as the text: what was learned from another is of the wrong shape.
        return output.filled(lambda shape: self._given if self._layout.is_text else self._zeros(shape))

    def _begin(self, path: str, place: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a block of the window, or the head, with what crosses its border."""
        self._calls[path] += 1
        if self._calls[path] == 1:
            if place == self._start and place:
                torch.set_grad_enabled(self._needs_gradient)
                args, kwargs = _replaced(args, kwargs, self._given)
            elif place in self._probes:
                (_, activations), _ = _activations(args, kwargs)
                args, kwargs = _replaced(args, kwargs, self._probes[place](activations))
        return forward(*args, **kwargs)


def _activations(args: Any, kwargs: Any) -> tuple[tuple[int, Tensor], Any]:
    """The first floating-point tensor among arguments, with its number among their leaves; and all of these."""
    leaves, structure = pytree.tree_flatten((args, kwargs))
    number = next(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return (number, leaves[number]), (leaves, structure)


def _replaced(args: Any, kwargs: Any, activations: Tensor) -> Any:
    """The arguments with other activations."""
    (number, _), (leaves, structure) = _activations(args, kwargs)
    return pytree.tree_unflatten([*leaves[:number], activations, *leaves[number + 1 :]], structure)


def _shallow(module: nn.Module) -> nn.Module:
    """Another module with the very same parts, whose attributes can be changed without changing the first's."""
    return copy.copy(module)


def _with_forward(module: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    vars(module)["forward"] = forward
    return module


def _outside(module: nn.Module) -> nn.Module:
    """A module that computes the same and holds nothing, not even hooks.

    It is in evaluation mode, and stays there, so that it neither changes a batch-norm's statistics nor draws a number.
    """
    seen = _shallow(module)
    _unregister(seen)
    vars(seen).update({name: OrderedDict() for name in vars(seen) if name.startswith(_HOOKS)})
    vars(seen).update(training=False, train=lambda mode=True: seen)
    vars(seen)["_modules"] = {name: child and _outside(child) for name, child in module._modules.items()}
    return seen


def _unregister(module: nn.Module) -> None:
    """Keep a shallow copy's parameters and buffers as plain attributes."""
    for held in ("_parameters", "_buffers"):
        vars(module).update(vars(module)[held])
        vars(module)[held] = {}
