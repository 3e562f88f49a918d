"""A greedy soup: the average of the weights of good trials, used if it is better than the best trial on validation.

Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time", ICML 2022. Trials of one backbone start from the same weights, including the head's, so their averages
usually work. Whether one is better is always measured.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from thawline.backbones import Backbone
from thawline.exceptions import CheckpointError
from thawline.search.events import Note, emit
from thawline.search.prepare import Prepared, image_preprocessing
from thawline.search.records import TrialRecord
from thawline.search.spec import build_backbone
from thawline.training import (
    Checkpoint,
    CheckpointFolder,
    classification_metrics,
    load_checkpoint,
    load_model,
    open_inputs,
    predict,
    runtime_for,
    sign_of,
)
from thawline.training.checkpoint import pack_model

__all__ = ["SOUP_TAG", "Soup", "Weights", "greedy_soup", "is_kept", "kept_soup", "make_soup"]

SOUP_TAG = "thawline.soup"
"""Tag of a version: a description of the soup's result."""
_TRIALS = "thawline.soup_trials"
"""Tag of a version that is a soup."""

Weights = Mapping[str, Tensor]
"""The backbone's tensors in one trial, by name."""


@dataclass(frozen=True)
class Soup:
    """The result of averaging."""

    trials: tuple[int, ...]
    """Numbers of the averaged trials, best first."""
    tried: int
    """Number of trials tried, including those."""
    metric: str
    value: float
    """Validation value of the average."""
    best_value: float
    """Validation value of the best single trial, measured the same way."""
    weights: Weights

    @property
    def wins(self) -> bool:
        """Whether the average is better than the best single trial."""
        sign = sign_of(self.metric)
        return sign * self.value > sign * self.best_value

    def __str__(self) -> str:
        if not self.wins:
            best = f"trial {self.trials[0]} alone (val/{self.metric} {self.best_value:.4f})"
            return f"not used: no average of the {self.tried} trials is better than {best}"
        numbers = ", ".join(map(str, self.trials))
        return (
            f"the average of trials {numbers} ({self.tried} tried): val/{self.metric} {self.value:.4f}, trial "
            f"{self.trials[0]} alone {self.best_value:.4f}"
        )

    @property
    def tags(self) -> dict[str, str]:
        """Tags for the model version."""
        tags = {SOUP_TAG: str(self)}
        return {**tags, _TRIALS: _listed(self.trials)} if self.wins else tags


def greedy_soup(trials: Iterator[tuple[int, Weights]], measure: Callable[[Weights], float], *, metric: str) -> Soup:
    """Go through the trials, and add each to the average unless that makes it worse.

    Args:
        trials: numbers and weights of at least one trial, best first. Only two are in memory at a time.
        measure: returns the validation value of a network with given weights.
        metric: the metric that it returns, a key of ``METRIC_DIRECTIONS``.

    Returns:
        The average, even if it is not better than the best single trial.
    """
    sign = sign_of(metric)
    best, average = next(trials)
    best_value = value = measure(average)
    chosen, tried = [best], 1
    for number, weights in trials:
        tried += 1
        candidate = _average(average, weights, len(chosen))
        measured = measure(candidate)
        if sign * measured >= sign * value:
            average, value = candidate, measured
            chosen.append(number)
    return Soup(tuple(chosen), tried, metric, value, best_value, average)


