"""The training loop: plain PyTorch, read top to bottom.

``fit`` trains one backbone frozen to one depth, writes a checkpoint after every epoch and asks its caller after every
epoch whether to go on. Killed at any point and called again with the same arguments, it goes on at the next epoch and
ends with bit-equal weights (same machine, CPU, same number of threads).
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from thawline.backbones import Backbone
from thawline.config import TrainConfig
from thawline.exceptions import CheckpointError, TrainingError
from thawline.freezing import freeze_to, train_mode
from thawline.training.checkpoint import Checkpoint, CheckpointFolder, load_model, load_optimizer, pack_optimizer
from thawline.training.hyperparameters import Hyperparameters
from thawline.training.metrics import METRIC_DIRECTIONS, classification_metrics
from thawline.training.optim import build_optimizer, build_schedule
from thawline.training.runtime import Runtime, random_states, restore_random_states

__all__ = ["Decision", "EpochResult", "FitResult", "LabelledImages", "fit", "predict"]


class Decision(Enum):
    """The caller's answer to an epoch's result."""

    CONTINUE = "continue"
    PRUNE = "prune"
    STOP = "stop"


@dataclass(frozen=True)
class LabelledImages:
    """Decoded images and their labels."""

    images: np.ndarray
    """uint8 ``[N, S, S, 3]``; may be a memory map: it is read a batch at a time."""
    labels: np.ndarray
    """int64 ``[N]``, indices of classes."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class EpochResult:
    """What one epoch brought."""

    epoch: int
    """Epochs finished, from 1."""
    metrics: dict[str, float]
    """``train/loss``, ``val/accuracy``, …; rates, times and norms too."""
    finished_at: int
    """Milliseconds since 1970; kept over a resume, so that a record sent twice is the same record."""


@dataclass(frozen=True)
class FitResult:
    """What training came to."""

    decision: Decision
    """CONTINUE if all epochs were trained (or training stopped improving), else why it ended early."""
    value: float
    """Best validation value of the chosen metric."""
    best_epoch: int
    history: tuple[EpochResult, ...]
    """All epochs, those before a resume included."""
    stopped_early: bool
    """Whether early stopping ended it."""


def fit(
    backbone: Backbone,
    train: LabelledImages,
    validation: LabelledImages,
    *,
    hyperparameters: Hyperparameters,
    config: TrainConfig,
    metric: str,
    runtime: Runtime,
    checkpoints: CheckpointFolder,
    seed: int,
    accumulation: int = 1,
    on_epoch: Callable[[EpochResult], Decision],
) -> FitResult:
    """Fine-tune ``backbone`` in place, frozen to ``hyperparameters.freeze_depth``.

    Args:
        backbone: fresh from :func:`thawline.backbones.create`, on any device.
        train: what is trained on, in a new order each epoch.
        validation: what is measured after each epoch.
        hyperparameters: freeze depth, rates and optimizer.
        config: epochs, batch size, schedule, loss and precision.
        metric: validation metric that decides which epoch is best, a key of ``METRIC_DIRECTIONS``.
        runtime: device and precision.
        checkpoints: where to resume from, and to write to after every epoch.
        seed: decides the order of batches, and dropout.
        accumulation: batches are computed in this many parts to save memory; the gradient is that of the whole.
        on_epoch: told each epoch's result, answers whether to go on. After a resume it is first told those that a
            checkpoint already holds, since nobody knows whether they arrived before the process died.

    Raises:
        TrainingError: if the loss is not finite.
        CheckpointError: if the checkpoints are of another configuration.
    """
    run = _Run(backbone, len(train), hyperparameters, config, runtime)
    fingerprint = {"hyperparameters": hyperparameters.as_dict(), "train": config.model_dump(mode="json"), "seed": seed}
    history = _resume(run, checkpoints, fingerprint)
    weights = _class_weights(train.labels, run.classes, config, runtime)
    decision, stopped_early = Decision.CONTINUE, False
    for known in history:
        decision = on_epoch(known)
    if decision is not Decision.CONTINUE:
        return _result(decision, history, metric, stopped_early)

    for epoch in range(len(history), config.epochs):
        stopped_early = _no_longer_improves(history, metric, config.early_stopping)
        if stopped_early:
            break
        started = time.perf_counter()
        learning_rate = run.optimizer.param_groups[0]["lr"]
        training = _train_epoch(run, train, epoch, seed, weights, accumulation)
        seconds = time.perf_counter() - started
        logits = predict(backbone, validation.images, runtime, config.batch_size)
        metrics = classification_metrics(logits, torch.from_numpy(validation.labels))
        result = EpochResult(
            epoch + 1,
            training
            | {f"val/{name}": value for name, value in metrics.items()}
            | {
                "train/learning_rate": learning_rate,
                "train/images_per_second": len(train) / seconds,
                "time/epoch_seconds": time.perf_counter() - started,
            },
            time.time_ns() // 1_000_000,
        )
        history.append(result)
        _save(run, checkpoints, fingerprint, history, metric)
        decision = on_epoch(result)
        if decision is not Decision.CONTINUE:
            break

    return _result(decision, history, metric, stopped_early)


