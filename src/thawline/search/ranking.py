"""Which of several backbones to begin with, or to search at all: how well a linear probe does on what each one knows.

One pass through each frozen backbone costs what an epoch of its cheapest trial costs, and a logistic regression on what
it gives says how far its features alone go (Kornblith et al., "Do better ImageNet models transfer better?", CVPR 2019).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thawline.backbones import Backbone, section
from thawline.config import SearchConfig
from thawline.exceptions import StudyError
from thawline.search.events import Note, emit
from thawline.search.prepare import Prepared, image_preprocessing
from thawline.search.slots import threads_per_trial
from thawline.search.space import kept_backbones
from thawline.search.study import Study
from thawline.search.trial import build_backbone
from thawline.search.worker import Link, WorkerCrashed, call_with_retries
from thawline.training import (
    Inputs,
    Runtime,
    batches,
    classification_metrics,
    evaluation_order,
    open_inputs,
    runtime_for,
    set_up_process,
    sign_of,
)

__all__ = ["features_of", "rank_backbones"]

_MOST_ROWS = 4000
"""Training images or texts, and as many of validation, that a probe sees at most: more change its place seldom."""
_PENALTIES = (0.01, 0.1, 1.0)
"""Inverse strengths of the regularisation that are tried: features of another backbone want another."""


def rank_backbones(prepared: Prepared, home: Path) -> dict[str, float]:
    """Probe every backbone of a study, unless there is but one, or the study was begun with a ranking.

    Returns:
        The value of the study's metric on validation for each backbone, the best first; empty for a single one.

    Raises:
        StudyError: if the process that probes dies again and again: what comes first would be left to chance.
    """
    config = prepared.config
    if len(config.backbones) < 2:
        return {}
    ranking = Study.known_ranking(home, prepared.study, config.study.storage)
    if not ranking:
        values = {name: _probed(prepared, name) for name in config.backbones}
        ranking = dict(sorted(values.items(), key=lambda each: -sign_of(config.study.metric) * each[1]))
    shown = ", ".join(f"{name} {value:.4f}" for name, value in ranking.items())
    emit(Note(f"backbones by the {config.study.metric} of a linear probe on their frozen features: {shown}"))
    kept = kept_backbones(config, ranking)
    left_out = [name for name in ranking if name not in kept]
    if left_out:
        emit(Note(f"not searched, as study.keep_backbones={config.study.keep_backbones}: {', '.join(left_out)}"))
    return ranking


@dataclass(frozen=True)
class _Request:
    """What the worker must know: not the manifest, which grows with the data."""

    config: SearchConfig
    backbone: str
    classes: int
    data: Path


def _probed(prepared: Prepared, name: str) -> float:
    request = _Request(prepared.config, name, len(prepared.manifest.classes), prepared.inputs[name])
    try:
        value: float = call_with_retries(
            _probe, request, retries=prepared.config.study.retries, title=f"probing {name}"
        )
    except WorkerCrashed as error:
        raise StudyError(
            f"{name} could not be probed: {error}. Leave it out of space.backbone, or run the same command again."
        ) from error
    return value


def _probe(request: _Request, send: Link) -> float:
    """In the worker: one pass, and logistic regressions of some strengths, the best of which counts."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    config, name = request.config, request.backbone
    set_up_process(threads=threads_per_trial(config), seed=config.study.seed)
    backbone = build_backbone(config, name, request.classes)
    runtime = runtime_for(config.train)
    splits: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for split in ("train", "validation"):
        inputs = open_inputs(request.data, split, image_preprocessing(config, name), runtime)
        rows = _some_rows(inputs, config.study.seed)
        splits[split] = features_of(backbone, inputs, rows, runtime, config.train.batch_size), inputs.labels[rows]
    scores = []
    for penalty in _PENALTIES:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000))
        classifier.fit(*splits["train"])
        scores.append(_value(classifier, *splits["validation"], config.study.metric, request.classes))
    return max(scores, key=lambda score: sign_of(config.study.metric) * score)


def _some_rows(inputs: Inputs, seed: int) -> np.ndarray:
    """All rows, or as many as a probe sees, drawn at random, and one of every class; rising."""
    if len(inputs) <= _MOST_ROWS:
        return np.arange(len(inputs))
    drawn = np.random.default_rng(seed).permutation(len(inputs))[:_MOST_ROWS]
    # A rare class may not be among them, and a single class cannot be told from another.
    return np.union1d(drawn, np.unique(inputs.labels, return_index=True)[1])


@torch.inference_mode()
def features_of(backbone: Backbone, inputs: Inputs, rows: np.ndarray, runtime: Runtime, batch_size: int) -> np.ndarray:
    """What the layer groups make of some rows (rising), float32 ``[n, C]``; of several places the mean."""
    backbone.module.to(runtime.device).to(memory_format=runtime.memory_format).eval()
    body = section(backbone, 0, len(backbone.layer_groups))
    channels = backbone.module.get_parameter(backbone.head.tensors[0]).shape[1]
    parts, found = evaluation_order(inputs, batch_size, rows), []
    for _, batch in batches(inputs, parts, 0, runtime):
        with runtime.autocast():
            found.append(_pooled(body(batch).float(), channels).cpu())
    features: np.ndarray = torch.cat(found).numpy()[np.argsort(np.concatenate(parts))]
    return features


def _pooled(features: Tensor, channels: int) -> Tensor:
    """``[n, C]`` of features whose channels, which are as many as the head takes, are the second or the last."""
    if features.ndim == 2:
        return features
    places = range(2, features.ndim) if features.shape[1] == channels else range(1, features.ndim - 1)
    return features.mean(dim=tuple(places))


def _value(classifier: Any, features: np.ndarray, labels: np.ndarray, metric: str, classes: int) -> float:
    """Of the study's metric; a class that training lacks has no probability."""
    logits = np.full((len(labels), classes), -1e9, dtype=np.float32)
    logits[:, classifier.classes_] = classifier.predict_log_proba(features)
    return classification_metrics(torch.from_numpy(logits), torch.from_numpy(labels))[metric]
