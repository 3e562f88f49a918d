"""Cut a network into ordered layer groups, the units of freezing, in one way for all architectures.

If the network's library defines layer groups (timm's ``group_matcher``), they are used as far as the network can be cut
between them. Otherwise the groups are *stages*: a new one starts where the spatial resolution decreases, as
architectures are described in their papers. A network with a constant resolution (a vision transformer) gets a group
per repeated block. Layers on pooled features before the head (VGG's two large layers) form their own group. Every
border between groups is a cut (see :mod:`thawline.backbones.tracing`).

Layers are counted by their weights of two or more dimensions, so a normalisation does not count as a layer.
"""

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise, takewhile

import torch
from torch import nn

from thawline.backbones._base import LayerGroup
from thawline.backbones.tracing import Step, sizes_read_behind, steps_of
from thawline.exceptions import BackboneError

__all__ = ["layer_groups_of", "outputs_of"]

# A stage with more layers than this is split evenly; otherwise a ResNet-152 would thaw 36 blocks at once or none.
_MOST_LAYERS = 48
# A first operation that reduces the resolution by this factor (patch embedding) is a separate stem, although its stage
# has the same resolution.
_PATCH = 4
# Blocks of a network with a constant resolution are merged evenly into at most this many groups.
_MOST_BLOCKS = 12


@dataclass(frozen=True)
class _Atom:
    """The smallest part that can be cut off: consecutive operations with parameters and no cut between them."""

    parameters: tuple[str, ...]
    layers: int
    positions: int
    """Number of positions in its result: 56 x 56, or a transformer's number of tokens."""
    end: int
    """Index of the operation after which it is cut off: the earliest one with the smallest result."""


