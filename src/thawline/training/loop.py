"""The training loop in plain PyTorch, to be read top to bottom.

``fit`` trains one backbone frozen to one depth, or thaws it down to that depth during training. After every epoch it
writes a checkpoint and asks its caller whether to continue. Killed at any point and called again with the same
arguments, it resumes at the next epoch (at the next batch, if it was asked to leave), and ends with bit-equal weights
(same machine, CPU, same number of threads).
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Never

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from thawline.backbones import Backbone, section
from thawline.config import TrainConfig
from thawline.exceptions import TrainingError
from thawline.freezing import freeze_to, moving_statistics, train_mode, trainable_parameters
from thawline.training.averaging import WeightAverage
from thawline.training.checkpoint import Checkpoint, CheckpointFolder, Stepper, load_model, load_optimizer, pack_model
from thawline.training.compiled import Compiled
from thawline.training.evaluation import logits_of
from thawline.training.history import History, check_finite, fingerprint_of
from thawline.training.hyperparameters import Hyperparameters
from thawline.training.inputs import Inputs, batch_order, batch_sizes, batches, labels_on, parts_of
from thawline.training.metrics import classification_metrics
from thawline.training.mixing import Mixing
from thawline.training.observation import Observer
from thawline.training.optim import add_parameters, build_optimizer, build_schedule, is_fused
from thawline.training.ranks import ALONE, Ranks
from thawline.training.reporting import Ended, Reports
from thawline.training.results import Decision, EpochResult, FitResult, Interrupted, epoch_result
from thawline.training.runtime import Runtime, on_device, restore_random_states
from thawline.training.thawing import Thawing

__all__ = ["class_weights", "classes_of", "fit"]


def fit(
    backbone: Backbone,
    inputs: Callable[[int], tuple[Inputs, Inputs]],
    *,
    hyperparameters: Hyperparameters,
    config: TrainConfig,
    metric: str,
    runtime: Runtime,
    checkpoints: CheckpointFolder,
    seed: int,
    accumulation: int = 1,
    on_epoch: Callable[[EpochResult], Decision],
    on_batch: Callable[[], bool] = lambda: False,
    observer: Observer | None = None,
    ranks: Ranks = ALONE,
) -> FitResult:
    """Fine-tune ``backbone`` in place, frozen to ``hyperparameters.freeze_depth`` or, by its policy, deeper at first.

    Args:
        backbone: fresh from :func:`thawline.backbones.create`, on any device.
        inputs: returns training inputs, shuffled in each epoch, and validation inputs for a freeze depth: images or
            texts, or stored activations of at most that many layer groups. Both give the same results; the former spend
            time on the frozen layers. Called again when the depth changes, for the same rows.
        hyperparameters: freeze depth, policy, learning rate, weight decay and optimizer.
        config: epochs, batch size, schedule, loss and precision.
        metric: validation metric that decides which epoch is best, a key of ``METRIC_DIRECTIONS``.
        runtime: device and precision.
        checkpoints: to resume from, and to write to after every epoch.
        seed: seed of the order of batches and of dropout.
        accumulation: batches are computed in this many parts to save memory. The gradient is that of the whole batch,
            with two exceptions: trained batch-norms (``train_all``) normalise by the statistics of each part, and mixup
            and cutmix pair images of the same part.
        on_epoch: called with each epoch's result; returns whether to continue. After a resume it is first called with
            the epochs in the checkpoint, which may not have been reported before the process died.
        on_batch: called after every batch; returns True to write a checkpoint and leave.
        observer: observes training, and is notified of every epoch before ``on_epoch``; does not affect training.
        ranks: the rank of this process among those that call this with the same arguments. Each process computes
            ``accumulation`` parts of every batch. Only the first process calls ``on_epoch`` and writes checkpoints, and
            only its own parts are observed. Dropout differs between processes.

    A full disk does not stop training: see :meth:`CheckpointFolder.keep`.

    Raises:
        Interrupted: after ``on_batch`` returned True.
        TrainingError: if the loss is not finite, or activations come from after the freeze depth of an epoch.
        CheckpointError: if the checkpoints have another configuration.
    """
    thawing = Thawing.of(hyperparameters, config, deepest=len(backbone.layer_groups), metric=metric)
    history = History(checkpoints, fingerprint_of(hyperparameters, config, seed), metric)
    checkpoint = history.resume()
    run = _Run(
        backbone,
        inputs,
        thawing.depths(history.epochs),
        history,
        hyperparameters=hyperparameters,
        config=config,
        runtime=runtime,
        seed=seed,
        accumulation=accumulation,
        on_batch=on_batch,
        reports=Reports(ranks.asking_first(on_epoch), checkpoints),
        observer=observer,
        ranks=ranks,
    )
    if checkpoint is not None:
        run.restore(checkpoint)
    reports, stopped_early = run.reports, False
    for known in history.epochs:
        reports.repeat(known)

    with suppress(Ended):
        while reports.decision is Decision.CONTINUE and len(history.epochs) < config.epochs:
            stopped_early = thawing.stops_early(history.epochs, config.early_stopping)
            if stopped_early:
                break
            run.train_from(thawing.depths(history.epochs)[-1])
            run.train_epoch()
    reports.tell(wait=True)

    checkpoints.settle()
    return history.result(reports.decision, stopped_early=stopped_early and reports.decision is Decision.CONTINUE)


@dataclass
class _Progress:
    """The progress of an epoch: batches, seconds, and sums over its images and batches."""

    batches: int = 0
    seconds: float = 0.0
    learning_rate: float = 0.0
    """At the start of the epoch."""
    loss: float = 0.0
    correct: float = 0.0
    norm: float = 0.0
    steps: float = 0.0
    """Number of optimizer steps; fp16 skips batches with overflowing gradients."""


class _Run:
    """The mutable state of one training, and its history with checkpoints."""

    def __init__(
        self,
        backbone: Backbone,
        inputs: Callable[[int], tuple[Inputs, Inputs]],
        depths: Sequence[int],
        history: History,
        *,
        hyperparameters: Hyperparameters,
        config: TrainConfig,
        runtime: Runtime,
        seed: int,
        accumulation: int,
        on_batch: Callable[[], bool],
        reports: Reports,
        observer: Observer | None,
        ranks: Ranks,
    ) -> None:
        """Thaw the layers that were thawed in the last epoch, so that its state can be loaded.

        Args:
            backbone: see :func:`fit`.
            inputs: see :func:`fit`; opened here for the next epoch.
            depths: the freeze depth of each epoch so far and of the next.
            history: history of the epochs so far.
            hyperparameters: see :func:`fit`.
            config: see :func:`fit`.
            runtime: device and precision.
            seed: see :func:`fit`.
            accumulation: see :func:`fit`.
            on_batch: see :func:`fit`.
            reports: reports each epoch.
            observer: attached when training starts, and again when the depth changes.
            ranks: see :func:`fit`.
        """
        self.backbone, self.config, self.runtime, self.observer = backbone, config, runtime, observer
        self.ranks = ranks
        self.history, self.seed, self.accumulation, self.on_batch = history, seed, accumulation, on_batch
        self.reports = reports
        self._hyperparameters, self._open = hyperparameters, inputs
        self.module = backbone.module.to(runtime.device).to(memory_format=runtime.memory_format)
        self.scaler = GradScaler(runtime.device.type, enabled=runtime.needs_loss_scaling)
        self.average = WeightAverage(self.module, config.ema) if config.ema is not None else None
        self._opened_for = depths[-1]
        self.train, self.validation = self._open(self._opened_for)
        self.labels = labels_on(self.train, runtime.device)  # the same for every depth
        self.class_weights = class_weights(self.train.labels, classes_of(backbone), config, runtime)
        self._total_steps = config.epochs * len(batch_sizes(len(self.train), config.batch_size))
        self._ready_for: int | None = None
        first, *later = dict.fromkeys(depths[:-1] or depths)
        self._freeze_to(first)
        fused = is_fused(config, runtime)
        self.optimizer: Optimizer = build_optimizer(self._free, backbone, hyperparameters, fused=fused)
        self.schedule: LambdaLR = self._new_schedule(0)
        # Step by step, so that the optimizer's groups are in the order of the saved state.
        for depth in later:
            self._thaw(depth)

    def _freeze_to(self, depth: int) -> None:
        self.depth = depth
        freeze_to(self.backbone, depth, batch_norm=self._hyperparameters.batch_norm)
        self._free = trainable_parameters(self.backbone)
        self.trainable = list(self._free.values())
        if self.average is not None:
            self.average.follow(pack_model(self.backbone, depth).keys() - self.average.names)

    def _thaw(self, depth: int) -> None:
        """Thaw the layer groups from ``depth`` on; already thawed ones keep their optimizer state and average."""
        known = self._free
        self._freeze_to(depth)
        thawed = {name: parameter for name, parameter in self._free.items() if name not in known}
        add_parameters(self.optimizer, thawed, self.backbone, self._hyperparameters)
        self.schedule = self._new_schedule(self.schedule.last_epoch)

    def _new_schedule(self, steps: int) -> LambdaLR:
        return build_schedule(
            self.optimizer, total_steps=self._total_steps, warmup_fraction=self.config.warmup_fraction, steps=steps
        )

    def train_from(self, depth: int) -> None:
        """Prepare training from layer group ``depth`` on; does nothing if the depth is unchanged."""
        if depth == self._ready_for:
            return
        if depth != self.depth:
            self._thaw(depth)
        if depth != self._opened_for:
            del self.train, self.validation  # before opening others: they may use half of the memory
            self._opened_for = depth
            self.train, self.validation = self._open(depth)
        behind = max(self.train.boundary, self.validation.boundary)
        if behind > depth:
            raise TrainingError(
                f"Activations after {behind} layer groups cannot train a network that is frozen to {depth}: those "
                "between would never change."
            )
        self.train_mode()
        self.statistics = moving_statistics(self.backbone)
        mixed_at = depth if self.config.mixes else self.train.boundary
        self.before_mixing = self._frozen(self.train.boundary, mixed_at)
        network = self._network(mixed_at, self.observer)
        if self.config.compile and depth < len(self.backbone.layer_groups):
            whole = np.arange(min(self.config.batch_size, len(self.train)))
            rows = max(len(part.rows) for part in parts_of(whole, self.accumulation, self.ranks))
            network = Compiled(network, rows, self.observer)
        self.training = self.ranks.network(network)
        self.module.eval()
        self.evaluating = self._network(self.validation.boundary)
        self._ready_for = depth

    def train_epoch(self) -> None:
        """Train the next epoch, or the rest of it, evaluate it, save it, and then report it."""
        epoch, started = len(self.history.epochs), time.perf_counter()
        begun = self._resume_within()
        learning_rate = begun.learning_rate or self.optimizer.param_groups[0]["lr"]
        training = _train_epoch(self, epoch, begun)
        seconds = time.perf_counter() - started + begun.seconds
        with self.averaged() as trained:
            self.module.eval()
            size, runtime = self.config.batch_size, self.runtime
            logits = logits_of(self.evaluating, self.validation, runtime, size, self.on_batch, self.ranks)
            metrics = classification_metrics(logits, torch.from_numpy(self.validation.labels))
            check_finite(metrics["loss"], epoch, self.optimizer, of="validation")
            result = epoch_result(
                epoch,
                training,
                metrics,
                freeze_depth=self.depth,
                learning_rate=learning_rate,
                rows=len(self.train),
                training_seconds=seconds,
                started=started - begun.seconds,
            )
            self.history.epochs.append(result)
            self._keep(self._checkpoint(trained))
        if self.observer is not None:
            self.observer.end_epoch(epoch + 1, logits)
        self.reports.add(result)

    def _keep(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; of several processes, the first writes and waits, as all decide at the same time."""
        if self.ranks.is_first:
            self.history.checkpoints.keep(checkpoint)
            if self.ranks.count > 1:
                self.history.checkpoints.wait()

    def train_mode(self) -> None:
        """See :func:`thawline.freezing.train_mode`."""
        train_mode(self.backbone, self.depth, batch_norm=self._hyperparameters.batch_norm)

    def averaged(self) -> AbstractContextManager[dict[str, Tensor]]:
        """Within the block, load the averaged weights into the backbone, if weights are averaged.

        Yields the weights to resume training from; empty without averaging.
        """
        return nullcontext({}) if self.average is None else self.average.in_place()

    def leave(self, progress: _Progress) -> Never:
        """Save the state within the epoch. If that fails, the epoch starts over when training resumes."""
        with self.averaged() as trained, suppress(OSError):
            checkpoint = self._checkpoint(trained, asdict(progress))
            if self.ranks.is_first:
                self.history.checkpoints.save_within(checkpoint)
        raise Interrupted

    @property
    def _stepper(self) -> Stepper:
        return Stepper(self.optimizer, self.schedule, self.scaler)

    def _checkpoint(self, trained: dict[str, Tensor], within: dict[str, float] | None = None) -> Checkpoint:
        made = self.history.checkpoint(self.backbone, self._stepper, self.runtime, trained=trained, within=within)
        return replace(made, random_states=self.ranks.all_states(made.random_states))

    def _resume_within(self) -> _Progress:
        """Load the saved state of the next epoch, if any."""
        checkpoint = self.history.within()
        if checkpoint is None:
            return _Progress()
        self.restore(checkpoint)
        progress = _Progress(**checkpoint.state["within"])
        return progress if self.ranks.is_first else replace(progress, loss=0.0, correct=0.0)  # sums over all ranks

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state of a checkpoint with the same freeze depth."""
        load_model(checkpoint, self.backbone)
        if self.average is not None:
            self.average.follow(self.average.names)
            self.average.set(checkpoint.trained)
        load_optimizer(checkpoint, self._stepper)
        if states := self.ranks.own_states(checkpoint.random_states):
            restore_random_states(states, self.runtime.device)

    def _network(self, boundary: int, observer: Observer | None = None) -> nn.Module:
        """The network after a boundary, in the module's current mode. The complete network is not traced if exact."""
        if boundary == 0 and self.config.exact and observer is None:
            return self.module
        network = section(self.backbone, boundary, exact=self.config.exact)
        if observer is not None:
            observer.attach(network, self.backbone, self.depth, self.scaler)
        return network

    def _frozen(self, start: int, stop: int) -> nn.Module:
        """The frozen layer groups between the inputs' boundary and the point of mixing."""
        return section(self.backbone, start, stop, exact=self.config.exact) if start < stop else nn.Identity()

    def watching(self, parts: int, steps: range) -> AbstractContextManager[None]:
        """See :meth:`Observer.watching`."""
        return nullcontext() if self.observer is None else self.observer.watching(parts, steps)


