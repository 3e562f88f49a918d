"""The cost of a training step in each layer group, determined without real tensors.

The network runs on PyTorch's fake tensors, which have shapes but no memory, so a network of any size takes seconds. It
runs in parts, cut between the groups, once with and once without a gradient to the previous group: the difference is
what the first thawed group saves.
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
"""Batch-norms in training mode reject a single image of one pixel."""


@dataclass(frozen=True)
class GroupCost:
    """Cost of one image, or one text of maximum length, in a layer group or the head, in single precision."""

    forward: int
    """Floating-point operations of the forward pass."""
    backward: int
    """FLOPs of the backward pass if the previous group is also trained."""
    backward_first: int
    """FLOPs of the backward pass if this is the first trained group."""
    kept: Mapping[object, int]
    """Bytes of each tensor kept for the backward pass; a tensor shared by two groups has the same key in both."""
    kept_first: Mapping[object, int]
    """The same if this is the first trained group."""


def group_costs(backbone: Backbone) -> list[GroupCost]:
    """The cost of every layer group and, finally, of the head. The backbone is unchanged."""
    if is_windowed(backbone):
        layout_of(backbone)  # determined from real values, which the copy lacks
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
    """A function that computes the logits, and passes each border's tensor to a meter, which replaces it.

    Args:
        backbone: the backbone with its layer groups.
        module: its network without real values.
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
    """A copy with parameters, all trainable, and buffers recreated in the current tensor mode."""
    made: dict[int, Any] = {id(p): nn.Parameter(torch.empty(p.shape, dtype=p.dtype)) for p in module.parameters()}
    made |= {id(buffer): torch.empty(buffer.shape, dtype=buffer.dtype) for buffer in module.buffers()}
    return copy.deepcopy(module, made)  # treats the entries of this memo as already copied


@dataclass
class _Part:
    """A layer group, or the head, being measured; sizes are for the whole batch."""

    forward: int = 0
    backward: int = 0
    kept: dict[Any, int] = field(default_factory=dict)
    result: Tensor | None = None


class _Meter:
    """Runs a network in parts, each forward and backward separately, and counts."""

    def __init__(self, network: nn.Module, *, trained_before: bool) -> None:
        self._trained_before = trained_before
        self._weights = {_storage(tensor) for tensor in (*network.parameters(), *network.buffers())}
        self._counter = FlopCounterMode(
            display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
        )
        self._counted = 0
        self._parts = [_Part()]
        self._passed_on: dict[int, tuple[str, int]] = {}
        self._alive: list[Tensor] = []  # otherwise a later tensor could reuse an address

    def measure(self, run: Callable[["_Meter"], Tensor]) -> list[_Part]:
        """Measure ``run``, which returns the logits, between the calls of :meth:`begin_part`."""
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
        """Continue with the same values as a new input."""
        self._end_part(result)
        self._parts.append(_Part())
        # Cloned, since an in-place dropout must not modify a leaf; it represents the same memory.
        begun = result.detach().requires_grad_(self._trained_before).clone()
        self._alive.append(begun)
        name = (border, result.untyped_storage().nbytes())
        self._passed_on |= {_storage(result): name, _storage(begun): name}
        return begun

    def _named(self, storage: int, size: int) -> tuple[object, int]:
        """A passed-on tensor has the border's name on both sides, and its full size even if only a part is read."""
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
    """Runs a traced network, and notifies a meter at each border."""

    def __init__(self, network: fx.GraphModule, borders: Sequence[str], meter: _Meter) -> None:
        super().__init__(network)
        self._borders, self._meter = frozenset(borders), meter

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        return self._meter.begin_part(n.name, result) if n.name in self._borders else result


def _storage(tensor: Tensor) -> int:
    """The id of a tensor's storage."""
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
    """FLOPs of a convolution's backward pass: each gradient takes as many as the forward pass.

    PyTorch's own formula ignores that a grouped convolution only connects channels within a group, and overestimates a
    depthwise one about a hundredfold.
    """
    places = math.prod(images_shape if transposed else grad_shape)
    return 2 * places * math.prod(weight_shape[1:]) * sum(wanted[:2])
