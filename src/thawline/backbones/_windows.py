"""Cut networks that cannot be traced at the inputs of their blocks.

The forward passes of Hugging Face's networks have control flow that ``torch.fx`` cannot trace. But their layout is
regular: some modules, then a sequence of blocks, then some modules, and a linear head. A *window* from one border to
another is the network itself, through shallow copies of the modules above the blocks: modules outside are skipped, the
first block inside gets the given activations as its input, and the pass ends where the next would begin. So the
network's own code computes everything between blocks, and all other arguments of the blocks (masks, tables of
positions).

The layout and the outputs of blocks are learned from one pass with a tiny input. Every border is then tested: if the
rest depends on more than the tensor at the border, it is not a border, and its neighbours are merged.
"""

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from thawline.backbones._base import Backbone, Preprocessing, TextPreprocessing
from thawline.backbones._layouts import Layout, Recording, Shape, evaluating, example_for, holds_parameters
from thawline.backbones._section import Section
from thawline.exceptions import BackboneError

__all__ = ["Window", "is_windowed", "layout_of", "learn_layout", "window"]


_LAYOUTS: "WeakKeyDictionary[nn.Module, Layout]" = WeakKeyDictionary()


def layout_of(backbone: Backbone) -> Layout:
    """The layout of a backbone's network with the borders of its layer groups.

    It was learned when the backbone was created, and is learned again for a copy of the network.
    """
    layout = _LAYOUTS.get(backbone.module)
    if layout is None:
        layout = _learned(backbone.module, backbone.preprocessing, backbone.name).bordered_as(backbone.layer_groups)
        _LAYOUTS[backbone.module] = layout
    return layout


def learn_layout(module: nn.Module, preprocessing: Preprocessing | TextPreprocessing, name: str) -> Layout:
    """Learn a network's layout and possible cuts, by running it and its parts on a tiny input.

    Args:
        module: a network of blocks with a final linear layer, in single precision.
        preprocessing: preprocessing of its inputs; for images, its size is also that of the tiny input.
        name: name for the error.

    Raises:
        BackboneError: if it does not consist of blocks, or cannot be cut between any of them.
    """
    layout = _learned(module, preprocessing, name)
    with evaluating(module), torch.no_grad():
        layout = _with_borders(module, layout, example_for(module, preprocessing, size=2, length=7), name)
    _LAYOUTS[module] = layout
    return layout


def _learned(module: nn.Module, preprocessing: Preprocessing | TextPreprocessing, name: str) -> Layout:
    """The layout without borders."""
    with evaluating(module), torch.no_grad():
        inputs = example_for(module, preprocessing)
        recorded = Recording.of(module, inputs)
    head = recorded.head(name)
    blocks = recorded.blocks(head, name)
    return Layout(
        blocks=blocks,
        head=head,
        input=Shape.of(inputs),
        outputs={path: tuple(recorded.outputs[path]) for path in blocks},
        places=recorded.places(blocks, head),
        is_text=isinstance(preprocessing, TextPreprocessing),
    )


def _with_borders(module: nn.Module, layout: Layout, inputs: Tensor, name: str) -> Layout:
    """Find the borders at which the parts are bit-equal to the whole, between groups with parameters."""
    whole = module(inputs)

    def holds(layout: Layout) -> bool:
        passed = inputs
        try:
            for start, stop in pairwise([*layout.borders, None]):
                passed = Window(module, layout, start or 0, stop)(passed)
        except Exception:  # unexpected input can raise anything
            return False
        return torch.equal(passed, whole)

    end = layout.head_place
    full = {place for path, place in layout.places.items() if holds_parameters(module, path)}
    borders = (0, *(place for place in range(1, end) if place in full and place - 1 in full), end)
    for needs_whole_batch in (False, True):
        layout = replace(layout, borders=borders, needs_whole_batch=needs_whole_batch)
        if holds(layout):
            return layout
    good = (border for border in borders[1:-1] if holds(replace(layout, borders=(0, border, end))))
    layout = replace(layout, borders=(0, *good, end))
    if len(layout.borders) == 2 or not holds(layout):
        raise BackboneError(
            f"{name!r} cannot be cut between its blocks: they pass on more than one tensor, or a "
            "text's length changes within the network. Choose another backbone."
        )
    return layout


def is_windowed(backbone: Backbone) -> bool:
    """Whether a backbone is cut at its blocks instead of in a traced graph."""
    return bool(backbone.architecture.get("library") == "transformers")


