"""Train many heads together: one batch of activations and one computation for all trials.

Head-only trials differ only in their learning rates and weight decay: they see the same batches in the same order.
Trained one by one, they are bound by Python overhead; stacked, they cost about as much as one. Every trial keeps its
own optimizer, schedule and checkpoints, whose tensors are views of the stack, so that each can be resumed on its own.

The idea is that of HFTA (Wang et al., "Horizontally Fused Training Array", MLSys 2021).
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.func import functional_call, vmap

from thawline.backbones import Backbone, section
from thawline.config import SEARCHABLE, BatchNorm, TrainConfig
from thawline.exceptions import TrainingError
from thawline.freezing import freeze_to, train_mode, trainable_parameters
from thawline.training.checkpoint import Checkpoint, CheckpointFolder, Stepper, load_optimizer
from thawline.training.evaluation import logits_of
from thawline.training.history import History, check_finite, fingerprint_of
from thawline.training.hyperparameters import Hyperparameters
from thawline.training.inputs import Inputs, batch_order, batch_sizes, batches, labels_on
from thawline.training.loop import class_weights, classes_of
from thawline.training.metrics import classification_metrics
from thawline.training.mixing import Mixed, Mixing
from thawline.training.optim import build_optimizer, build_schedule, schedule_factor, without_decay
from thawline.training.reporting import Reports
from thawline.training.results import Decision, EpochResult, FitResult, Interrupted, epoch_result, no_longer_improves
from thawline.training.runtime import Runtime, on_device, restore_random_states

__all__ = ["SHARED_BY_HEADS", "HeadTrial", "fit_heads"]

_OF_EACH_HEAD = {"learning_rate", "weight_decay", "head_learning_rate_factor"}
SHARED_BY_HEADS = tuple(
    name for name, row in SEARCHABLE.items() if not row.mark.thawed_only and name not in _OF_EACH_HEAD
)
"""Searchable settings that trials must share to be trained together."""

_LOGITS_BYTES = 2**28
"""Limit for the logits of all trials evaluated in one pass."""


@dataclass(frozen=True)
class HeadTrial:
    """One of several trials trained together."""

    hyperparameters: Hyperparameters
    checkpoints: CheckpointFolder
    on_epoch: Callable[[EpochResult], Decision]


def fit_heads(
    backbone: Backbone,
    train: Inputs,
    validation: Inputs,
    trials: Sequence[HeadTrial],
    *,
    config: TrainConfig,
    metric: str,
    runtime: Runtime,
    seed: int,
    on_batch: Callable[[], bool] = lambda: False,
) -> list[FitResult | TrainingError]:
    """Train new heads on activations, one per trial, each as with :func:`thawline.training.fit`.

    Results differ from separate training in the last bits of every step (sums are computed in a different order).

    Args:
        backbone: fresh from :func:`thawline.backbones.create`; every trial starts from its head. Afterwards its head
            has the weights of the last evaluated trial.
        train: activations after the last layer group.
        validation: the same.
        trials: trials with full freeze depth, where all policies are equivalent, and one kind of optimizer. If they
            have checkpoints, the same trials in the same order as before: they resume from there, bit-equal to
            uninterrupted training.
        config: as in ``fit``, but weights are not averaged.
        metric: as in ``fit``.
        runtime: device and precision; not fp16, which needs a loss scale for each trial.
        seed: seed of the order of batches and of dropout.
        on_batch: called after every batch; returns True to leave after the epoch.

    Returns:
        The result of each trial or, if its loss was not finite, the error that ``fit`` would have raised.

    Raises:
        Interrupted: after ``on_batch`` returned True.
        TrainingError: if these trials cannot be trained together.
        CheckpointError: if the checkpoints are of another configuration.
    """
    stack = _Stack(backbone, train, validation, trials, config, runtime)
    weights = class_weights(train.labels, classes_of(backbone), config, runtime)
    heads = [
        _Head(
            trial,
            i,
            stack.stepper_of(i),
            History(trial.checkpoints, fingerprint_of(trial.hyperparameters, config, seed), metric),
            Reports(trial.on_epoch, trial.checkpoints),
        )
        for i, trial in enumerate(trials)
    ]
    leaving = False

    def after_batch() -> None:
        nonlocal leaving
        leaving = on_batch() or leaving

    for epoch in range(_resume(stack, heads), config.epochs):
        for head in heads:
            if head.goes_on and no_longer_improves(head.history.epochs, metric, config.early_stopping):
                head.stopped_early = True
        if not any(head.goes_on for head in heads):
            break
        for head in heads:
            if head.ahead is not None and head.ahead.epoch == epoch:
                stack.load(head.index, head.ahead)
        started = time.perf_counter()
        training = _train_epoch(stack, train, epoch, seed, weights, after_batch)
        for head in heads:
            head.reports.tell(wait=True)
        active = [head for head in heads if head.goes_on and len(head.history.epochs) == epoch]
        if not active:
            break
        seconds = (time.perf_counter() - started) / len(active)
        for head, logits, evaluated in stack.measured(active, validation):
            began = time.perf_counter() - seconds - evaluated
            learning_rate = head.stepper.optimizer.param_groups[0]["lr"]
            stack.settle(head.stepper, epoch + 1)
            stack.put_into_backbone(head.index)
            try:
                check_finite(training[head.index]["train/loss"], epoch, head.stepper.optimizer)
                metrics = classification_metrics(logits, torch.from_numpy(validation.labels))
                check_finite(metrics["loss"], epoch, head.stepper.optimizer, of="validation")
            except TrainingError as error:
                head.error = error
                continue
            result = epoch_result(
                epoch,
                training[head.index],
                metrics,
                freeze_depth=len(backbone.layer_groups),
                learning_rate=learning_rate,
                rows=len(train),
                training_seconds=seconds,
                started=began,
            )
            head.history.epochs.append(result)
            head.trial.checkpoints.keep(head.history.checkpoint(backbone, head.stepper, runtime))
            head.reports.add(result)
        if leaving and epoch + 1 < config.epochs:
            for head in heads:
                head.trial.checkpoints.wait()
            raise Interrupted
    for head in heads:
        head.reports.tell(wait=True)
        head.trial.checkpoints.settle()
    return [head.error or head.history.result(head.decision, stopped_early=head.stopped_early) for head in heads]


@dataclass
class _Head:
    """The progress of one trial."""

    trial: HeadTrial
    index: int
    stepper: Stepper
    history: History
    reports: Reports
    stopped_early: bool = False
    error: TrainingError | None = None
    ahead: Checkpoint | None = None
    """Its checkpoint when the process died; until that epoch it waits for the other trials to catch up."""

    @property
    def decision(self) -> Decision:
        return self.reports.decision

    @property
    def goes_on(self) -> bool:
        return self.error is None and self.decision is Decision.CONTINUE and not self.stopped_early


class _Stack:
    """The heads of all trials, each parameter as one tensor ``[trials, …]``, and their optimizers' state."""

    def __init__(
        self,
        backbone: Backbone,
        train: Inputs,
        validation: Inputs,
        trials: Sequence[HeadTrial],
        config: TrainConfig,
        runtime: Runtime,
    ) -> None:
        deepest = len(backbone.layer_groups)
        self.hyperparameters = [trial.hyperparameters for trial in trials]
        if config.ema is not None:
            raise TrainingError("Trials whose weights are averaged (train.ema) cannot be trained together.")
        kinds = {(h.freeze_depth, *(getattr(h, name) for name in SHARED_BY_HEADS)) for h in self.hyperparameters}
        if len(kinds) != 1 or self.hyperparameters[0].freeze_depth != deepest or runtime.needs_loss_scaling:
            raise TrainingError(
                f"Trials can be trained together if all have freeze depth {deepest}, the same "
                f"{' and '.join(SHARED_BY_HEADS)}, and no fp16, but got {sorted(kinds)} in {runtime}."
            )
        if (train.boundary, validation.boundary) != (deepest, deepest):
            raise TrainingError("Trials can only be trained together on stored activations.")
        self.backbone, self.config, self.runtime = backbone, config, runtime
        self.labels = labels_on(train, runtime.device)
        backbone.module.to(runtime.device).to(memory_format=runtime.memory_format)
        freeze_to(backbone, deepest, batch_norm=_BATCH_NORM)
        train_mode(backbone, deepest, batch_norm=_BATCH_NORM)
        self.tail = section(backbone, deepest)
        backbone.module.eval()
        self.evaluating = section(backbone, deepest)
        self.optimizer_kind = self.hyperparameters[0].optimizer
        self.steps_per_epoch = len(batch_sizes(len(train), config.batch_size))
        self.step = 0
        self.scaler = GradScaler(runtime.device.type, enabled=False)
        free = trainable_parameters(backbone)
        self.parameters = {
            name: parameter.detach().expand(len(trials), *parameter.shape).clone().requires_grad_()
            for name, parameter in free.items()
        }
        self.state = {
            name: {key: torch.zeros_like(stacked) for key in _STATE[self.optimizer_kind]}
            for name, stacked in self.parameters.items()
        }
        self.rates = self._per_trial([h.learning_rate * h.head_learning_rate_factor for h in self.hyperparameters])
        self.decays = self._per_trial([h.weight_decay for h in self.hyperparameters])
        self.spared = without_decay(free, backbone)

    def _per_trial(self, values: list[float]) -> Tensor:
        # Double precision, as torch's own optimizers use Python floats; Apple's GPUs do not support it.
        kind = torch.float32 if self.runtime.device.type == "mps" else torch.float64
        return torch.tensor(values, dtype=kind, device=self.runtime.device)

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch

    def stepper_of(self, index: int) -> Stepper:
        """One trial's optimizer and schedule, whose tensors are views of the stack: for saving, not for stepping."""
        parameters = {name: nn.Parameter(parameter) for name, parameter in self._of(index).items()}
        optimizer = build_optimizer(parameters, self.backbone, self.hyperparameters[index])
        for name, parameter in parameters.items():
            optimizer.state[parameter] = {key: value[index] for key, value in self.state[name].items()}
            if self.optimizer_kind == "adamw":
                optimizer.state[parameter]["step"] = torch.zeros(())
        schedule = build_schedule(optimizer, total_steps=self.total_steps, warmup_fraction=self.config.warmup_fraction)
        return Stepper(optimizer, schedule, self.scaler)

    def load(self, index: int, checkpoint: Checkpoint) -> None:
        """Restore one trial from its checkpoint."""
        stepper = self.stepper_of(index)
        load_optimizer(checkpoint, stepper)
        optimizer = stepper.optimizer
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        views = {parameter.data_ptr(): parameter for parameter in parameters}
        with torch.no_grad():
            for name, stacked in self.parameters.items():
                state = optimizer.state[views[stacked.detach()[index].data_ptr()]]
                stacked[index].copy_(checkpoint.model[name])
                for key, values in self.state[name].items():
                    values[index].copy_(state[key])

    def settle(self, stepper: Stepper, epochs: int) -> None:
        """Set one trial's optimizer and schedule, for its checkpoint, to the state after these epochs."""
        optimizer, schedule, _ = stepper
        steps = epochs * self.steps_per_epoch
        for state in optimizer.state.values():
            if "step" in state:
                state["step"].fill_(steps)
        factor = schedule_factor(steps, self.total_steps, self.config.warmup_fraction)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        schedule.last_epoch, schedule._step_count = steps, steps + 1
        schedule._last_lr = [group["lr"] for group in optimizer.param_groups]

    @torch.no_grad()
    def put_into_backbone(self, index: int) -> None:
        """Load one trial's head into the backbone."""
        for name, parameter in self._of(index).items():
            self.backbone.module.get_parameter(name).copy_(parameter)

    def measured(self, heads: Sequence[_Head], inputs: Inputs) -> Iterator[tuple[_Head, Tensor, float]]:
        """Yield each trial with its logits ``[N, num_classes]`` and the seconds for computing them.

        As many trials as fit are computed in one pass, and copied from a GPU at once with a single sync.
        """
        self.backbone.module.eval()
        at_once = max(1, _LOGITS_BYTES // (4 * len(inputs) * classes_of(self.backbone)))
        for start in range(0, len(heads), at_once):
            group, began = heads[start : start + at_once], time.perf_counter()
            logits = logits_of(partial(self._logits, group), inputs, self.runtime, self.config.batch_size)
            seconds = (time.perf_counter() - began) / len(group)
            for place, head in enumerate(group):
                yield head, logits[:, place].contiguous(), seconds

    def _logits(self, heads: Sequence[_Head], batch: Tensor) -> Tensor:
        """``[n, trials, num_classes]``, computed head by head: stacked, they would differ in the last bits."""
        return torch.stack([functional_call(self.evaluating, self._of(head.index), (batch,)) for head in heads], 1)

    def _of(self, index: int) -> dict[str, Tensor]:
        return {name: stacked.detach()[index] for name, stacked in self.parameters.items()}

    def clip(self, gradients: dict[str, Tensor]) -> Tensor:
        """Scale each trial's gradient to at most the largest norm; returns the norms before, ``[trials]``."""
        norms: Tensor = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients.values()]).norm(dim=0)
        scale = (self.config.gradient_clip or math.inf) / (norms + 1e-6)
        for gradient in gradients.values():
            gradient.mul_(_broadcast(scale.clamp(max=1.0), gradient))
        return norms

    @torch.no_grad()
    def update(self, gradients: dict[str, Tensor]) -> None:
        """One optimizer step of every trial."""
        factor = schedule_factor(self.step, self.total_steps, self.config.warmup_fraction)
        self.step += 1
        for name, gradient in gradients.items():
            parameter, state = self.parameters[name], self.state[name]
            rate = self.rates * factor
            decay = torch.zeros_like(self.decays) if name in self.spared else self.decays
            if self.optimizer_kind == "adamw":
                _adamw_step(parameter, gradient, state["exp_avg"], state["exp_avg_sq"], rate, decay, self.step)
            else:
                _sgd_step(parameter, gradient, state["momentum_buffer"], rate, decay)