def make_soup(prepared: Prepared, records: Sequence[TrialRecord], home: Path) -> Soup | None:
    """Try a soup of the complete trials with the best trial's backbone whose checkpoints are in this home.

    Each trial costs a pass over the validation split. A winning soup is stored, see :func:`kept_soup`.

    Args:
        prepared: the search.
        records: its trials, best first.
        home: Thawline's home.

    Returns:
        The result; ``None`` if there is only one such trial.
    """
    for old in _folder(home, prepared.study).glob("*.safetensors"):  # from before the study was resumed
        old.unlink()
    mixable = _mixable(records, home)
    if len(mixable) < 2:
        return None
    best, checkpoint_of_best = mixable[0]
    config, name = prepared.config, best.hyperparameters.backbone
    backbone = build_backbone(config, name, len(prepared.manifest.classes))
    depth = min(record.hyperparameters.freeze_depth for record, _ in mixable)
    began = {name: tensor.clone() for name, tensor in pack_model(backbone, depth).items()}
    # In the precision of serving, regardless of the precision of training.
    runtime = runtime_for(config.train.model_copy(update={"precision": "fp32"}))
    inputs = open_inputs(prepared.inputs[name], "validation", image_preprocessing(config, name), runtime)

    def measure(weights: Weights) -> float:
        _load(weights, backbone)
        logits = predict(backbone, inputs, runtime, config.train.batch_size)
        return classification_metrics(logits, torch.from_numpy(inputs.labels))[config.study.metric]

    def trials() -> Iterator[tuple[int, Weights]]:
        for record, path in mixable:
            try:
                checkpoint = load_checkpoint(path)
                load_model(checkpoint, backbone)  # refuses a checkpoint of other weights
            except CheckpointError as error:
                if record.number == best.number:
                    raise
                emit(Note(f"soup: trial {record.number} is skipped: {error}", "warning"))
                continue
            yield record.number, began | checkpoint.model

    soup = greedy_soup(trials(), measure, metric=config.study.metric)
    if soup.wins:
        _keep(soup, depth, backbone, _folder(home, prepared.study), epoch=load_checkpoint(checkpoint_of_best).epoch)
    return soup


def kept_soup(study: str, best: int, home: Path) -> Checkpoint | None:
    """The weights of the soup that won against this trial of a study; ``None`` without one.

    The checkpoint is for loading into a fresh backbone, not for resuming.
    """
    path = _folder(home, study)
    checkpoint = CheckpointFolder(path, keep=1, maximise=True).last() if path.is_dir() else None
    return checkpoint if checkpoint is not None and checkpoint.state["trials"][0] == best else None


def is_kept(tags: Mapping[str, str], soup: Checkpoint | None) -> bool:
    """Whether a version can be restored here: it is this soup, or without one the trial itself.

    It cannot if another machine concluded the study: soups stay in the home where they were made.

    Args:
        tags: tags of the version.
        soup: result of :func:`kept_soup`.
    """
    return tags.get(_TRIALS, "") == (_listed(soup.state["trials"]) if soup is not None else "")


def _listed(trials: Sequence[int]) -> str:
    return ",".join(map(str, trials))


def _mixable(records: Sequence[TrialRecord], home: Path) -> list[tuple[TrialRecord, Path]]:
    """The complete trials with the first trial's backbone, and their checkpoints on this machine."""
    kept = [
        (record, home / record.result.checkpoint)
        for record in records
        if record.state == "complete" and record.result is not None and record.result.checkpoint is not None
    ]
    here = [(record, path) for record, path in kept if path.is_file()]
    return [(r, path) for r, path in here if r.hyperparameters.backbone == here[0][0].hyperparameters.backbone]


def _average(average: Weights, weights: Weights, count: int) -> Weights:
    """The average of ``count`` trials and one more; batch counters keep the first trial's value."""
    return {
        name: torch.lerp(tensor, weights[name].to(tensor.device), 1 / (count + 1))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in average.items()
    }


def _load(weights: Weights, backbone: Backbone) -> None:
    state = backbone.module.state_dict()
    state.update(weights)
    backbone.module.load_state_dict(state)


def _folder(home: Path, study: str) -> Path:
    return home / "studies" / study / "soup"


def _keep(soup: Soup, depth: int, backbone: Backbone, folder: Path, *, epoch: int) -> None:
    state = {
        "freeze_depth": depth,
        "weights_digest": backbone.weights_digest,
        "value": soup.value,
        "trials": list(soup.trials),
    }
    CheckpointFolder(folder, keep=1, maximise=True).save(Checkpoint(epoch, dict(soup.weights), {}, {}, state))
