"""What happens inside a training: gradient flow, and the distributions of weights and gradients.

Observing changes no number that training computes, draws none from its random generators, and takes at most a share of
its time: what costs little is done always, the rest only while the share allows it.
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
"""Name of the head among the layer groups that are observed."""

_SAMPLE, _BINS = 8192, 64
"""Numbers of a layer group that its histograms are counted from at most, and their bins."""

_POINTS = 50
"""Steps of an epoch whose norms are handed over, at most: a chart shows no more."""

_POINT_ELSEWHERE, _DETAILS_ELSEWHERE = 1e-4, 0.1
"""Seconds that a number, and an epoch's pictures and histograms, take in the threads of MLflow's and TensorBoard's
trackers, which take the processor from training. Measured; 16 pictures of 80 pixels are encoded three times."""

_AROUND_A_HOOK = 3.0
"""How many times its own time a backward hook takes, with what torch does around it."""

_FACTOR = 1000.0
"""How many times smaller (larger) than the head's in the same step a gradient is that vanishes (explodes). In the first
steps of nineteen of torchvision's architectures with random weights, and of two with pretrained ones, no group was
off by more than 120."""

_SHARE_OF_STEPS = 0.25
"""In how many of the steps it must be so. When training begins some are off: a vision transformer's new head is all
zeros, and lets nothing through until it has learned."""


@dataclass(frozen=True)
class Distribution:
    """How numbers are spread."""

    counts: np.ndarray
    """int64 ``[B]``: numbers in each bin."""
    edges: np.ndarray
    """float ``[B + 1]``, rising."""


@dataclass(frozen=True)
class Observation:
    """Observation of one epoch. Groups are those that were trained, from the input on, and :data:`HEAD`."""

    epoch: int
    """Epochs finished, from 1."""
    mean_norms: Mapping[str, float]
    """Of each group, over the observed steps: norm of the gradient that reached it. A group is left out for
    which none is finite."""
    steps: np.ndarray
    """int64 ``[S]``: some of these steps, at most 50, counted from 1 over the whole training."""
    norms: Mapping[str, np.ndarray]
    """Of each group, ``[S]``: the norms in these; not finite where training broke."""
    weights: Mapping[str, Distribution]
    """Of each group after the epoch; empty unless ``in_detail``."""
    gradients: Mapping[str, Distribution]
    """Of each group in the epoch's last step; empty unless ``in_detail``."""
    logits: Tensor
    """``[N, num_classes]`` of the validation images, fp32 on the CPU."""
    in_detail: bool
    """Whether there is time for what takes longer, such as pictures."""


