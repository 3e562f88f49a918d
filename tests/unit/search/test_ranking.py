"""Backbones are probed on what they know before any is trained."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model

from thawline.backbones import depth_of
from thawline.config import SearchConfig
from thawline.data import scan
from thawline.search import Prepared, prepare_inputs, rank_backbones, with_best_backbones
from thawline.search.space import default_points

BLIND, SEEING = "squeezenet1_1", "mobilenet_v3_small"


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of nought: every picture looks the same."""
    file = tmp_path_factory.mktemp("weights") / "blind.pth"
    state = get_model(BLIND, weights=None).state_dict()
    torch.save({name: torch.zeros_like(value) for name, value in state.items()}, file)
    return file


@pytest.fixture
def make_prepared(pictures: Path, blind: Path, own_home: Path) -> Callable[..., Prepared]:
    def make(**study: object) -> Prepared:
        config = SearchConfig.build(
            {
                "data": {"path": str(pictures), "workers": 1},
                "backbone": {"weights": {BLIND: str(blind), SEEING: "starter"}, "image_size": 32},
                "train": {"batch_size": 8, "device": "cpu"},
                "space": {"backbone": {BLIND: [2, 3], SEEING: None}},
                "study": {"name": "ranked", **study},
            }
        )
        manifest = scan(config.data)
        depths = {name: depth_of(name) for name in config.backbones}
        return Prepared(config, manifest, depths, prepare_inputs(config, manifest, own_home), "same")

    return make


def test_a_backbone_that_tells_the_classes_apart_comes_before_one_that_is_blind(
    make_prepared: Callable[..., Prepared], own_home: Path
) -> None:
    prepared = make_prepared()
    probes = rank_backbones(prepared, own_home)
    assert [probe.backbone for probe in probes] == [SEEING, BLIND]
    assert probes[0].value > 0.7
    assert probes[1].value == 0.5, "by chance"
    ranked = with_best_backbones(prepared, probes)
    assert ranked.config.backbones == (SEEING, BLIND)
    points = default_points(ranked.config, ranked.depths)
    assert [point["backbone"] for point in points] == [SEEING, BLIND], "the best is tried first"
    assert points[0][f"freeze_depth:{SEEING}"] == depth_of(SEEING)
    assert points[1][f"freeze_depth:{BLIND}"] == 3, "within the range of its own"


def test_only_so_many_are_kept_and_it_is_said_which_are_not(
    make_prepared: Callable[..., Prepared], own_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = make_prepared(keep_backbones=1)
    with caplog.at_level("INFO"):
        ranked = with_best_backbones(prepared, rank_backbones(prepared, own_home))
    assert ranked.config.backbones == (SEEING,)
    assert f"by the accuracy of a linear probe on their frozen features: {SEEING} 0." in caplog.text
    assert f"not searched, as study.keep_backbones=1: {BLIND}" in caplog.text


def test_a_study_that_goes_on_keeps_the_ranking_it_was_begun_with(
    make_prepared: Callable[..., Prepared], own_home: Path
) -> None:
    first = rank_backbones(make_prepared(), own_home)
    prepared = make_prepared()
    for path in prepared.inputs.values():
        path.unlink()  # nothing could be computed now
    assert rank_backbones(prepared, own_home) == first


def test_the_smallest_loss_is_the_best(make_prepared: Callable[..., Prepared], own_home: Path) -> None:
    probes = rank_backbones(make_prepared(metric="loss"), own_home)
    assert [probe.backbone for probe in probes] == [SEEING, BLIND]
    assert probes[0].value < 0.69 < probes[1].value, "the logarithm of 2 is chance"


def test_a_single_backbone_is_not_probed(make_prepared: Callable[..., Prepared], own_home: Path) -> None:
    prepared = make_prepared(keep_backbones=1)
    alone = with_best_backbones(prepared, rank_backbones(prepared, own_home))
    assert rank_backbones(alone, own_home) == ()
    assert with_best_backbones(alone, ()) is alone
