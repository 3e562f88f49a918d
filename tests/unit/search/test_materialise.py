"""Storing activations spares time; without it a search goes on."""

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from thawline.activations import StoredSplits
from thawline.backbones import depth_of
from thawline.data import scan
from thawline.search import Prepared, Study, materialise, store_activations
from thawline.search.trial import TrialSpec
from thawline.training import runtime_for

pytestmark = pytest.mark.xdist_group("processes")


def _killed(request: object, send: Callable[[Any], Any]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stored(spec: TrialSpec, home: Path) -> StoredSplits:
    backbone = spec.hyperparameters.backbone
    prepared = Prepared(
        spec.config,
        spec.config,
        scan(spec.config.data),
        {backbone: depth_of(backbone)},
        {backbone: spec.activations.data},
        "same",
    )
    study = Study.open(home, spec.study, spec.config, prepared.depths, prepared.fingerprint)
    return store_activations(prepared, study, home)[backbone]


def test_a_process_that_dies_twice_while_it_stores_is_a_warning_and_trials_begin_at_images(
    make_spec: Callable[..., TrialSpec],
    own_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec = make_spec()
    monkeypatch.setattr(materialise, "_plan_and_fill", _killed)
    with caplog.at_level(logging.WARNING, "thawline.search"):
        splits = stored(spec, own_home)
    assert [record.getMessage() for record in caplog.records] == [
        "storing activations of mobilenet_v3_small: its process was killed by signal 9; it is tried again",
        "no activations of mobilenet_v3_small are stored, every trial computes them: its process was killed by "
        "signal 9",
    ]
    runtime = runtime_for(splits.train_config(spec.config.train))
    assert [inputs.boundary for inputs in splits.open(6, runtime, "none")] == [0, 0]


def test_a_process_that_lives_stores_them(make_spec: Callable[..., TrialSpec], own_home: Path) -> None:
    spec = make_spec()
    splits = stored(spec, own_home)
    runtime = runtime_for(splits.train_config(spec.config.train))
    assert splits.boundaries
    assert splits.open(6, runtime, "none")[0].boundary == max(splits.boundaries)


def test_each_augmentation_that_trials_choose_from_is_stored_and_each_trial_gets_its_own(
    make_spec: Callable[..., TrialSpec], own_home: Path
) -> None:
    spec = make_spec(augmentation="light", views=2)
    space = spec.config.space.model_copy(update={"augmentation": ("none", "light")})
    splits = stored(replace(spec, config=spec.config.model_copy(update={"space": space})), own_home)
    runtime, rows = runtime_for(splits.train_config(spec.config.train)), np.arange(8)
    plain, light = (splits.open(6, runtime, kind)[0] for kind in ("none", "light"))
    assert plain.boundary == light.boundary == max(splits.boundaries)
    assert splits.plan is not None
    assert splits.plan.views == 3, "the images as they are, and two views"
    assert torch.equal(plain.read(rows, 0), plain.read(rows, 1))
    assert not torch.equal(plain.read(rows, 0), light.read(rows, 0))
    assert not torch.equal(light.read(rows, 0), light.read(rows, 1))
    assert torch.equal(light.read(rows, 0), light.read(rows, 2))