@torch.inference_mode()
def predict(backbone: Backbone, images: np.ndarray, runtime: Runtime, batch_size: int) -> Tensor:
    """Logits ``[N, num_classes]``, fp32 on the CPU, of uint8 images ``[N, S, S, 3]``; leaves the module in eval."""
    module = backbone.module.to(runtime.device).eval()
    parts = []
    for start in range(0, len(images), batch_size):
        batch = _to_input(images[start : start + batch_size], backbone, runtime)
        with runtime.autocast():
            parts.append(module(batch).float().cpu())
    return torch.cat(parts)


class _Run:
    """The objects that one training changes."""

    def __init__(
        self, backbone: Backbone, images: int, hyperparameters: Hyperparameters, config: TrainConfig, runtime: Runtime
    ) -> None:
        self.backbone, self.config, self.runtime = backbone, config, runtime
        self.depth = hyperparameters.freeze_depth
        self.module = backbone.module.to(runtime.device).to(memory_format=runtime.memory_format)
        freeze_to(backbone, self.depth)
        self.optimizer: Optimizer = build_optimizer(backbone, hyperparameters)
        steps = len(_batch_sizes(images, config.batch_size))
        self.schedule: LambdaLR = build_schedule(
            self.optimizer, total_steps=config.epochs * steps, warmup_fraction=config.warmup_fraction
        )
        self.scaler = GradScaler(runtime.device.type, enabled=runtime.needs_loss_scaling)
        self.trainable = [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def classes(self) -> int:
        head = self.backbone.module.get_parameter(self.backbone.head.tensors[0])
        return int(head.shape[0])


def _train_epoch(
    run: _Run, train: LabelledImages, epoch: int, seed: int, weights: Tensor | None, accumulation: int
) -> dict[str, float]:
    train_mode(run.backbone, run.depth)
    total_loss = torch.zeros((), device=run.runtime.device)
    correct = torch.zeros((), device=run.runtime.device)
    total_norm = torch.zeros((), device=run.runtime.device)
    steps = 0
    for indices in _batches(len(train), run.config.batch_size, seed, epoch):
        labels = torch.from_numpy(train.labels[indices]).to(run.runtime.device)
        # The weight of the whole batch, so that parts of it add up to the gradient of the whole.
        batch_weight = weights[labels].sum() if weights is not None else torch.tensor(float(len(labels)))
        for part in _parts(len(indices), accumulation):
            images = _to_input(train.images[indices[part]], run.backbone, run.runtime)
            with run.runtime.autocast():
                logits = run.module(images)
            loss = F.cross_entropy(
                logits.float(),
                labels[part],
                weight=weights,
                label_smoothing=run.config.label_smoothing,
                reduction="sum",
            ) / batch_weight.to(logits.device)
            run.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total_loss += loss.detach() * len(indices)
            correct += (logits.detach().argmax(1) == labels[part]).sum()
        total_norm += _step(run)
        steps += 1
    mean_loss = float(total_loss) / len(train)
    if not math.isfinite(mean_loss):
        rate = max(group["initial_lr"] for group in run.optimizer.param_groups)
        raise TrainingError(
            f"The training loss became {mean_loss} in epoch {epoch + 1} at learning rate {rate:.2g}. "
            "Lower the upper end of space.learning_rate, or set train.gradient_clip."
        )
    return {
        "train/loss": mean_loss,
        "train/accuracy": float(correct) / len(train),
        "train/gradient_norm": float(total_norm) / steps,
    }


def _step(run: _Run) -> Tensor:
    """One optimizer step; returns the norm of the gradient before clipping."""
    run.scaler.unscale_(run.optimizer)
    norm = nn.utils.clip_grad_norm_(run.trainable, run.config.gradient_clip or math.inf)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.schedule.step()
    run.optimizer.zero_grad(set_to_none=True)
    return norm.detach()


def _to_input(images: np.ndarray, backbone: Backbone, runtime: Runtime) -> Tensor:
    """uint8 ``[N, S, S, 3]`` to normalised fp32 ``[N, 3, S, S]`` on the device."""
    preprocessing = backbone.preprocessing
    # A copy: a memory map is read-only, and torch would warn that it cannot guard it.
    batch = torch.from_numpy(np.array(images)).to(runtime.device).permute(0, 3, 1, 2)
    mean = torch.tensor(preprocessing.mean, device=runtime.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=runtime.device).view(1, 3, 1, 1)
    return ((batch.float() / 255 - mean) / std).contiguous(memory_format=runtime.memory_format)


def _batch_sizes(images: int, batch_size: int) -> list[int]:
    """Sizes of an epoch's batches. A last batch of a single image would break batch norm: it joins the one before."""
    sizes = [batch_size] * (images // batch_size)
    rest = images % batch_size
    if rest == 1 and sizes:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes


def _batches(images: int, batch_size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Indices of each batch; the order depends on seed and epoch alone, so a resumed epoch sees the same."""
    order = np.random.default_rng([seed, epoch]).permutation(images)
    start = 0
    for size in _batch_sizes(images, batch_size):
        # Ascending within the batch: a memory map is read forwards, and a batch's order means nothing.
        yield np.sort(order[start : start + size])
        start += size


def _parts(size: int, accumulation: int) -> list[slice]:
    """Cut a batch into parts of about equal size, none of a single image unless the batch is one."""
    parts = max(1, min(accumulation, size // 2))
    edges = np.linspace(0, size, parts + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in pairwise(edges)]


def _class_weights(labels: np.ndarray, classes: int, config: TrainConfig, runtime: Runtime) -> Tensor | None:
    """Inverse class frequency, mean 1 over the images (scikit-learn's ``balanced``)."""
    if config.class_weights == "none":
        return None
    counts = np.bincount(labels, minlength=classes)
    weights = len(labels) / (classes * np.maximum(counts, 1))
    return torch.tensor(weights, dtype=torch.float32, device=runtime.device)


def _result(decision: Decision, history: list[EpochResult], metric: str, stopped_early: bool) -> FitResult:
    best = _best(history, metric)
    return FitResult(decision, best.metrics[f"val/{metric}"], best.epoch, tuple(history), stopped_early)


def _best(history: list[EpochResult], metric: str) -> EpochResult:
    """The epoch with the best validation value, the first of equals."""
    sign = 1 if METRIC_DIRECTIONS[metric] == "maximize" else -1
    return max(history, key=lambda result: sign * result.metrics[f"val/{metric}"])


def _no_longer_improves(history: list[EpochResult], metric: str, patience: int | None) -> bool:
    return patience is not None and bool(history) and history[-1].epoch - _best(history, metric).epoch >= patience


def _save(
    run: _Run, checkpoints: CheckpointFolder, fingerprint: dict[str, Any], history: list[EpochResult], metric: str
) -> None:
    tensors, plain = pack_optimizer(run.optimizer, run.schedule, run.scaler)
    state = plain | {
        "fingerprint": fingerprint,
        "freeze_depth": run.depth,
        "value": history[-1].metrics[f"val/{metric}"],
        "loss": history[-1].metrics["train/loss"],
        "history": [asdict(result) for result in history],
    }
    checkpoints.save(
        Checkpoint(len(history), run.module.state_dict(), tensors, random_states(run.runtime.device), state)
    )


def _resume(run: _Run, checkpoints: CheckpointFolder, fingerprint: dict[str, Any]) -> list[EpochResult]:
    """Load the last checkpoint into ``run`` if there is one; returns the history so far."""
    checkpoint = checkpoints.last()
    if checkpoint is None:
        return []
    if checkpoint.state["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{checkpoints.path} holds checkpoints of another configuration. "
            "Give the study another name, or remove that folder."
        )
    load_model(checkpoint, run.module)
    load_optimizer(checkpoint, run.optimizer, run.schedule, run.scaler)
    restore_random_states(checkpoint.random_states, run.runtime.device)
    return [EpochResult(**entry) for entry in checkpoint.state["history"]]
