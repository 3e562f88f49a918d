"""The cost of a training step in each layer group, determined without real tensors.

The network runs on PyTorch's fake tensors, which have shapes and no memory, so a network of any size takes seconds. It
runs in parts, cut at the borders between the groups, once with and once without a gradient that flows on to the group
before: between the two lies what the first thawed group saves.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from thawline.backbones._base import Backbone, Preprocessing, TextPreprocessing
from thawline.backbones._windows import Window, is_windowed, layout_of
from thawline.backbones.tracing import trace

__all__ = ["GroupCost", "group_costs"]

_EXAMPLES = 2
"""Batch-norms in training mode refuse a single image where it has shrunk to one pixel."""


@dataclass(frozen=True)
class GroupCost:
    """What one image, or one text of the greatest length, costs in a layer group or the head, in single precision."""

    forward: int
    """Floating-point operations of the forward pass."""
    backward: int
    """Those of the backward pass when the group before is trained too."""
    backward_first: int
    """Those of the backward pass when it is the first that is trained."""
    kept: Mapping[object, int]
    """Bytes of each tensor that the backward pass needs; one that two groups need has the same key in both."""
    kept_first: Mapping[object, int]
    """The same when it is the first group that is trained."""


def group_costs(backbone: Backbone) -> list[GroupCost]:
    """The cost of every layer group and, last, of the head. The backbone is left as it is."""
    if is_windowed(backbone):
        layout_of(backbone)  # learned from numbers, which the copy has not
    with FakeTensorMode():
        module = _without_numbers(backbone.module).train()
        inputs = _examples(backbone.preprocessing)
        run = _runner(backbone, module, inputs)
        trained, first = (_Meter(module, trained_before=before).measure(run) for before in (True, False))
    return [
        GroupCost(
            forward=part.forward // _EXAMPLES,
            backward=part.backward // _EXAMPLES,
            backward_first=alone.backward // _EXAMPLES,
            kept={key: size // _EXAMPLES for key, size in part.kept.items()},
            kept_first={key: size // _EXAMPLES for key, size in alone.kept.items()},
        )
        for part, alone in zip(trained, first, strict=True)
    ]


def _examples(preprocessing: Preprocessing | TextPreprocessing) -> Tensor:
    if isinstance(preprocessing, TextPreprocessing):
        return torch.zeros(_EXAMPLES, preprocessing.max_length, dtype=torch.int64)
    return torch.empty(_EXAMPLES, 3, preprocessing.image_size, preprocessing.image_size)


def _runner(backbone: Backbone, module: nn.Module, inputs: Tensor) -> Callable[["_Meter"], Tensor]:
    """What gives the logits, and tells a meter of what crosses each border, whose answer replaces that.

    Args:
        backbone: how it is cut.
        module: its network without numbers.
        inputs: images or tokens.
    """
    borders = [group.output for group in backbone.layer_groups]
    traced = None if is_windowed(backbone) else fx.GraphModule(module, trace(module))

    def run(meter: "_Meter") -> Tensor:
        logits: Tensor
        if traced is not None:
            logits = _Cutting(traced, borders, meter).run(inputs)
            return logits
        whole = Window(module, layout_of(backbone), 0, None)
        for number, border in enumerate(borders, start=1):
            whole.probe(number, partial(meter.begin_part, border))
        logits = whole(inputs)
        return logits

    return run


def _without_numbers(module: nn.Module) -> nn.Module:
    """A copy whose parameters, all to be trained, and buffers are recreated, as the current mode requires."""
    made: dict[int, Any] = {id(p): nn.Parameter(torch.empty(p.shape, dtype=p.dtype)) for p in module.parameters()}
    made |= {id(buffer): torch.empty(buffer.shape, dtype=buffer.dtype) for buffer in module.buffers()}
    return copy.deepcopy(module, made)  # which takes what it finds there for copied already


@dataclass
class _Part:
    """A layer group, or the head, while it is measured; sizes are those of the whole batch."""

    forward: int = 0
    backward: int = 0
    kept: dict[Any, int] = field(default_factory=dict)
    result: Tensor | None = None


class _Meter:
    """Has a network run in parts, each forward and backward by itself, and counts."""

    def __init__(self, network: nn.Module, *, trained_before: bool) -> None:
        self._trained_before = trained_before
        self._weights = {_storage(tensor) for tensor in (*network.parameters(), *network.buffers())}
        self._counter = FlopCounterMode(
            display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
        )
        self._counted = 0
        self._parts = [_Part()]
        self._passed_on: dict[int, tuple[str, int]] = {}
        self._alive: list[Tensor] = []  # else a later tensor could have the address of an earlier one

    def measure(self, run: Callable[["_Meter"], Tensor]) -> list[_Part]:
        """Count what ``run``, which gives the logits, does between the calls of :meth:`begin_part`."""
        with self._counter, saved_tensors_hooks(self._keep, lambda tensor: tensor):
            self._end_part(run(self))
            for part in self._parts:
                assert part.result is not None  # noqa: S101  narrows the type
                part.result.backward(torch.ones_like(part.result))  # type: ignore[no-untyped-call]
                part.backward = self._count()
        for part in self._parts:
            part.kept = dict(self._named(*item) for item in part.kept.items())
        return self._parts

    def begin_part(self, border: str, result: Tensor) -> Tensor:
        """Continue with the same values as if they were an input."""
        self._end_part(result)
        self._parts.append(_Part())
        # Cloned, since a dropout in place may not write into a leaf; it stands for the same memory.
        begun = result.detach().requires_grad_(self._trained_before).clone()
        self._alive.append(begun)
        name = (border, result.untyped_storage().nbytes())
        self._passed_on |= {_storage(result): name, _storage(begun): name}
        return begun

    def _named(self, storage: int, size: int) -> tuple[object, int]:
        """What is passed on has the border's name on both sides, and its size even if only a piece of it is read."""
        return self._passed_on.get(storage, ((self._trained_before, storage), size))

    def _end_part(self, result: Tensor) -> None:
        self._parts[-1].result, self._parts[-1].forward = result, self._count()

    def _count(self) -> int:
        """Operations since the last call."""
        total = self._counter.get_total_flops()
        counted, self._counted = total - self._counted, total
        return counted

    def _keep(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self._weights:
            self._alive.append(tensor)
            self._parts[-1].kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor


class _Cutting(fx.Interpreter):
    """Runs a traced network, and tells a meter where it crosses a border."""

    def __init__(self, network: fx.GraphModule, borders: Sequence[str], meter: _Meter) -> None:
        super().__init__(network)
        self._borders, self._meter = frozenset(borders), meter

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        return self._meter.begin_part(n.name, result) if n.name in self._borders else result


def _storage(tensor: Tensor) -> int:
    """Which memory it lies in, wherever in it."""
    address: int = tensor.untyped_storage()._cdata
    return address


def _convolution_backward(
    grad_shape: Sequence[int],
    images_shape: Sequence[int],
    weight_shape: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    wanted: Sequence[bool],
    **_: Any,
) -> int:
    """Operations of a convolution's backward pass: each gradient takes as many as the forward pass.

    PyTorch's own formula overlooks that the channels of a grouped convolution see only those of their group, and gives
    a depthwise one some hundred times too many.
    """
    places = math.prod(images_shape if transposed else grad_shape)
    return 2 * places * math.prod(weight_shape[1:]) * sum(wanted[:2])
