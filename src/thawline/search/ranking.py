"""Which of several backbones to begin with, or to search at all: how well a linear probe does on what each one knows.

One pass through each frozen backbone costs what an epoch of its cheapest trial costs, and a logistic regression on what
it gives says how far its features alone go (Kornblith et al., "Do better ImageNet models transfer better?", CVPR 2019).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thawline.backbones import Backbone, section
from thawline.exceptions import StudyError
from thawline.search.events import Note, emit
from thawline.search.prepare import Prepared, image_preprocessing
from thawline.search.slots import threads_per_trial
from thawline.search.space import kept_backbones
from thawline.search.study import Study
from thawline.search.trial import build_backbone
from thawline.search.worker import Link, WorkerCrashed, call_in_worker
from thawline.training import (
    METRIC_DIRECTIONS,
    Inputs,
    Runtime,
    batches,
    classification_metrics,
    open_inputs,
    runtime_for,
    set_up_process,
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
        sign = 1 if METRIC_DIRECTIONS[config.study.metric] == "maximize" else -1
        values = {name: _probed(prepared, name) for name in config.backbones}
        ranking = dict(sorted(values.items(), key=lambda each: -sign * each[1]))
    shown = ", ".join(f"{name} {value:.4f}" for name, value in ranking.items())
    emit(Note(f"backbones by the {config.study.metric} of a linear probe on their frozen features: {shown}"))
    left_out = [name for name in ranking if name not in kept_backbones(config, ranking)]
    if left_out:
        emit(Note(f"not searched, as study.keep_backbones={config.study.keep_backbones}: {', '.join(left_out)}"))
    return ranking


def _probed(prepared: Prepared, name: str) -> float:
    for _ in range(1 + prepared.config.study.retries):
        try:
            value: float = call_in_worker(_probe, (prepared, name), on_message=emit)
        except WorkerCrashed as error:
            emit(Note(f"probing {name}: {error}", "warning"))
        else:
            return value
    raise StudyError(f"{name} could not be probed. Leave it out of space.backbone, or run the same command again.")


def _probe(request: tuple[Prepared, str], send: Link) -> float:
    """In the worker: one pass, and logistic regressions of some strengths, the best of which counts."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    prepared, name = request
    config = prepared.config
    set_up_process(threads=threads_per_trial(config), seed=config.study.seed)
    backbone = build_backbone(config, name, len(prepared.manifest.classes))
    runtime = runtime_for(config.train)
    splits: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for split in ("train", "validation"):
        inputs = open_inputs(prepared.inputs[name], split, image_preprocessing(config, name), runtime)
        rows = _some_rows(inputs, config.study.seed)
        splits[split] = features_of(backbone, inputs, rows, runtime, config.train.batch_size), inputs.labels[rows]
    scores = []
    for penalty in _PENALTIES:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=1000))
        classifier.fit(*splits["train"])
        scores.append(_value(classifier, *splits["validation"], config.study.metric, len(prepared.manifest.classes)))
    return max(scores) if METRIC_DIRECTIONS[config.study.metric] == "maximize" else min(scores)


def _some_rows(inputs: Inputs, seed: int) -> np.ndarray:
    """All rows, or as many as a probe sees, drawn at random."""
    if len(inputs) <= _MOST_ROWS:
        return np.arange(len(inputs))
    return np.sort(np.random.default_rng(seed).permutation(len(inputs))[:_MOST_ROWS])


@torch.inference_mode()
def features_of(backbone: Backbone, inputs: Inputs, rows: np.ndarray, runtime: Runtime, batch_size: int) -> np.ndarray:
    """What the layer groups make of some rows, float32 ``[n, C]``: the mean over all places where there are several."""
    backbone.module.to(runtime.device).to(memory_format=runtime.memory_format).eval()
    body = section(backbone, 0, len(backbone.layer_groups))
    channels = backbone.module.get_parameter(backbone.head.tensors[0]).shape[1]
    lengths = np.zeros(len(inputs)) if inputs.lengths is None else inputs.lengths
    order = rows[np.argsort(lengths[rows], kind="stable")]
    found = []
    for _, batch in batches(inputs, np.split(order, range(batch_size, len(order), batch_size)), 0, runtime):
        with runtime.autocast():
            found.append(_pooled(body(batch).float(), channels).cpu())
    features: np.ndarray = torch.cat(found).numpy()[np.argsort(order)]
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