class Allowance:
    """Keeps what is spent on looking to a share of the time since this was made."""

    def __init__(self, share: float, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """Take the share, in [0, 1], and a clock in seconds."""
        self._share, self._clock, self._began = share, clock, clock()
        self.spent = 0.0
        """Seconds so far."""

    def permits(self, seconds: float = 0.0) -> bool:
        """Whether this many more seconds still fit into the share."""
        return self.spent + seconds <= self._share * (self._clock() - self._began)

    @contextmanager
    def spending(self, *, elsewhere: float = 0.0, times: float = 1.0) -> Iterator[None]:
        """Count the time of the block, times a factor, and seconds that it takes in other threads."""
        began = self._clock()
        yield
        self.spent += times * (self._clock() - began) + elsewhere


class Observer:
    """Watches one training, for :func:`thawline.training.fit`, and hands over an observation after every epoch.

    Of the training's time, gradients take at most 0.4 %, else not all steps are observed, and details 1 %, else not all
    epochs are observed in detail: that leaves room for what is not counted before it is 5 %. What ``record`` raises is
    logged and never ends the training.
    """

    def __init__(
        self,
        record: Callable[[Observation], None],
        *,
        flow: Allowance | None = None,
        details: Allowance | None = None,
    ) -> None:
        """Take who is told, and the allowances for gradients and for details if they are others."""
        self._record = record
        self._allowance = flow or Allowance(0.004)
        self._details = details or Allowance(0.01)
        self._cost_of_details = 0.02 + _DETAILS_ELSEWHERE
        self.verdict = GradientVerdict()
        """What the gradients of all epochs say, those of a training that broke too."""
        self._seen = _Seen()

    def attach(self, network: Section, backbone: Backbone, depth: int, scaler: GradScaler) -> None:
        """Prepare to watch ``network``, a section of ``backbone`` that is trained from layer group ``depth`` on."""
        self._flow = _GradientFlow(network, backbone, depth, scaler, self._allowance)
        self._parameters = _parameters_of(backbone, depth)
        self._sample = {name: _Sample(parameters) for name, parameters in self._parameters.items()}
        self._scaled = scaler.is_enabled()

    @contextmanager
    def watching(self, parts: int, steps: range) -> Iterator[None]:
        """Watch an epoch: at most ``parts`` backward passes that make up the optimizer steps of these numbers."""
        self._seen = seen = _Seen(steps=steps)
        self._flow.begin(parts)
        try:
            yield
        finally:
            self._flow.leave_alone()
        seen.norms = self._flow.norms(seen.parts_of_steps)
        self.verdict.add(seen.norms, skip_not_finite=self._scaled)

    def before_step(self) -> None:
        """Look at the gradients of a step, whole and not clipped yet."""
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
        """Hand over what was seen of an epoch (from 1), with the validation logits ``[N, num_classes]``."""
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
                _log.warning("what was observed in epoch %d is not recorded", epoch, exc_info=True)
        if in_detail:
            self._cost_of_details += self._details.spent - before


class GradientVerdict:
    """Which layer groups the gradient does not reach, or reaches far too large.

    In every step each group's norm is compared with the head's: what reaches that is the derivative of the loss itself,
    at most the square root of 2 for an image on whatever network, and on its way from there it should neither fade nor
    grow by orders of magnitude. (A median of the groups would be one of the faded where most of them fade.)
    """

    def __init__(self) -> None:
        self._steps = 0
        self._vanishing: Counter[str] = Counter()
        self._exploding: Counter[str] = Counter()

    def add(self, norms: Mapping[str, np.ndarray], *, skip_not_finite: bool = False) -> None:
        """Take in the norms ``[S]`` of each group, :data:`HEAD` among them.

        Steps without a finite norm at the head broke before any gradient flowed, and do not count. With
        ``skip_not_finite`` those with any such norm do not: with a loss scale they are tried out and left out.
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
        """What is wrong, a sentence for each layer group, with what to do; empty if nothing is."""
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
    """What was seen of the epoch that runs."""

    steps: range = range(0)
    done: int = 0
    """How many of these were taken."""
    watched: list[int] = field(default_factory=list)
    """Numbers of the observed ones."""
    parts_of_steps: list[int] = field(default_factory=list)
    """Backward passes observed until each of them was taken."""
    norms: dict[str, np.ndarray] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Samples of the last step's, on the device; empty if nothing is observed in detail."""


class _GradientFlow:
    """Norms of the gradient with respect to what each layer group passes on, which is all that reaches the group.

    They are taken by full backward hooks on modules that do nothing, which are put into the training network where one
    group ends and the next begins. No module of the backbone is hooked: what such a hook wraps may not be written to in
    place, and most networks do so right behind their layers (``ReLU(inplace=True)``, ``out += identity``), but none
    does at the borders of its groups.
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
        """Backward passes observed since the epoch began."""

    @property
    def is_watched(self) -> bool:
        """Whether the modules have their hooks."""
        return bool(self._handles)

    def begin(self, parts: int) -> None:
        """Reset, and watch the first of this many backward passes."""
        self.parts = 0
        # One row a pass and one place a group, the last place for the loss scale: nothing waits for the device.
        self._norms = torch.ones(parts, len(self._probes) + 1, device=self._device)
        self.watch(True)

    def watch(self, wanted: bool) -> None:
        """Put the hooks on, or take them off."""
        if not wanted:
            self.leave_alone()
        elif not self._handles:
            self._handles = [
                probe.register_full_backward_hook(partial(self._note, i))
                for i, probe in enumerate(self._probes.values())
            ]

    def leave_alone(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _note(self, place: int, probe: nn.Module, grad_input: object, grad_output: tuple[Tensor, ...] | Tensor) -> None:
        with self._allowance.spending(times=_AROUND_A_HOOK):
            if place == len(self._probes) - 1:  # the head's, where every backward pass begins
                self.parts += 1
                if self._scaler.is_enabled():
                    self._norms[self.parts - 1, -1] = self._scaler.scale(torch.ones((), device=self._device))
            torch.linalg.vector_norm(grad_output[0], dtype=torch.float32, out=self._norms[self.parts - 1, place])

    def norms(self, parts_of_steps: Sequence[int]) -> dict[str, np.ndarray]:
        """Norms ``[S]`` of each group, those of the parts of a batch put together."""
        rows = self._norms.cpu().double().numpy()
        with np.errstate(all="ignore"):  # not finite where training broke
            squares = (rows[:, :-1] / rows[:, -1:]) ** 2
            steps = [squares[start:end].sum(axis=0) for start, end in pairwise([0, *parts_of_steps])]
            table = np.sqrt(np.array(steps).reshape(len(steps), len(self._probes)))
        return {name: table[:, i] for i, name in enumerate(self._probes)}


def _probe(network: Section, backbone: Backbone, depth: int) -> dict[str, nn.Module]:
    """Put a module that does nothing behind each trained layer group of a section, and behind the head."""
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
    """The same numbers of some tensors every time, drawn once: all, or at most about :data:`_SAMPLE`."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)  # of its own: training's is left as it is
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
        """One dimension of numbers, on the tensors' device."""
        taken = [
            _flat(tensor) if places is None else _flat(tensor)[places]
            for tensor, places in zip(tensors, self._places, strict=True)
            if tensor is not None
        ]
        return torch.cat(taken) if taken else torch.zeros(0)


def _flat(tensor: Tensor) -> Tensor:
    """All numbers in one dimension, in the order in which they lie, so that nothing is copied."""
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(-1)


def _distributions(samples: Mapping[str, Tensor]) -> dict[str, Distribution]:
    """Count what is finite; a group without such a number is left out."""
    distributions = {}
    for name, sample in samples.items():
        values = sample.float().cpu().numpy()
        values = values[np.isfinite(values)]
        if len(values):
            distributions[name] = Distribution(*np.histogram(values, bins=_BINS))
    return distributions


def _thinned(steps: int) -> list[int]:
    """Indices of all steps, or of :data:`_POINTS` of them, the first and the last among them."""
    return sorted({int(i) for i in np.linspace(0, steps - 1, min(steps, _POINTS)).round()})
