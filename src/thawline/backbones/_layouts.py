"""The layout of a network that cannot be traced: the part before its blocks, the blocks, and the part after."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from thawline.backbones._base import LayerGroup, Preprocessing, TextPreprocessing
from thawline.exceptions import BackboneError

__all__ = ["Layout", "Output", "Recording", "Shape", "evaluating", "example", "example_for", "holds_parameters"]


@dataclass(frozen=True)
class Output:
    """The structure of a block's output, with shapes in place of tensors."""

    leaves: tuple[Any, ...]
    structure: pytree.TreeSpec

    @classmethod
    def of(cls, value: Any) -> "Output":
        leaves, structure = pytree.tree_flatten(value)
        return cls(tuple(Shape.of(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves), structure)

    def filled(self, make: Callable[["Shape"], Tensor]) -> Any:
        """The same structure with new tensors."""
        leaves = [make(leaf) if isinstance(leaf, Shape) else leaf for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.structure)


@dataclass(frozen=True)
class Shape:
    """The shape of a tensor for one example."""

    sizes: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "Shape":
        return cls(tuple(tensor.shape), tensor.dtype)

    def zeros(self, device: torch.device, count: int) -> Tensor:
        """Zeros for this many examples."""
        first, *others = self.sizes
        return torch.zeros(first * count, *others, dtype=self.dtype, device=device)


@dataclass(frozen=True)
class Layout:
    """The layout of a network. A *place* is a part of its forward pass.

    0 is everything before the first block, ``1 + i`` is block ``i`` and everything before the next, and the last place
    is the head. The border of a place is the first floating-point tensor passed to its block, or to the head.
    """

    blocks: tuple[str, ...]
    """Paths of the blocks, in the order of execution."""
    head: str
    """Path of the last layer."""
    input: Shape
    """Shape of the example from which it was learned."""
    outputs: Mapping[str, tuple[Output, ...]]
    """A block's outputs for each call in one forward pass."""
    places: Mapping[str, int]
    """The place of each outermost module that contains neither a block nor the head."""
    is_text: bool
    """Whether it takes texts instead of images."""
    needs_whole_batch: bool = False
    """Whether modules before a window need the batch's number of images instead of one."""
    borders: tuple[int, ...] = ()
    """The first place of each layer group, ascending from 0, and finally that of the head."""

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
        """Path of the last block before a place, or of the part before all blocks."""
        if stop > 1:
            return self.blocks[stop - 2]
        return [path for path, place in self.places.items() if place == 0][-1]

    def shape_of(self, path: str) -> tuple[int, ...] | None:
        """Output shape of a block of an image network for one image; unknown for other modules."""
        if self.is_text or path not in self.outputs:
            return None
        return next(leaf.sizes[1:] for leaf in self.outputs[path][-1].leaves if isinstance(leaf, Shape))

    def bordered_as(self, groups: tuple[LayerGroup, ...]) -> "Layout":
        """The same layout with the borders of these layer groups."""
        place_after = {block: i for i, block in enumerate(self.blocks, start=2)}
        borders = (0, *(place_after.get(group.output, 1) for group in groups))
        return replace(self, borders=borders, needs_whole_batch=True)  # correct for all, but slower for most

    def _place_of(self, path: str) -> int | None:
        """The place that contains a module completely."""
        while path:
            if path in self.places:
                return self.places[path]
            path = path.rpartition(".")[0]
        return None

    def _last_place_in(self, path: str) -> int:
        """The place where a module that contains blocks or the head ends."""
        inside = [place for inner, place in self.places.items() if not path or inner.startswith(f"{path}.")]
        return max(inside, default=0)

    def _name(self, module: nn.Module, start: int, stop: int) -> str:
        """``embeddings``, ``layer.3``, or ``layer.3-5`` for merged blocks."""
        common = _common([*self.blocks])
        short = [block.removeprefix(common.rpartition(".")[0]).lstrip(".") for block in self.blocks]
        first, last = (short[place - 1] if place else None for place in (start, stop - 1))
        if first is None:
            before = [path for path, place in self.places.items() if place == 0 and holds_parameters(module, path)]
            first = "embeddings" if self.is_text else before[0].rpartition(".")[2] if before else short[0]
        if last is None or last == first:
            return first
        return f"{first}-{last.removeprefix(_common([first, last])).lstrip('.')}"


def holds_parameters(module: nn.Module, path: str) -> bool:
    return any(True for _ in module.get_submodule(path).parameters())


def _common(paths: list[str]) -> str:
    """The common prefix of all paths; for a single path, its parent."""
    parts = [path.split(".") for path in paths]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return ".".join(parts[0][:shared])


def example(preprocessing: Preprocessing | TextPreprocessing, *, size: int = 1, length: int = 5) -> Tensor:
    """A tiny input: ``size`` images ``[N, 3, S, S]``, or texts ``[N, length]``, all but the last with padding."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(preprocessing, Preprocessing):
        side = preprocessing.image_size
        return torch.randn(size, 3, side, side, generator=generator)
    tokens = torch.randint(2, 6, (size, length), generator=generator)
    tokens[: size - 1, -2:] = -1
    return tokens


def example_for(
    module: nn.Module, preprocessing: Preprocessing | TextPreprocessing, *, size: int = 1, length: int = 5
) -> Tensor:
    return example(preprocessing, size=size, length=length).to(next(module.parameters()).device)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Within the block, set all modules to evaluation mode; then restore each one's mode."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@dataclass
class Recording:
    """A recording of one forward pass."""

    module: nn.Module
    logits: Tensor = field(default_factory=lambda: torch.zeros(0))
    called: list[str] = field(default_factory=list)
    """Paths of modules, one per call."""
    outputs: dict[str, list[Output]] = field(default_factory=dict)
    results: dict[str, Tensor] = field(default_factory=dict)
    """Outputs of layers that could be the head."""

    @classmethod
    def of(cls, module: nn.Module, inputs: Tensor) -> "Recording":
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
        self.outputs.setdefault(path, []).append(Output.of(output))
        if isinstance(module, nn.Linear | nn.Conv2d):
            self.results[path] = output

    def head(self, name: str) -> str:
        """The linear layer that returns the logits."""
        path = next((path for path in reversed(self.called) if path in self.results), None)
        if path is None or self.called.count(path) > 1 or not torch.equal(self.results[path], self.logits):
            raise BackboneError(f"The logits of {name!r} must be the output of a linear layer, but they are not.")
        return path

    def blocks(self, head: str, name: str) -> tuple[str, ...]:
        """The modules of the list with the most parameters, in the order of execution."""
        lists = [(path, part) for path, part in self.module.named_modules() if isinstance(part, nn.ModuleList)]
        lists = [(path, part) for path, part in lists if not head.startswith(f"{path}.")]
        path, _ = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()), default=("", None))
        inside = self._called_in(path) if path else []
        order = [called for called in self.called if called in inside]
        blocks = tuple(dict.fromkeys(order))
        if not lists:
            raise BackboneError(
                f"{name!r} has no list of blocks (a torch.nn.ModuleList) that could be divided into layer "
                "groups. Choose another backbone; timm also has many networks, as timm/NAME."
            )
        if not blocks or [block for block, _ in _runs(order)] != list(blocks):
            raise BackboneError(
                f"The blocks of {name!r} must be called in sequence, but they are not; it cannot be cut into "
                "layer groups. Choose another backbone."
            )
        return blocks

    def _called_in(self, path: str) -> list[str]:
        """The outermost called modules inside a list, which itself is never called."""
        found = []
        for inner, _ in self.module.get_submodule(path).named_children():
            whole = f"{path}.{inner}"
            found += [whole] if whole in self.outputs else self._called_in(whole)
        return found

    def places(self, blocks: tuple[str, ...], head: str) -> dict[str, int]:
        """See :attr:`Layout.places`; modules that are never called belong to the input."""
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
    """Run-length encoding: each name with the length of its run."""
    runs: list[tuple[str, int]] = []
    for name in order:
        if runs and runs[-1][0] == name:
            runs[-1] = (name, runs[-1][1] + 1)
        else:
            runs.append((name, 1))
    return runs