def window(backbone: Backbone, start: int, stop: int | None) -> "Window":
    """The part of a backbone from layer group ``start`` up to, but excluding, ``stop``; None includes the head.

    ``0 <= start < stop <= len(layer_groups)`` must hold.
    """
    layout = layout_of(backbone)
    return Window(backbone.module, layout, layout.borders[start], None if stop is None else layout.borders[stop])


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Prefixes of a module's attributes in which PyTorch stores hooks."""


class _Left(BaseException):
    """The pass has reached the end of the window: not an error, and not to be caught by `except Exception`."""

    def __init__(self, activations: Tensor) -> None:
        self.activations = activations


class Window(Section):
    """The places from ``start`` up to, but excluding, ``stop`` of a network; see the module's docstring.

    It shares its modules with the network, under the network's names, and registers nothing else. It maps the network's
    input, or activations, to activations or logits. Activations of images are the block's input, ``[N, …]``; those of
    texts are ``[N, T, H + 1]``, with 1 in the last channel for tokens and 0 for padding, and ``[N, H]`` before the
    head. Not thread-safe.
    """

    _network: nn.Module

    def __init__(self, network: nn.Module, layout: Layout, start: int, stop: int | None) -> None:
        """Create the window between two places of the layout; ``stop=None`` includes the head."""
        super().__init__()
        self._layout, self._start = layout, start
        self._stop = layout.head_place + 1 if stop is None else stop
        self._probes: dict[int, Callable[[Tensor], Tensor]] = {}
        self._calls: Counter[str] = Counter()
        self._given = torch.zeros(0)
        self._needs_gradient = False
        # Unregistered: its parts are registered under their own names.
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

    def probe(self, border: int, probe: Callable[[Tensor], Tensor]) -> None:
        """See :meth:`Section.probe`; also accepts a function."""
        self._probes[[*self._layout.borders, self._layout.head_place + 1][border]] = probe

    def _crossing(self, inputs: Tensor, is_token: Tensor) -> Tensor:
        """Run the network until the end of the window; a text's activations lack the last channel."""
        self._needs_gradient = torch.is_grad_enabled()
        if self._start:
            # Contiguous, as in the whole network: another memory layout may select a kernel with different last bits.
            self._given = inputs[..., :-1].contiguous() if self._layout.is_text else inputs
            inputs = self._stand_in(is_token)
        try:
            with torch.set_grad_enabled(self._needs_gradient and self._start == 0):
                return self._logits(self._network(inputs))
        except _Left as left:
            return left.activations
        finally:
            self._given = torch.zeros(0)
            self._calls.clear()  # torch.compile would compile again for another state

    def _stand_in(self, is_token: Tensor) -> Tensor:
        """A dummy input for modules before the window: images of zeros, or texts of the given length."""
        if not self._layout.is_text:
            return self._zeros(self._layout.input)
        padding_id = getattr(self._network, "padding_id", 0)
        return torch.where(is_token, 0 if padding_id else 1, -1)

    def _zeros(self, shape: Shape) -> Tensor:
        return shape.zeros(self._given.device, len(self._given) if self._layout.needs_whole_batch else 1)

    def _logits(self, logits: Tensor) -> Tensor:
        probe = self._probes.get(self._layout.head_place + 1)
        return logits if probe is None else probe(logits)

    def _view(self, module: nn.Module, path: str) -> nn.Module:
        """A module of the network as used in the window."""
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
        """A module that contains blocks or the head; its other submodules belong to the input."""
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
        """Zeros in place of the output of a block before the window."""
        output = self._layout.outputs[path][self._calls[path]]
        self._calls[path] += 1
        # A text's tensors have the text's length, which differs from the learned shape.
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
    """The first floating-point tensor among arguments, with its index among their leaves, and all leaves."""
    leaves, structure = pytree.tree_flatten((args, kwargs))
    number = next(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return (number, leaves[number]), (leaves, structure)


def _replaced(args: Any, kwargs: Any, activations: Tensor) -> Any:
    """The arguments with other activations."""
    (number, _), (leaves, structure) = _activations(args, kwargs)
    return pytree.tree_unflatten([*leaves[:number], activations, *leaves[number + 1 :]], structure)


def _shallow(module: nn.Module) -> nn.Module:
    """A copy of a module with the same submodules, whose attributes can be changed independently."""
    return copy.copy(module)


def _with_forward(module: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    vars(module)["forward"] = forward
    return module


def _outside(module: nn.Module) -> nn.Module:
    """A module that computes the same but registers nothing, not even hooks.

    It always stays in evaluation mode, so it neither changes batch-norm statistics nor draws random numbers.
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
