"""Backbones are probed on what they know before any is trained."""

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torchvision.models import get_model

from thawline.backbones import depth_of
from thawline.config import DataConfig, SearchConfig, SearchSpace
from thawline.data import Manifest
from thawline.exceptions import StudyError
from thawline.search import Prepared, Study, prepare_inputs, rank_backbones
from thawline.search.ranking import _some_rows
from thawline.training import Inputs

pytestmark = pytest.mark.xdist_group("ranking")

BLIND, SEEING = "squeezenet1_1", "mobilenet_v3_small"


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of zero: every picture looks the same."""
    file = tmp_path_factory.mktemp("weights") / "blind.pth"
    state = get_model(BLIND, weights=None).state_dict()
    torch.save({name: torch.zeros_like(value) for name, value in state.items()}, file)
    return file


def recipe(pictures: Path, blind: Path, **study: object) -> SearchConfig:
    return SearchConfig.build(
        {
            "data": {"path": str(pictures), "workers": 1},
            "backbone": {"weights": {BLIND: str(blind), SEEING: "starter"}, "image_size": 32},
            "train": {"batch_size": 8, "device": "cpu"},
            "space": {"backbone": {BLIND: [2, 3], SEEING: None}},
            "study": {"name": "ranked", **study},
        }
    )


@pytest.fixture(scope="module")
def inputs(
    pictures: Path, blind: Path, scanned: tuple[Manifest, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The pictures, decoded for each backbone: the same whatever the study is."""
    return prepare_inputs(recipe(pictures, blind), scanned[0], tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def make_prepared(
    pictures: Path, blind: Path, scanned: tuple[Manifest, Path], inputs: dict[str, Path]
) -> Callable[..., Prepared]:
    def make(**study: object) -> Prepared:
        config, manifest = recipe(pictures, blind, **study), scanned[0]
        depths = {name: depth_of(name) for name in config.backbones}
        return Prepared(config, config, manifest, depths, inputs, config.fingerprint(manifest.digest))

    return make


def opened(prepared: Prepared, home: Path, ranking: dict[str, float] | None = None) -> Study:
    return Study.open(home, prepared.study, prepared.config, prepared.depths, prepared.fingerprint, ranking)


def test_a_backbone_that_tells_the_classes_apart_comes_before_one_that_is_blind(
    make_prepared: Callable[..., Prepared], own_home: Path
) -> None:
    prepared = make_prepared()
    ranking = rank_backbones(prepared, own_home)
    assert list(ranking) == [SEEING, BLIND]
    assert ranking[SEEING] > 0.7
    assert ranking[BLIND] == 0.5, "by chance"
    study = opened(prepared, own_home, ranking)
    assert study.config.backbones == (SEEING, BLIND)
    with study.held():
        drawn = [asked.hyperparameters for asked in study.draw(30, trials=30)]
    probes = [(each.backbone, each.freeze_depth) for each in drawn if each.is_probe]
    assert probes == [(SEEING, depth_of(SEEING)), (BLIND, depth_of(BLIND))], "the best is tried first"
    assert [each.is_probe for each in drawn[:3]] == [True, True, False]
    first = (drawn[2].backbone, drawn[2].freeze_depth)
    assert first == (SEEING, round(2 / 3 * depth_of(SEEING))), "and then the cheapest point of the portfolio"
    within = {each.freeze_depth for each in drawn if each.backbone == BLIND and not each.is_probe}
    assert within == {2, 3}, "within the range of its own"


def test_only_that_many_are_kept_and_it_is_reported_which_are_not(
    make_prepared: Callable[..., Prepared], own_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = make_prepared(keep_backbones=1)
    with caplog.at_level("INFO"):
        ranking = rank_backbones(prepared, own_home)
    assert f"by the accuracy of a linear probe on their frozen features: {SEEING} 0." in caplog.text
    assert f"not searched, as study.keep_backbones=1: {BLIND}" in caplog.text
    study = opened(prepared, own_home, ranking)
    assert study.config.backbones == (SEEING,)
    with study.held():
        assert {asked.hyperparameters.backbone for asked in study.draw(12, trials=12)} == {SEEING}


def test_what_is_named_as_a_point_to_try_is_kept(make_prepared: Callable[..., Prepared], own_home: Path) -> None:
    prepared = make_prepared(keep_backbones=1, enqueue=[{"backbone": BLIND, "freeze_depth": 2}])
    study = opened(prepared, own_home, {SEEING: 0.9, BLIND: 0.5})
    assert study.config.backbones == (SEEING, BLIND)
    with study.held():
        *probes, first = (asked.hyperparameters for asked in study.draw(3, trials=3))
    assert [each.policy for each in probes] == ["probe"] * 2
    assert (first.backbone, first.freeze_depth, first.policy) == (BLIND, 2, "static")


def test_a_study_resumes_with_the_ranking_it_was_begun_with_wherever_it_is_opened(
    make_prepared: Callable[..., Prepared], own_home: Path
) -> None:
    prepared = make_prepared()
    with (study := opened(prepared, own_home, {BLIND: 0.9, SEEING: 0.5})).held():
        study.draw(3, trials=8)
    gone = replace(prepared, inputs=dict.fromkeys(prepared.inputs, own_home / "gone"))  # nothing could be probed now
    assert rank_backbones(gone, own_home) == {BLIND: 0.9, SEEING: 0.5}
    another = opened(prepared, own_home, {SEEING: 0.9, BLIND: 0.5})  # as another machine may have come to
    assert another.config.backbones == (BLIND, SEEING)
    with another.held():
        assert len(another.draw(5, trials=8)) == 5


def test_another_number_of_backbones_is_another_study(make_prepared: Callable[..., Prepared], own_home: Path) -> None:
    opened(make_prepared(keep_backbones=1), own_home, {SEEING: 0.9, BLIND: 0.5})
    with pytest.raises(StudyError, match=r"was made with study\.keep_backbones=1"):
        opened(make_prepared(keep_backbones=2), own_home, {SEEING: 0.9, BLIND: 0.5})


def test_the_smallest_loss_is_the_best(make_prepared: Callable[..., Prepared], own_home: Path) -> None:
    ranking = rank_backbones(make_prepared(metric="loss"), own_home)
    assert list(ranking) == [SEEING, BLIND]
    assert ranking[SEEING] < 0.69 < ranking[BLIND], "the logarithm of 2 is chance"


def test_a_class_that_is_rare_is_among_what_a_probe_sees() -> None:
    class Rare:
        labels = np.array([0] * 20_000 + [1, 2])

        def __len__(self) -> int:
            return len(self.labels)

    for seed in range(5):
        rows = _some_rows(cast(Inputs, Rare()), seed)
        assert set(Rare.labels[rows]) == {0, 1, 2}
        assert 4000 <= len(rows) <= 4003
        assert (np.diff(rows) > 0).all()


def _killed(request: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_twice_while_it_probes_ends_the_search_with_a_word(
    make_prepared: Callable[..., Prepared],
    own_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    prepared = make_prepared()
    monkeypatch.setattr("thawline.search.ranking._probe", _killed)
    with caplog.at_level(logging.WARNING, "thawline.search"), pytest.raises(StudyError) as refused:
        rank_backbones(prepared, own_home)
    killed = "its process was killed by signal 9"
    assert str(refused.value) == (
        f"{BLIND} could not be probed: {killed}. Leave it out of space.backbone, or run the same command again."
    )
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == [f"probing {BLIND}: {killed}; retrying"]


def test_a_single_backbone_is_not_probed(make_prepared: Callable[..., Prepared], own_home: Path) -> None:
    prepared = make_prepared()
    alone = SearchConfig.build(
        prepared.config.model_dump(), {"space": {"backbone": None}, "backbone": {"weights": "none"}}
    )
    assert rank_backbones(replace(prepared, config=alone), own_home) == {}


def test_the_sampler_of_several_backbones_models_what_belongs_to_one(pictures: Path) -> None:
    data, several = {"path": str(pictures)}, {"backbone": [BLIND, SEEING]}
    assert SearchConfig.build({"data": data, "space": several}).study.sampler == "TPESampler"
    assert SearchConfig(data=DataConfig(path=pictures), space=SearchSpace(**several)).study.sampler == "TPESampler"
    chosen = SearchConfig.build({"data": data, "space": several, "study": {"sampler": "RandomSampler"}})
    assert chosen.study.sampler == "RandomSampler"
    assert SearchConfig.build({"data": data, "space": {"backbone": [SEEING]}}).study.sampler == "GPSampler"
