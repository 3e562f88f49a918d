"""Observe training: gradient flow, and the distributions of weights and gradients.

Observation does not affect results, does not draw from training's random generators, and takes at most a share of its
time: cheap observations are always made, others only within that share.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.utils.hooks import RemovableHandle

from thawline.backbones import Backbone, Section

__all__ = ["HEAD", "Allowance", "Distribution", "GradientVerdict", "Observation", "Observer"]

_log = logging.getLogger(__name__)

HEAD = "head"
"""Name of the head among the observed layer groups."""

_SAMPLE, _BINS = 8192, 64
"""Maximum number of values per layer group for its histograms, and the number of bins."""

_POINTS = 50
"""Maximum number of steps per epoch with norms in an observation: a chart cannot show more."""

_POINT_ELSEWHERE, _DETAILS_ELSEWHERE = 1e-4, 0.1
"""Seconds for a number, and for an epoch's pictures and histograms, in the threads of MLflow's and TensorBoard's
trackers, which compete with training for the CPU. Measured; 16 pictures of 80 pixels are encoded three times."""

_AROUND_A_HOOK = 3.0
"""Factor of a backward hook's total cost, including torch's overhead, to its own time."""

_FACTOR = 1000.0
"""A gradient vanishes (explodes) if it is this many times smaller (larger) than the head's in the same step. In the
first steps of nineteen torchvision architectures with random weights, and of two with pretrained ones, no group
differed by more than a factor of 120."""

_SHARE_OF_STEPS = 0.25
"""Minimum share of such steps. Some occur at the start of training: a vision transformer's new head is all zeros, and
passes no gradient until it has learned."""


@dataclass(frozen=True)
class Distribution:
    """A histogram."""

    counts: np.ndarray
    """int64 ``[B]``: count per bin."""
    edges: np.ndarray
    """float ``[B + 1]``, increasing."""


@dataclass(frozen=True)
class Observation:
    """The observation of one epoch. Groups are the trained layer groups, from the input on, and :data:`HEAD`."""

    epoch: int
    """Number of finished epochs, from 1."""
    mean_norms: Mapping[str, float]
    """For each group, the mean norm of its incoming gradient over the observed steps. Groups without a finite norm are
    omitted."""
    steps: np.ndarray
    """int64 ``[S]``: at most 50 of these steps, counted from 1 over the whole training."""
    norms: Mapping[str, np.ndarray]
    """For each group, ``[S]``: the norms in these steps; not finite where training diverged."""
    weights: Mapping[str, Distribution]
    """For each group, after the epoch; empty unless ``in_detail``."""
    gradients: Mapping[str, Distribution]
    """For each group, in the epoch's last step; empty unless ``in_detail``."""
    logits: Tensor
    """``[N, num_classes]`` for the validation images, fp32 on the CPU."""
    in_detail: bool
    """Whether there is time for expensive records such as pictures."""


