"""Rank backbones by a linear probe on their features, to choose which to start with, or to search at all.

One pass through each frozen backbone costs as much as an epoch of its cheapest trial, and a logistic regression on its
features measures their quality without fine-tuning (Kornblith et al., "Do better ImageNet models transfer better?",
CVPR 2019).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thawline.config import SearchConfig
from thawline.data import Split
from thawline.exceptions import StudyError
from thawline.search.events import Note, emit
from thawline.search.prepare import Prepared, image_preprocessing
from thawline.search.slots import threads_per_trial
from thawline.search.space import kept_backbones
from thawline.search.spec import build_backbone
from thawline.search.study import Study
from thawline.search.worker import WorkerCrashed, call_with_retries
from thawline.training import Inputs, fit_probes, head_features, open_inputs, runtime_for, set_up_process, sign_of

__all__ = ["rank_backbones"]

_MOST_ROWS = 4000
"""Maximum number of training examples, and of validation examples, for a probe: more rarely change the rank."""
_SPLITS: tuple[Split, ...] = ("train", "validation")


def rank_backbones(prepared: Prepared, home: Path) -> dict[str, float]:
    """Probe every backbone of a study, unless there is only one, or the study already has a ranking.

    Returns:
        The study's validation metric for each backbone, best first; empty for a single one.

    Raises:
        StudyError: if the probing process dies repeatedly: the order would be arbitrary.
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
    """The worker's inputs, without the manifest, which grows with the data."""

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


def _probe(request: _Request) -> float:
    """In the worker: one pass, and a linear probe on the head's input."""
    config, name = request.config, request.backbone
    set_up_process(threads=threads_per_trial(config), seed=config.study.seed, exact=config.train.exact)
    backbone = build_backbone(config, name, request.classes)
    runtime = runtime_for(config.train)
    features = []
    for split in _SPLITS:
        inputs = open_inputs(request.data, split, image_preprocessing(config, name), runtime)
        rows = _some_rows(inputs, config.study.seed)
        features.append(
            head_features(backbone, inputs, runtime, config.train.batch_size, request.data.parent, rows=rows)
        )
    metric = config.study.metric
    probes = fit_probes(*features, classes=request.classes, metric=metric, device=runtime.device)
    return probes.best.validation[metric]


def _some_rows(inputs: Inputs, seed: int) -> np.ndarray:
    """All rows, or a random sample for the probe with one of every class; sorted."""
    if len(inputs) <= _MOST_ROWS:
        return np.arange(len(inputs))
    drawn = np.random.default_rng(seed).permutation(len(inputs))[:_MOST_ROWS]
    # A rare class may be missing from the sample, and a probe needs at least two classes.
    return np.union1d(drawn, np.unique(inputs.labels, return_index=True)[1])
