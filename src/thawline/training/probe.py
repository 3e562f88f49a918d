"""A linear probe: a logistic regression on frozen features, fitted to convergence.

It measures the quality of a network's frozen features (Alain and Bengio, "Understanding intermediate layers using
linear classifier probes", 2016). On the features before the head it *is* a head, and a good start for fine-tuning
(Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022).
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thawline.backbones import Backbone, section, write_head
from thawline.config import TrainConfig
from thawline.freezing import train_mode
from thawline.training.checkpoint import CheckpointFolder
from thawline.training.directions import sign_of
from thawline.training.evaluation import predict
from thawline.training.history import History, fingerprint_of
from thawline.training.hyperparameters import Hyperparameters
from thawline.training.inputs import Inputs, batches, evaluation_order
from thawline.training.loop import class_weights
from thawline.training.metrics import classification_metrics
from thawline.training.regression import CHUNK, Regression, scores_of
from thawline.training.results import Decision, EpochResult, FitResult
from thawline.training.runtime import Runtime

__all__ = [
    "PENALTIES",
    "Features",
    "Probe",
    "Probes",
    "features_at",
    "fit_probes",
    "head_features",
    "keep_probe",
    "probes_of_head",
    "softened",
]

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
"""Strengths of the L2 penalty to try, relative to the mean loss on standardised features; strongest first, so that each
fit starts near its solution."""
_SCALES = tuple(2.0 ** (-i / 2) for i in range(21))
"""From 1 to a thousandth, where the loss is close to chance level for any scores."""
_PATIENCE = 3
"""Number of weaker penalties to try after the best so far: they take longest, and rarely win."""
_SOFTENED_ON = 1000
"""Number of evenly spaced training rows for choosing the scale: sampling dropout for all took longer than the fit."""
_IN_MEMORY = 2_000_000_000
"""Maximum bytes of features in memory; more are stored in a file, which each evaluation reads in chunks."""


@dataclass(frozen=True)
class Features:
    """The frozen features of one split."""

    values: np.ndarray
    """float32 ``[N, F]``; a memory map if there are many rows."""
    labels: np.ndarray
    """int64 ``[N]``."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier on features."""

    weight: Tensor
    """float32 ``[classes, F]``, for unscaled features."""
    bias: Tensor
    """float32 ``[classes]``."""
    penalty: float
    """Strength of its L2 penalty."""
    training: dict[str, float]
    """Loss (without the penalty) and accuracy on the rows it was fitted to."""
    validation: dict[str, float]
    """See :func:`thawline.training.classification_metrics`."""
    lowest: float
    """The lowest class score of any training row."""


def probes_of_head(
    backbone: Backbone,
    train: Inputs,
    validation: Inputs,
    *,
    config: TrainConfig,
    metric: str,
    runtime: Runtime,
    folder: Path,
    seed: int,
) -> tuple[Probe, Probe]:
    """Fit probes on the input of the backbone's head: the best on validation, and the one to start fine-tuning from.

    Args:
        backbone: see :func:`head_features`.
        train: data to fit, without augmentation.
        validation: data for choosing the penalty.
        config: batch size and class weights.
        metric: a key of ``METRIC_DIRECTIONS``.
        runtime: device and precision of the frozen layers; the probe itself is fitted in single precision.
        folder: folder for features that do not fit in memory.
        seed: seed of the dropout that the second probe accounts for.
    """
    head = backbone.module.get_submodule(backbone.head.name)
    classes = len(head.get_parameter("weight"))
    fitted, chosen = (head_features(backbone, each, runtime, config.batch_size, folder) for each in (train, validation))
    weights = class_weights(train.labels, classes, config, runtime)
    probes = fit_probes(
        fitted,
        chosen,
        classes=classes,
        metric=metric,
        device=runtime.device,
        class_weights=weights,
        bias=getattr(head, "bias", None) is not None,
    )
    with torch.random.fork_rng([runtime.device] if runtime.device.type == "cuda" else []):
        torch.manual_seed(seed)
        some = np.unique(np.linspace(0, len(train) - 1, _SOFTENED_ON, dtype=np.int64))
        noisy = head_features(backbone, train, runtime, config.batch_size, folder, rows=some, training=True)
    return probes.best, softened(probes.simplest, noisy, weights)