def _train_epoch(run: _Run, epoch: int, begun: _Progress) -> dict[str, float]:
    """Train the rest of an epoch (from 0); returns the metrics of the whole epoch."""
    run.train_mode()
    train, config, device, started = run.train, run.config, run.runtime.device, time.perf_counter()
    learning_rate = begun.learning_rate or run.optimizer.param_groups[0]["lr"]
    sums = on_device(np.array([begun.loss, begun.correct, begun.norm, begun.steps], dtype=np.float32), device)
    total_loss, correct, total_norm, steps_taken = sums.unbind()  # views
    order = batch_order(train, config.batch_size, run.seed, epoch)
    parts = [part for batch in order[begun.batches :] for part in parts_of(batch, run.accumulation, run.ranks)]
    read = batches(train, [part.rows for part in parts], epoch, run.runtime)
    done = begun.batches
    mixing = Mixing.of(config, run.seed)
    steps = range(epoch * len(order) + done + 1, (epoch + 1) * len(order) + 1)
    with run.watching(len(parts), steps):
        for part, (rows, tensor) in zip(parts, read, strict=True):
            batch, labels = part.batch, run.labels[on_device(rows, device)]
            whole = labels if len(rows) == len(batch) else run.labels[on_device(batch, device)]
            with run.ranks.exchanging(run.training, part.is_last):
                with run.runtime.autocast():
                    mixed = mixing.apply(run.before_mixing(tensor), labels, epoch, done)
                    logits = run.training(mixed.batch)
                loss = mixed.loss(partial(_loss, logits, whole, run.class_weights, config.label_smoothing))
                if not part.counts:
                    loss = 0 * loss
                run.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total_loss += loss.detach() * len(batch)
            correct += (logits.detach().argmax(1) == mixed.heavier).sum() * part.counts
            if part.is_last:
                norm, stepped = _step(run)
                total_norm += norm
                steps_taken += stepped
                done += 1
                if run.ranks.any_of(run.on_batch()) and done < len(order):
                    seconds = begun.seconds + time.perf_counter() - started
                    run.leave(_Progress(done, seconds, learning_rate, *run.ranks.totals(sums, own=2)))
                run.reports.check(wait=False)
    run.reports.check(wait=True)
    loss_sum, hits, norm_sum, steps_sum = run.ranks.totals(sums, own=2)  # one sync with the device
    mean_loss = loss_sum / len(train)
    check_finite(mean_loss, epoch, run.optimizer)
    return {
        "train/loss": mean_loss,
        "train/accuracy": hits / len(train),
        "train/gradient_norm": norm_sum / max(1.0, steps_sum),
    }