class Allowance:
    """Limits the time spent on observation to a share of the time since this was created."""

    def __init__(self, share: float, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """Set the share, in [0, 1], and a clock in seconds."""
        self._share, self._clock, self._began = share, clock, clock()
        self.spent = 0.0
        """Seconds spent so far."""

    def permits(self, seconds: float = 0.0) -> bool:
        """Whether this many more seconds fit into the share."""
        return self.spent + seconds <= self._share * (self._clock() - self._began)

    @contextmanager
    def spending(self, *, elsewhere: float = 0.0, times: float = 1.0) -> Iterator[None]:
        """Count the time of the block, times a factor, plus its seconds in other threads."""
        began = self._clock()
        yield
        self.spent += times * (self._clock() - began) + elsewhere


class Observer:
    """Observes one training, for :func:`thawline.training.fit`, and reports an observation after every epoch.

    Gradients take at most 0.4 % of the training time, by observing fewer steps if necessary, and details at most 1 %,
    by observing fewer epochs in detail. With uncounted costs, the total stays below 5 %. Errors in ``record`` are
    logged and never end training.
    """

    def __init__(
        self,
        record: Callable[[Observation], None],
        *,
        flow: Allowance | None = None,
        details: Allowance | None = None,
    ) -> None:
        """Set the recipient of observations, and optionally the allowances for gradients and for details."""
        self._record = record
        self._allowance = flow or Allowance(0.004)
        self._details = details or Allowance(0.01)
        self._cost_of_details = 0.02 + _DETAILS_ELSEWHERE
        self.verdict = GradientVerdict()
        """The verdict on the gradients of all epochs, including those of a failed training."""
        self._seen = _Seen()

    @property
    def is_watching(self) -> bool:
        """Whether the network has hooks now."""
        return self._flow.is_watched

    def attach(self, network: Section, backbone: Backbone, depth: int, scaler: GradScaler) -> None:
        """Prepare to observe ``network``, a section of ``backbone`` that is trained from layer group ``depth`` on."""
        self._flow = _GradientFlow(network, backbone, depth, scaler, self._allowance)
        self._parameters = _parameters_of(backbone, depth)
        self._sample = {name: _Sample(parameters) for name, parameters in self._parameters.items()}
        self._scaled = scaler.is_enabled()

    @contextmanager
    def watching(self, parts: int, steps: range) -> Iterator[None]:
        """Observe an epoch: at most ``parts`` backward passes, which belong to these optimizer steps."""
        self._seen = seen = _Seen(steps=steps)
        self._flow.begin(parts)
        try:
            yield
        finally:
            self._flow.leave_alone()
        seen.norms = self._flow.norms(seen.parts_of_steps)
        self.verdict.add(seen.norms, skip_not_finite=self._scaled)

    def before_step(self) -> None:
        """Observe a step's complete gradients before clipping."""
        seen = self._seen
        seen.done += 1
        if self._flow.is_watched:
            seen.watched.append(seen.steps[seen.done - 1])
            seen.parts_of_steps.append(self._flow.parts)
        self._flow.watch(self._allowance.permits())
        if seen.done == len(seen.steps) and self._details.permits(self._cost_of_details):
            before = self._details.spent
            with self._details.spending():
                seen.gradients = {
                    name: self._sample[name].take([parameter.grad for parameter in parameters])
                    for name, parameters in self._parameters.items()
                }
            self._cost_of_details = self._details.spent - before

    def end_epoch(self, epoch: int, logits: Tensor) -> None:
        """Report the observation of an epoch (from 1), with the validation logits ``[N, num_classes]``."""
        seen = self._seen
        in_detail = bool(seen.gradients)
        before = self._details.spent
        chosen = _thinned(len(seen.watched))
        self._allowance.spent += len(chosen) * len(seen.norms) * _POINT_ELSEWHERE
        with self._details.spending(elsewhere=_DETAILS_ELSEWHERE) if in_detail else self._allowance.spending():
            finite = {name: norms[np.isfinite(norms)] for name, norms in seen.norms.items()}
            weights = {
                name: self._sample[name].take([parameter.detach() for parameter in parameters])
                for name, parameters in (self._parameters if in_detail else {}).items()
            }
            observation = Observation(
                epoch=epoch,
                mean_norms={name: float(norms.mean()) for name, norms in finite.items() if len(norms)},
                steps=np.array(seen.watched, dtype=np.int64)[chosen],
                norms={name: norms[chosen] for name, norms in seen.norms.items()},
                weights=_distributions(weights),
                gradients=_distributions(seen.gradients),
                logits=logits,
                in_detail=in_detail,
            )
            try:
                self._record(observation)
            except Exception:
                _log.warning("the observation of epoch %d could not be recorded", epoch, exc_info=True)
        if in_detail:
            self._cost_of_details += self._details.spent - before


class GradientVerdict:
    """Detects layer groups with vanishing or exploding gradients.

    In every step, each group's norm is compared with the head's. The head's gradient is the derivative of the loss
    itself, at most the square root of 2 per image for any network, and should neither shrink nor grow by orders of
    magnitude from there. (A median of the groups would fail if most of them vanish.)
    """

    def __init__(self) -> None:
        self._steps = 0
        self._vanishing: Counter[str] = Counter()
        self._exploding: Counter[str] = Counter()

    def add(self, norms: Mapping[str, np.ndarray], *, skip_not_finite: bool = False) -> None:
        """Add the norms ``[S]`` of each group, including :data:`HEAD`.

        Steps without a finite norm at the head failed before the backward pass, and do not count. With
        ``skip_not_finite``, steps with any non-finite norm do not count: a loss scaler skips them while it adjusts its
        scale.
        """
        usable = np.isfinite(np.stack(list(norms.values()) if skip_not_finite else [norms[HEAD]])).all(axis=0)
        head = norms[HEAD][usable]
        self._steps += len(head)
        for name in (name for name in norms if name != HEAD):
            reached = np.nan_to_num(norms[name][usable], nan=np.inf, posinf=np.inf)
            self._vanishing[name] += int((reached * _FACTOR < head).sum())
            self._exploding[name] += int((reached > head * _FACTOR).sum())

    @property
    def findings(self) -> tuple[str, ...]:
        """Problems with advice, a sentence for each layer group; empty without problems."""
        found = []
        vanishing = "less than a thousandth of the head's; it hardly learns, so freezing it costs little."
        exploding = "more than a thousand times the head's; lower the learning rate, or freeze it."
        for counts, word, size in (
            (self._vanishing, "vanishes", vanishing),
            (self._exploding, "explodes", exploding),
        ):
            for name, steps in counts.items():
                if steps and steps >= _SHARE_OF_STEPS * self._steps:
                    share = f"{steps / self._steps:.0%}"
                    found.append(f"The gradient {word} in {name}: in {share} of the steps it is {size}")
        return tuple(found)


@dataclass
class _Seen:
    """Observations of the current epoch."""

    steps: range = range(0)
    done: int = 0
    """Number of completed steps."""
    watched: list[int] = field(default_factory=list)
    """Numbers of the observed steps."""
    parts_of_steps: list[int] = field(default_factory=list)
    """Backward passes observed up to each of them."""
    norms: dict[str, np.ndarray] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Samples of the last step's gradients, on the device; empty unless observed in detail."""


class _GradientFlow:
    """Norms of the gradient with respect to each layer group's output, which is all of the gradient that reaches it.

    They are computed by full backward hooks on identity modules, which are inserted between layer groups of the
    training network. Modules of the backbone are not hooked: outputs of a hooked module must not be modified in place,
    but most networks do that right after their layers (``ReLU(inplace=True)``, ``out += identity``). None does it
    between its layer groups.
    """

    def __init__(
        self, network: Section, backbone: Backbone, depth: int, scaler: GradScaler, allowance: Allowance
    ) -> None:
        self._scaler, self._allowance = scaler, allowance
        self._device = next(backbone.module.parameters()).device
        self._probes = _probe(network, backbone, depth)
        self._handles: list[RemovableHandle] = []
        self._norms = torch.zeros(0, 0)
        self.parts = 0
        """Backward passes observed since the start of the epoch."""

    @property
    def is_watched(self) -> bool:
        """Whether the modules are hooked."""
        return bool(self._handles)

    def begin(self, parts: int) -> None:
        """Reset, and observe the first of this many backward passes."""
        self.parts = 0
        # One row per pass and one column per group, the last for the loss scale: no sync with the device.
        self._norms = torch.ones(parts, len(self._probes) + 1, device=self._device)
        self.watch(True)

    def watch(self, wanted: bool) -> None:
        """Add or remove the hooks."""
        if not wanted:
            self.leave_alone()
        elif not self._handles:
            self._handles = [
                probe.register_full_backward_hook(partial(self._note, i))
                for i, probe in enumerate(self._probes.values())
            ]

    def leave_alone(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _note(self, place: int, probe: nn.Module, grad_input: object, grad_output: tuple[Tensor, ...] | Tensor) -> None:
        with self._allowance.spending(times=_AROUND_A_HOOK):
            if place == len(self._probes) - 1:  # the head's, where every backward pass starts
                self.parts += 1
                if self._scaler.is_enabled():
                    self._norms[self.parts - 1, -1] = self._scaler.scale(torch.ones((), device=self._device))
            torch.linalg.vector_norm(grad_output[0], dtype=torch.float32, out=self._norms[self.parts - 1, place])

    def norms(self, parts_of_steps: Sequence[int]) -> dict[str, np.ndarray]:
        """Norms ``[S]`` of each group, combined over the parts of a batch."""
        rows = self._norms.cpu().double().numpy()
        with np.errstate(all="ignore"):  # not finite where training diverged
            squares = (rows[:, :-1] / rows[:, -1:]) ** 2
            steps = [squares[start:end].sum(axis=0) for start, end in pairwise([0, *parts_of_steps])]
            table = np.sqrt(np.array(steps).reshape(len(steps), len(self._probes)))
        return {name: table[:, i] for i, name in enumerate(self._probes)}


def _probe(network: Section, backbone: Backbone, depth: int) -> dict[str, nn.Module]:
    """Insert an identity module after each trained layer group of a section, and after the head."""
    names = [*(group.name for group in backbone.layer_groups[depth:]), HEAD]
    probes: dict[str, nn.Module] = {name: nn.Identity() for name in names}
    for border, probe in enumerate(probes.values(), start=depth + 1):
        network.probe(border, probe)
    return probes


def _parameters_of(backbone: Backbone, depth: int) -> dict[str, list[nn.Parameter]]:
    """The parameters of each trained layer group, and of the head."""
    named = dict(backbone.module.named_parameters())
    groups = [*((group.name, group.tensors) for group in backbone.layer_groups[depth:]), (HEAD, backbone.head.tensors)]
    return {name: [named[tensor] for tensor in tensors if tensor in named] for name, tensors in groups}


class _Sample:
    """A fixed sample of some tensors' values, drawn once: all, or about :data:`_SAMPLE` of them."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)  # separate, so that training's generator is unchanged
        share = min(1.0, _SAMPLE / sum(tensor.numel() for tensor in tensors))
        self._places = [
            torch.randint(
                tensor.numel(), (max(1, round(share * tensor.numel())),), generator=generator, device="cpu"
            ).to(tensor.device)
            if share < 1
            else None
            for tensor in tensors
        ]

    def take(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """The sampled values, one-dimensional, on the tensors' device."""
        taken = [
            _flat(tensor) if places is None else _flat(tensor)[places]
            for tensor, places in zip(tensors, self._places, strict=True)
            if tensor is not None
        ]
        return torch.cat(taken) if taken else torch.zeros(0)


def _flat(tensor: Tensor) -> Tensor:
    """All values in one dimension, in memory order, so that nothing is copied."""
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(-1)


def _distributions(samples: Mapping[str, Tensor]) -> dict[str, Distribution]:
    """Histograms of the finite values; groups without any are omitted."""
    distributions = {}
    for name, sample in samples.items():
        values = sample.float().cpu().numpy()
        values = values[np.isfinite(values)]
        if len(values):
            distributions[name] = Distribution(*np.histogram(values, bins=_BINS))
    return distributions


def _thinned(steps: int) -> list[int]:
    """Indices of all steps, or of :data:`_POINTS` of them, including the first and the last."""
    return sorted({int(i) for i in np.linspace(0, steps - 1, min(steps, _POINTS)).round()})