def keep_probe(
    backbone: Backbone,
    probe: Probe,
    validation: Inputs,
    *,
    hyperparameters: Hyperparameters,
    config: TrainConfig,
    metric: str,
    runtime: Runtime,
    checkpoints: CheckpointFolder,
    seed: int,
    seconds: float,
) -> FitResult:
    """Load a probe as a backbone's head, evaluate the network, and save it as the only checkpoint of a training.

    If it is already saved, as after a kill, its recorded epoch is returned and the backbone stays as it is.

    Args:
        backbone: fresh from :func:`thawline.backbones.create`.
        probe: probe of its head.
        validation: data to evaluate on.
        hyperparameters: the trial's hyperparameters.
        config: the study's configuration, for the checkpoint's fingerprint.
        metric: a key of ``METRIC_DIRECTIONS``.
        runtime: device and precision.
        checkpoints: where it is saved; a full disk is tolerated, see :meth:`CheckpointFolder.keep`.
        seed: the study's seed, for the fingerprint.
        seconds: duration of the fit.

    Raises:
        CheckpointError: if the checkpoint has another configuration.
    """
    started = time.perf_counter()
    history = History(checkpoints, fingerprint_of(hyperparameters, config, seed), metric)
    if history.resume() is not None:
        return history.result(Decision.CONTINUE)
    write_head(backbone, probe.weight, probe.bias, lowest=probe.lowest)
    logits = predict(backbone, validation, runtime, config.batch_size)
    measured = classification_metrics(logits, torch.from_numpy(np.array(validation.labels)))
    metrics = {f"train/{name}": value for name, value in probe.training.items()}
    metrics |= {f"val/{name}": value for name, value in measured.items()}
    metrics |= {"train/freeze_depth": float(hyperparameters.freeze_depth), "probe/penalty": probe.penalty}
    metrics["time/epoch_seconds"] = seconds + time.perf_counter() - started
    history.epochs.append(EpochResult(1, metrics, time.time_ns() // 1_000_000))
    checkpoints.keep(history.checkpoint(backbone, None, runtime))
    checkpoints.wait()
    return history.result(Decision.CONTINUE)


def head_features(
    backbone: Backbone,
    inputs: Inputs,
    runtime: Runtime,
    batch_size: int,
    folder: Path,
    *,
    rows: np.ndarray | None = None,
    training: bool = False,
) -> Features:
    """The head's input, averaged over positions if there are several.

    Args:
        backbone: its module is moved to the runtime's device and left in evaluation mode.
        inputs: images, texts or stored activations.
        runtime: device and precision.
        batch_size: rows per batch.
        folder: folder for features that do not fit in memory: an unnamed file, deleted with them.
        rows: rows to use, in ascending order; by default all.
        training: whether to apply the dropout before the head, as in training.
    """
    backbone.module.to(runtime.device).to(memory_format=runtime.memory_format).eval()
    head, deepest = backbone.module.get_submodule(backbone.head.name), len(backbone.layer_groups)
    given: list[Tensor] = []
    body = section(backbone, inputs.boundary, deepest) if inputs.boundary < deepest else nn.Identity()
    if training:
        train_mode(backbone, deepest, batch_norm="frozen_eval")
    tail = section(backbone, deepest)
    watched = head.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))

    def features(batch: Tensor) -> Tensor:
        given.clear()
        tail(body(batch))
        return _mean_over_places(given[0], channels=1 if isinstance(head, nn.Conv2d) else -1)

    try:
        return _collected(features, inputs, runtime, batch_size, folder, rows)
    finally:
        watched.remove()
        backbone.module.eval()


def features_at(
    inputs: Inputs, runtime: Runtime, batch_size: int, folder: Path, *, in_memory: int = _IN_MEMORY
) -> Features:
    """Stored activations as features, averaged over positions or tokens if there are several.

    Args:
        inputs: stored activations.
        runtime: the device.
        batch_size: rows per batch.
        folder: as in :func:`head_features`.
        in_memory: maximum bytes of features in memory; more are stored in a file.
    """

    def features(batch: Tensor) -> Tensor:
        if inputs.lengths is not None and batch.ndim == 3:  # the last channel is 1 for tokens and 0 for padding
            there = batch[..., -1:].float()
            return (batch[..., :-1].float() * there).sum(1) / there.sum(1).clamp(min=1)
        channels_last = batch.ndim != 4 or (batch.shape[1] == batch.shape[2] and batch.shape[2] != batch.shape[3])
        return _mean_over_places(batch, channels=-1 if channels_last else 1)

    return _collected(features, inputs, runtime, batch_size, folder, None, in_memory)