def _loss(logits: Tensor, whole: Tensor, weights: Tensor | None, label_smoothing: float, labels: Tensor) -> Tensor:
    """Cross-entropy of a part of the batch with the labels ``whole``."""
    # Normalised by the whole batch, so that the parts' gradients add up to that of the batch.
    weight = weights[whole].sum() if weights is not None else len(whole)
    total = F.cross_entropy(logits.float(), labels, weight=weights, label_smoothing=label_smoothing, reduction="sum")
    return total / weight


def _step(run: _Run) -> tuple[Tensor, Tensor]:
    """One optimizer step; returns the norm of the gradient before clipping, and 1.

    Both are 0 if the loss scaler skips the step because scaled gradients are not finite, as while it adjusts its scale.
    """
    run.scaler.unscale_(run.optimizer)
    if run.observer is not None:
        run.observer.before_step()
    norm = nn.utils.clip_grad_norm_(run.trainable, run.config.gradient_clip or math.inf)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.ranks.average(run.statistics)
    run.schedule.step()
    if run.average is not None:
        run.average.update(run.schedule.last_epoch)
    run.optimizer.zero_grad(set_to_none=True)
    stepped = torch.isfinite(norm) if run.scaler.is_enabled() else torch.ones_like(norm, dtype=torch.bool)
    return torch.where(stepped, norm, 0.0).detach(), stepped.float()


def classes_of(backbone: Backbone) -> int:
    """Number of classes."""
    return int(backbone.module.get_parameter(backbone.head.tensors[0]).shape[0])


def class_weights(labels: np.ndarray, classes: int, config: TrainConfig, runtime: Runtime) -> Tensor | None:
    """Inverse class frequencies with mean 1 over the images (scikit-learn's ``balanced``)."""
    if config.class_weights == "none":
        return None
    counts = np.bincount(labels, minlength=classes)
    weights = len(labels) / (classes * np.maximum(counts, 1))
    return torch.tensor(weights, dtype=torch.float32, device=runtime.device)