def outputs_of(layer: nn.Module) -> int | None:
    """Number of outputs of a layer that could be a head, linear or convolutional; ``None`` for any other layer."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv2d) else None


def layer_groups_of(
    module: nn.Module, head: str, image_size: int, order: Mapping[str, int] | None = None
) -> tuple[tuple[LayerGroup, ...], LayerGroup]:
    """The ordered layer groups of ``module`` and its head, which together contain each parameter and buffer once.

    Args:
        module: on the ``meta`` device, in evaluation mode; images ``[N, 3, H, W]`` to logits ``[N, classes]``.
        head: path of the last layer, which is replaced for new classes.
        image_size: the network's height and width in pixels.
        order: if its library defines layer groups, each parameter's group number, counted from the input. Groups stay
            separate if there is a cut between them.

    Raises:
        BackboneError: if it cannot be cut before its head, or has an unused parameter.
    """
    steps = steps_of(module, image_size)
    used = {name for step in steps for name in step.tensors}
    unused = sorted({name for name, _ in module.named_parameters()} - used)
    if unused:
        raise BackboneError(f"Every parameter must be used in the forward pass, but these are not: {unused}.")

    if head not in (positions := {step.path: i for i, step in enumerate(steps)}):
        raise BackboneError(f"The head {head!r} must take part in the forward pass.")
    atoms = _atoms(module, steps[: positions[head]])
    beside = [name for step in steps[atoms[-1].end + 1 :] for name in step.tensors if not name.startswith(f"{head}.")]
    if beside:
        raise BackboneError(f"The head must be a single layer, but {head!r} cannot be separated from {beside}.")
    groups = _by_resolution(atoms, image_size) if order is None else _by_order(atoms, order)
    return _name_and_fill(module, steps, groups, head)


def _by_order(atoms: Sequence[_Atom], order: Mapping[str, int]) -> list[list[_Atom]]:
    """Runs of atoms that belong to one group of the library.

    A parameter that is used later than its position in that order (a class token added after most blocks) joins the
    group before it, as does a run without a layer (a final normalisation).
    """
    # An atom cannot be divided: it belongs to the last group of its parameters.
    numbers = accumulate((max(order[name] for name in atom.parameters) for atom in atoms), max)
    groups: list[list[_Atom]] = []
    for _, run in groupby(zip(numbers, atoms, strict=True), key=lambda pair: pair[0]):
        group = [atom for _, atom in run]
        if groups and _layers(group) == 0:
            groups[-1] += group
        else:
            groups.append(group)
    return groups


def _by_resolution(atoms: list[_Atom], image_size: int) -> list[list[_Atom]]:
    """Stages, with long ones split, or blocks if there are no stages."""
    stages = _stages(atoms)
    if len(stages) < 3:
        return _by_block(atoms)
    stem = _without_stem(stages[0]) if atoms[0].positions <= (image_size // _PATCH) ** 2 else [stages[0]]
    return [part for stage in [*stem, *stages[1:]] for part in _split_evenly(stage)]


def _atoms(module: nn.Module, steps: Sequence[Step]) -> list[_Atom]:
    """The smallest parts of the network before its head between cuts."""
    parameters = dict(module.named_parameters())
    atoms: list[_Atom] = []
    waiting: list[str] = []  # parameters since the last cut
    smallest = 0
    for i, step in enumerate(steps):
        waiting += [name for name in step.tensors if name in parameters]
        if not step.is_cut or step.shape is None:
            continue
        if waiting:
            layers = sum(parameters[name].ndim >= 2 for name in waiting)
            positions = _positions(step.shape, atoms[-1].positions if atoms else 0)
            atoms.append(_Atom(tuple(waiting), layers, positions, end=i))
            waiting, smallest = [], step.shape.numel()
        elif atoms and step.shape.numel() < smallest:  # only pooling since then: a smaller result
            atoms[-1] = replace(atoms[-1], end=i)
            smallest = step.shape.numel()
    if waiting or not atoms:
        raise BackboneError("The network must pass on a single tensor somewhere before its head.")
    return atoms


def _positions(shape: torch.Size, previous: int) -> int:
    """Number of positions in a result, for any order of dimensions.

    ``[1, C, S, S]`` and ``[1, S, S, C]`` have S * S (the image is square), ``[1, tokens, C]`` as many as tokens, ``[1,
    C]`` one. Any other shape keeps the previous number.
    """
    match tuple(shape[1:]):
        case (_, height, width) if height == width:
            return height * width
        case (height, width, _) if height == width:
            return height * width
        case (tokens, _):
            return tokens
        case (_,):
            return 1
    return previous


def _stages(atoms: Sequence[_Atom]) -> list[list[_Atom]]:
    """Runs of atoms with the same resolution; a run without a layer (a final normalisation) joins the previous one."""
    paths = [_path(atom) for atom in atoms]
    falls = [i for i in range(1, len(atoms)) if atoms[i].positions < atoms[i - 1].positions]
    inside = Counter(path for i in falls for path in _with_ancestors(_common_path(paths[i - 1], paths[i])) if path)
    starts = sorted({_start_of_block(paths, i, inside) for i in falls})
    stages: list[list[_Atom]] = []
    for start, end in pairwise([0, *starts, len(atoms)]):
        stage = list(atoms[start:end])
        if stages and _layers(stage) == 0:
            stages[-1] += stage
        elif stage:
            stages.append(stage)
    return stages


def _start_of_block(paths: Sequence[str], fall: int, falls_inside: Mapping[str, int]) -> int:
    """The start of the block in which the resolution decreases: an inverted residual expands before its stride.

    A block is a module in which the resolution decreases once; if it decreases more often, it is the whole body.
    """
    start = fall
    while start > 0:
        block = _common_path(paths[start - 1], paths[start])
        if falls_inside.get(block, 0) != 1:
            break
        while start > 0 and _common_path(block, paths[start - 1]) == block:
            start -= 1
    return start


def _path(atom: _Atom) -> str:
    """Path of the module of its first parameter."""
    return atom.parameters[0].rpartition(".")[0]


def _common_path(first: str, second: str) -> str:
    """Path of the smallest module that contains both."""
    both = zip(first.split("."), second.split("."), strict=False)
    return ".".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], both))


def _layers(atoms: Iterable[_Atom]) -> int:
    return sum(atom.layers for atom in atoms)


def _blocks(atoms: Sequence[_Atom]) -> tuple[list[list[_Atom]], int, int]:
    """Atoms merged into the architecture's repeated blocks, and the indices of the first and last block in that list.

    The blocks are the children of the module with the most children among these atoms (``layer3``, ``encoder.layers``).
    """
    paths = [atom.parameters[0].split(".") for atom in atoms]
    children: dict[tuple[str, ...], set[str]] = {}
    for path in paths:
        for depth in range(len(path) - 1):
            children.setdefault(tuple(path[:depth]), set()).add(path[depth])
    parent = max(children, key=lambda key: (len(children[key]), len(key)))
    depth = len(parent) + 1
    keyed = groupby(zip(paths, atoms, strict=True), key=lambda pair: tuple(pair[0][:depth]))
    runs = [(key, [atom for _, atom in run]) for key, run in keyed]
    inside = [i for i, (key, _) in enumerate(runs) if key[:-1] == parent]
    return [run for _, run in runs], inside[0], inside[-1] + 1


def _by_block(atoms: list[_Atom]) -> list[list[_Atom]]:
    """Groups of a network with a constant resolution: its stem, then its blocks, several per group if necessary."""
    runs, first, last = _blocks(atoms)
    blocks = runs[first:last]
    per_group = math.ceil(len(blocks) / _MOST_BLOCKS)
    groups = [_join(blocks[i : i + per_group]) for i in range(0, len(blocks), per_group)]
    groups[-1] += _join(runs[last:])
    return [_join(runs[:first]), *groups] if first else groups


def _without_stem(stage: list[_Atom]) -> list[list[_Atom]]:
    """Split the stage into the part before its repeated blocks and the rest."""
    runs, first, _ = _blocks(stage)
    return [_join(runs[:first]), _join(runs[first:])] if first else [stage]


def _split_evenly(stage: list[_Atom]) -> list[list[_Atom]]:
    """Split the stage between blocks into parts of at most about ``_MOST_LAYERS`` layers."""
    runs, _, _ = _blocks(stage)
    parts = math.ceil(_layers(stage) / _MOST_LAYERS)
    share = _layers(stage) / parts
    if parts == 1 or max(_layers(run) for run in runs) > share:  # a dense block is indivisible
        return [stage]
    before = accumulate((_layers(run) for run in runs), initial=0)
    # A block belongs to the part that contains its middle.
    numbered = [(int((start + _layers(run) / 2) / share), run) for start, run in zip(before, runs, strict=False)]
    return [_join(run for _, run in part) for _, part in groupby(numbered, key=lambda pair: min(pair[0], parts - 1))]


def _join(parts: Iterable[list[_Atom]]) -> list[_Atom]:
    return [atom for part in parts for atom in part]


def _name_and_fill(
    module: nn.Module, steps: Sequence[Step], groups: Sequence[Sequence[_Atom]], head: str
) -> tuple[tuple[LayerGroup, ...], LayerGroup]:
    """Build each group with its name, its tensors, and the modules whose last operation is in it."""
    ends = [group[-1].end for group in groups]
    group_of_step = [bisect_left(ends, i) for i in range(len(steps))]  # len(groups) is the head
    tensors: list[list[str]] = [[] for _ in range(len(groups) + 1)]
    read = {name for step in steps for name in step.tensors}
    tensors[0] += [name for name, _ in module.named_buffers() if name not in read]  # unused constants
    last_group: dict[str, int] = {}
    for step, number in zip(steps, group_of_step, strict=True):
        tensors[number] += step.tensors
        for path in _with_ancestors(step.path):
            last_group[path] = max(number, last_group.get(path, 0))

    modules: list[list[str]] = [[] for _ in range(len(groups) + 1)]
    for path, _ in module.named_modules():
        # Inner modules of one operation (attention's projection), and modules that never run, follow their parent.
        modules[next(last_group[p] for p in _with_ancestors(path) if p in last_group)].append(path)

    names = _names([[name for atom in group for name in atom.parameters] for group in groups], tensors[-1])
    outputs = [steps[end].node.name for end in [*ends, -1]]
    sizes = [tuple(sizes_read_behind(steps, end).items()) for end in ends] + [()]
    made = [
        LayerGroup(name, tuple(tensors[i]), tuple(modules[i]), outputs[i], sizes[i])
        for i, name in enumerate([*names, head])
    ]
    return tuple(made[:-1]), made[-1]


def _with_ancestors(path: str) -> list[str]:
    """``a.b.c``, ``a.b``, ``a`` and the root, ``""``, for ``a.b.c``."""
    parts = path.split(".") if path else []
    return [".".join(parts[:i]) for i in range(len(parts), -1, -1)]


def _names(groups: Sequence[Sequence[str]], head: Sequence[str]) -> list[str]:
    """A readable name for each group, from the shortest paths unique to it: ``layer1`` or ``features.4-6``."""
    owners: dict[str, set[int]] = {}
    for number, group in enumerate([*groups, head]):
        for name in group:
            for path in _with_ancestors(name):
                owners.setdefault(path, set()).add(number)
    names = []
    for group in groups:
        first, last = (_shortest_own(name, owners) for name in (group[0], group[-1]))
        names.append(_range(first, last))
    return names


def _shortest_own(name: str, owners: dict[str, set[int]]) -> str:
    """The shortest path above a parameter that contains no parameter of another group."""
    return next(path for path in reversed(_with_ancestors(name)) if path and len(owners[path]) == 1)


def _range(first: str, last: str) -> str:
    """``layer3.0-7`` for ``layer3.0`` and ``layer3.7``; ``Mixed_6a-e`` for ``Mixed_6a`` and ``Mixed_6e``."""
    if first == last:
        return first
    ends = [re.fullmatch(r"(.*?)(\d+|(?<=\d)[a-z])", path) for path in (first, last)]
    if ends[0] and ends[1] and ends[0][1] == ends[1][1]:
        return f"{first}-{ends[1][2]}"
    shared = _common_path(first, last)
    rest = last.removeprefix(shared + ".")
    if rest.count(".") < first.removeprefix(shared + ".").count("."):  # "6.5-8" would read as 6.5 to 6.8
        rest = last
    return f"{first}-{rest}"