def fit_probes(
    train: Features,
    validation: Features,
    *,
    classes: int,
    device: torch.device,
    metric: str,
    class_weights: Tensor | None = None,
    bias: bool = True,
    penalties: Sequence[float] = PENALTIES,
    in_memory: int = _IN_MEMORY,
    chunk: int = CHUNK,
) -> "Probes":
    """Fit a logistic regression for each penalty.

    Full-batch L-BFGS on the mean cross-entropy over standardised features; mean and deviation are folded back into
    weights and bias.

    Args:
        train: data to fit.
        validation: data for choosing the penalty.
        classes: number of classes.
        device: device to compute on.
        metric: metric for choosing, a key of ``METRIC_DIRECTIONS``.
        class_weights: class weights of the loss, ``[classes]``.
        bias: whether the classifier may have a bias.
        penalties: penalties to try, in descending order, until three after the best so far.
        in_memory: maximum bytes of standardised features in memory; more are standardised again at every step.
        chunk: bytes of features per computation.
    """
    problem = Regression(
        train.values, train.labels, classes, device, class_weights, bias=bias, in_memory=in_memory, chunk=chunk
    )
    probes = Probes(metric, len(validation.labels))
    for penalty in penalties:
        weight, offset, training, lowest = problem.solve(penalty)
        logits = scores_of(validation.values, weight, offset, chunk)
        measured = classification_metrics(logits, torch.from_numpy(validation.labels))
        probes.fitted.append(Probe(weight, offset, penalty, training, measured, lowest))
        if len(probes.fitted) > _PATIENCE + probes.fitted.index(probes.best):
            break
    return probes


@dataclass(frozen=True)
class Probes:
    """Probes on the same features, from the strongest to the weakest penalty."""

    metric: str
    rows: int
    """Number of validation rows."""
    fitted: list[Probe] = field(default_factory=list)

    @property
    def best(self) -> Probe:
        """The best on validation; among equals, the one with the lowest loss."""
        sign = sign_of(self.metric)
        return max(self.fitted, key=lambda probe: (sign * probe.validation[self.metric], -probe.validation["loss"]))

    @property
    def simplest(self) -> Probe:
        """The probe with the strongest penalty whose accuracy is within one standard error of the best.

        The one-standard-error rule of Breiman et al., "Classification and Regression Trees", 1984.
        """
        accuracy = self.best.validation["accuracy"]
        enough = accuracy - (accuracy * (1 - accuracy) / self.rows) ** 0.5
        return next(probe for probe in self.fitted if probe.validation["accuracy"] >= enough)


def softened(probe: Probe, training: Features, class_weights: Tensor | None = None) -> Probe:
    """Scale a probe's scores for fine-tuning with dropout; predictions stay the same.

    All scores are scaled down by the factor that minimises the training loss. Otherwise, a network with dropout before
    its head would start with a loss above chance level, since large weights amplify the noise (ADR 22). Without dropout
    they are unchanged.

    Args:
        probe: the probe.
        training: the head's inputs in training, including dropout.
        class_weights: class weights of the loss, ``[classes]``.
    """
    weights = None if class_weights is None else class_weights.cpu()
    logits, labels = scores_of(training.values, probe.weight, probe.bias), torch.from_numpy(training.labels)
    losses = {scale: float(F.cross_entropy(scale * logits, labels, weight=weights)) for scale in _SCALES}
    scale = min(_SCALES, key=losses.__getitem__)
    return replace(probe, weight=scale * probe.weight, bias=scale * probe.bias, lowest=scale * probe.lowest)


def _mean_over_places(features: Tensor, *, channels: int) -> Tensor:
    """``[n, F]``, single precision."""
    kept = {0, channels % features.ndim}
    places = tuple(dimension for dimension in range(features.ndim) if dimension not in kept)
    return features.float().mean(places) if places else features.float()


@torch.inference_mode()
def _collected(
    features: Callable[[Tensor], Tensor],
    inputs: Inputs,
    runtime: Runtime,
    batch_size: int,
    folder: Path,
    rows: np.ndarray | None,
    in_memory: int = _IN_MEMORY,
) -> Features:
    """The features of all rows, in order."""
    wanted = np.arange(len(inputs)) if rows is None else rows
    values: np.ndarray | None = None
    for part, batch in batches(inputs, evaluation_order(inputs, batch_size, wanted), 0, runtime):
        with runtime.autocast():
            found = features(batch).cpu().numpy()
        if values is None:
            values = _room_for(len(wanted), found.shape[1], folder, in_memory)
        values[np.searchsorted(wanted, part)] = found
    assert values is not None  # noqa: S101  there are rows
    return Features(values, np.array(inputs.labels)[wanted])


def _room_for(rows: int, features: int, folder: Path, in_memory: int) -> np.ndarray:
    if 4 * rows * features <= in_memory:
        return np.empty((rows, features), np.float32)
    with tempfile.TemporaryFile(dir=folder) as file:  # not in the temporary folder, which may be in memory
        return np.memmap(file, np.float32, "w+", shape=(rows, features))