_BATCH_NORM: BatchNorm = "frozen_eval"
"""The same for all trials, as no batch-norm is thawed: the head is a single linear layer."""
_STATE = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


def _resume(stack: _Stack, heads: Sequence[_Head]) -> int:
    """Load the heads' checkpoints; returns the first epoch to train."""
    for head in heads:
        head.ahead = head.history.resume()
        if head.ahead is None:
            continue
        stack.settle(head.stepper, len(head.history.epochs))
        for known in head.history.epochs:
            head.reports.repeat(known)
    # An ended head stays in the stack; otherwise sums of the others would be computed in a different order.
    epochs = [len(head.history.epochs) for head in heads if head.goes_on]
    first = min(epochs, default=stack.config.epochs)
    for head in heads:
        if head.ahead is not None and not head.goes_on:
            stack.load(head.index, head.ahead)
        if head.ahead is not None and head.ahead.epoch == first:
            restore_random_states(head.ahead.random_states, stack.runtime.device)
    stack.step = first * stack.steps_per_epoch
    return first


def _train_epoch(
    stack: _Stack, train: Inputs, epoch: int, seed: int, weights: Tensor | None, after_batch: Callable[[], None]
) -> list[dict[str, float]]:
    """Train all heads for an epoch; returns the metrics of each."""
    train_mode(stack.backbone, len(stack.backbone.layer_groups), batch_norm=_BATCH_NORM)
    count, device = len(stack.hyperparameters), stack.runtime.device
    total_loss, correct, total_norm = (torch.zeros(count, device=device) for _ in range(3))
    order = batch_order(train, stack.config.batch_size, seed, epoch)

    # Under vmap, autocast does not reach the layers, so inputs of the head's only layer are cast here.
    kind = stack.runtime.autocast_dtype or torch.float32
    smoothing, mixing = stack.config.label_smoothing, Mixing.of(stack.config, seed)

    def loss_of(parameters: dict[str, Tensor], mixed: Mixed) -> tuple[Tensor, Tensor]:
        parameters = {name: parameter.to(kind) for name, parameter in parameters.items()}
        logits = functional_call(stack.tail, parameters, (mixed.batch.to(kind),)).float()
        loss = mixed.loss(partial(F.cross_entropy, logits, weight=weights, label_smoothing=smoothing))
        return loss, (logits.detach().argmax(1) == mixed.heavier).sum()

    # One dropout mask for all: the one that each would draw separately.
    losses_of = vmap(loss_of, in_dims=(0, None), randomness="same")
    names = list(stack.parameters)
    for number, (rows, batch) in enumerate(batches(train, order, epoch, stack.runtime)):
        mixed = mixing.apply(batch, stack.labels[on_device(rows, device)], epoch, number)
        with warnings.catch_warnings():
            # SqueezeNet's pooling runs head by head, which is still far faster than running everything that way.
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            losses, hits = losses_of(stack.parameters, mixed)
        gradients: Any = torch.autograd.grad(losses.sum(), list(stack.parameters.values()))
        named = dict(zip(names, gradients, strict=True))
        total_norm += stack.clip(named)
        stack.update(named)
        total_loss += losses.detach() * len(rows)
        correct += hits
        after_batch()
    return [
        {
            "train/loss": loss / len(train),
            "train/accuracy": hits / len(train),
            "train/gradient_norm": norm / len(order),
        }
        for loss, hits, norm in torch.stack([total_loss, correct, total_norm], 1).tolist()  # one sync
    ]


def _adamw_step(
    parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, rate: Tensor, decay: Tensor, step: int
) -> None:
    """``torch.optim.AdamW`` (Loshchilov and Hutter, 2019) with a rate and a decay for each trial, ``[trials]``."""
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    parameter.mul_(_broadcast(1 - rate * decay, parameter))
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = (square.sqrt() / math.sqrt(1 - beta2**step)).add_(epsilon)
    parameter.sub_(_broadcast(rate / (1 - beta1**step), parameter) * (mean / denominator))


def _sgd_step(parameter: Tensor, gradient: Tensor, momentum: Tensor, rate: Tensor, decay: Tensor) -> None:
    """``torch.optim.SGD`` with Nesterov momentum 0.9 with a rate and a decay for each trial, ``[trials]``."""
    gradient = gradient + _broadcast(decay, parameter) * parameter
    momentum.mul_(0.9).add_(gradient)  # starts at zero, so the first step equals torch's
    parameter.sub_(_broadcast(rate, parameter) * (gradient + 0.9 * momentum))


def _broadcast(values: Tensor, like: Tensor) -> Tensor:
    """``[trials]`` as ``[trials, 1, …]`` in the type of ``like``."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))
