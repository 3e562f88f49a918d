"""The study samples what the space opens, prunes what is bad, and resumes where it stopped."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pytest
import torch
from tiny_networks import TINY
from torchvision.models import get_model

from thawline.config import SearchConfig
from thawline.exceptions import ConfigError, StudyError
from thawline.search import check_backbones
from thawline.search.conduct import Queue
from thawline.search.fruitless import MOST_FRUITLESS
from thawline.search.importance import load_importances
from thawline.search.records import latest_study, load_records, study_names
from thawline.search.sampling import check_sampling
from thawline.search.space import (
    PORTFOLIO,
    Start,
    check_space,
    default_points,
    depth_shares,
    with_backbones,
)
from thawline.search.study import Asked, Study
from thawline.search.trial_result import TrialResult
from thawline.training import Decision, EpochResult, Hyperparameters

DEPTHS = {"resnet18": 5, "vgg11": 6}


def config(**sections: Any) -> SearchConfig:
    return SearchConfig.build({"data": {"path": "photos"}, "train": {"epochs": 4}}, sections)


def open_study(home: Path, name: str = "pets", fingerprint: str = "f", **sections: Any) -> Study:
    return Study.open(home, name, config(**sections), DEPTHS, fingerprint)


def epoch(number: int, value: float) -> EpochResult:
    return EpochResult(number, {"val/accuracy": value, "val/loss": 1 - value, "train/loss": 1 - value}, 0)


def ask(study: Study) -> Asked:
    return study.draw(1, trials=10_000)[0]


def begun_study(home: Path, name: str = "pets", **sections: Any) -> Study:
    """A study whose linear probes are over, so that what is asked next is trained."""
    study = open_study(home, name, **sections)
    for _ in study.config.backbones:
        end_probe(study)
    return study


def end_probe(study: Study, value: float = 0.3) -> Asked:
    asked = ask(study)
    assert asked.hyperparameters.is_probe
    metrics = {"val/accuracy": value, "val/loss": 1 - value, "train/loss": 1 - value, "time/epoch_seconds": 1.0}
    assert study.report(asked.number, EpochResult(1, metrics, 0)) is Decision.CONTINUE
    study.tell(TrialResult(asked.number, "complete", value, 1, 1, 1.0, "", "run", "file"))
    return asked


def trained(study: Study, count: int) -> list[Hyperparameters]:
    """The next so many trials that are trained."""
    drawn: list[Hyperparameters] = []
    while len(drawn) < count:
        hyperparameters = ask(study).hyperparameters
        if not hyperparameters.is_probe:
            drawn.append(hyperparameters)
    return drawn


def starts_of(*, depth: int, slower: float = 1.0) -> list[tuple[int, float]]:
    """Freeze depth and learning rate of the portfolio, cheapest first, for a network of so many layer groups."""
    points = dict.fromkeys((round(each.share * depth), each.learning_rate * slower) for each in PORTFOLIO)
    return sorted(points, key=lambda point: -point[0])


def complete(study: Study, value: float) -> int:
    asked = ask(study)
    for number in range(1, 5):
        study.report(asked.number, epoch(number, value * number / 4))
    study.tell(TrialResult(asked.number, "complete", value, 4, 4, 1.0, "", "run", "file"))
    return asked.number


def test_after_the_probe_the_first_trials_are_the_portfolio_moved_into_the_space(own_home: Path) -> None:
    def first(name: str, count: int, **sections: Any) -> list[tuple[int, float]]:
        study = begun_study(own_home, name, study={"sampler": "RandomSampler"}, **sections)
        return [(each.freeze_depth, each.learning_rate) for each in trained(study, count)]

    whole = starts_of(depth=5)
    drawn = first("whole", len(whole) + 3)
    assert drawn[: len(whole)] == pytest.approx(whole)
    assert not set(drawn[len(whole) :]) & set(whole), "what comes after it is sampled"
    best_first = [(round(each.share * 5), each.learning_rate) for each in PORTFOLIO]
    moved = list(dict.fromkeys((min(max(depth, 2), 3), min(max(rate, 2e-4), 5e-4)) for depth, rate in best_first))
    moved.sort(key=lambda point: -point[0])
    assert len(moved) < len(whole), "points that come to lie on each other are tried once"
    part = first("part", len(moved) + 1, space={"freeze_depth": [2, 3], "learning_rate": [2e-4, 5e-4]})
    assert part[:-1] == pytest.approx(moved)
    assert part[-1] not in moved


def test_the_cheapest_of_the_portfolio_come_first_unless_the_trials_do_not_suffice_for_all_of_it() -> None:
    def depths(**study: Any) -> list[int]:
        return [point["freeze_depth"] for point in default_points(config(study=study), DEPTHS)]

    best_first = [round(each.share * DEPTHS["resnet18"]) for each in PORTFOLIO]
    assert depths(trials=len(PORTFOLIO)) == best_first, "one of them is the probe"
    assert depths(trials=len(PORTFOLIO) + 1, enqueue=[{"freeze_depth": 1}]) == best_first
    cheapest_first = sorted(best_first, reverse=True)
    assert cheapest_first != best_first
    assert depths(trials=len(PORTFOLIO) + 1) == cheapest_first
    assert depths(timeout_minutes=1) == cheapest_first, "time may not suffice for the expensive ones"


def test_the_portfolio_begins_with_everything_and_holds_no_head_only_trial() -> None:
    """The probe is head only, and better than a trained head; deep thawing is expensive."""
    shares = [each.share for each in PORTFOLIO]
    assert shares[0] == 0
    assert all(0 <= share < 1 for share in shares)


def test_a_policy_of_the_portfolio_is_tried_where_the_space_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thawline.search.space.PORTFOLIO", (Start(0.0, 3e-4, "gradual"), Start(0.0, 3e-4)))
    opened = default_points(config(space={"policy": ["static", "gradual"]}), DEPTHS)
    assert [point["policy"] for point in opened] == ["gradual", "static"]
    other = default_points(config(space={"policy": ["static", "lp_ft"]}), DEPTHS)
    assert [point["policy"] for point in other] == ["static"], "two that are now the same are one"
    assert ["policy" in point for point in default_points(config(), DEPTHS)] == [False]


def test_an_encoder_of_texts_begins_with_the_portfolio_at_lower_rates(tmp_path: Path) -> None:
    name = f"hf:{TINY['bert'](tmp_path / 'bert')}"
    points = default_points(config(backbone={"name": name}), {name: 3})
    wanted = starts_of(depth=3, slower=0.5)
    assert [(point["freeze_depth"], point["learning_rate"]) for point in points] == pytest.approx(wanted)
    assert points[-1]["learning_rate"] < max(each.learning_rate for each in PORTFOLIO)


def test_of_several_backbones_each_is_probed_and_the_portfolio_is_that_of_the_best(own_home: Path) -> None:
    several = config(space={"backbone": ["resnet18", "vgg11"]}, study={"sampler": "RandomSampler"})
    points = default_points(with_backbones(several, ["vgg11", "resnet18"]), DEPTHS)
    wanted = starts_of(depth=6)
    assert [(point["freeze_depth:vgg11"], point["learning_rate"]) for point in points] == pytest.approx(wanted)
    assert {point["backbone"] for point in points} == {"vgg11"}

    ranking = {"vgg11": 0.9, "resnet18": 0.8}
    study = Study.open(own_home, "pets", several, DEPTHS, "f", ranking)
    probes = [end_probe(study) for _ in ranking]
    assert [(each.number, each.hyperparameters.backbone) for each in probes] == [(0, "vgg11"), (1, "resnet18")]
    assert [each.hyperparameters.freeze_depth for each in probes] == [6, 5]
    drawn = trained(study, len(points))
    assert {each.backbone for each in drawn} == {"vgg11"}
    assert [(each.freeze_depth, each.learning_rate) for each in drawn] == pytest.approx(wanted)


FINITE = {"freeze_depth": [3, 4], "learning_rate": [1e-3, 1e-2]}


@pytest.mark.parametrize(
    ("study", "space"),
    [
        ({}, {}),
        ({"sampler": "TPESampler"}, {}),
        ({"sampler": "QMCSampler"}, {}),
        ({"sampler": "RandomSampler"}, {"policy": ["static", "gradual"], "augmentation": ["none", "light"]}),
        ({"sampler": "GridSampler", "sampler_options": {"search_space": FINITE}}, {}),
        ({"sampler": "BruteForceSampler"}, {}),
        ({"sampler": "CmaEsSampler"}, {}),
        ({}, {"freeze_depth": [0, 2]}),
        ({}, {"freeze_depth": [0, 0], "learning_rate": [1e-2, 1e-1]}),
        ({"enqueue": [{"freeze_depth": 5, "learning_rate": 1e-3}]}, {}),
    ],
    ids=["GP", "TPE", "QMC", "random", "grid", "brute force", "CMA-ES", "not the deepest", "one depth", "enqueue"],
)
def test_trial_0_is_the_linear_probe_of_every_study(
    own_home: Path, study: dict[str, Any], space: dict[str, Any]
) -> None:
    opened = open_study(own_home, study=study, space=space)
    asked = end_probe(opened)
    assert (asked.number, asked.hyperparameters.freeze_depth, asked.hyperparameters.learning_rate) == (0, 5, 0.0)
    if study.get("sampler") != "BruteForceSampler":  # it refuses a range without steps, as that of the learning rate
        following = ask(opened).hyperparameters
        low, high = space.get("freeze_depth", [0, 5])
        assert not following.is_probe
        assert low <= following.freeze_depth <= high
    (record,) = (record for record in opened.records() if record.hyperparameters.is_probe)
    assert (record.number, record.state, record.value) == (0, "complete", 0.3)


@pytest.mark.parametrize("sampler", ["GPSampler", "TPESampler"])
def test_a_sampler_models_freeze_depth_and_learning_rate_though_the_probe_has_none(
    own_home: Path, sampler: str
) -> None:
    """Optuna models together what all trials have: a trial without parameters leaves it nothing."""
    options = {"sampler_options": {"multivariate": True}} if sampler == "TPESampler" else {}
    study = begun_study(own_home, study={"sampler": sampler, **options})
    for value in (0.5, 0.6, 0.7, 0.8):
        complete(study, value)
    asked = ask(study)
    seen = study._study.sampler
    trial = study._stored(asked.number)
    modelled = seen.infer_relative_search_space(study._study, trial)
    assert set(modelled) == {"freeze_depth", "learning_rate"}
    bare = getattr(optuna.samplers, sampler)(**options.get("sampler_options", {}))
    assert bare.infer_relative_search_space(study._study, trial) == {}, "a control: it would see it"


@pytest.mark.parametrize("sampler", ["GPSampler", "TPESampler", "RandomSampler"])
def test_what_a_probe_reached_changes_nothing_that_is_sampled(own_home: Path, sampler: str) -> None:
    def sampled(name: str, probe: float, first: float) -> list[tuple[int, float]]:
        options = {"sampler_options": {"n_startup_trials": 2}} if sampler == "TPESampler" else {}
        study = open_study(own_home, name, study={"sampler": sampler, **options})
        end_probe(study, probe)
        for index in range(len(PORTFOLIO)):
            complete(study, first if index == 0 else 0.5 + index / 100)
        drawn = []
        for _ in range(3):
            drawn.append(ask(study))
            study.tell(TrialResult(drawn[-1].number, "complete", 0.6, 1, 1, 1.0, "", None, None))
        return [(each.hyperparameters.freeze_depth, each.hyperparameters.learning_rate) for each in drawn]

    usual = sampled("low", 0.1, 0.3)
    assert sampled("high", 0.999, 0.3) == usual
    if sampler != "RandomSampler":
        assert sampled("other", 0.1, 0.999) != usual, "a control: what a trained trial reached does"


def test_a_trial_is_not_compared_with_the_probe(own_home: Path) -> None:
    options = {"n_startup_trials": 1, "n_warmup_steps": 0}
    study = open_study(own_home, study={"pruner": "MedianPruner", "pruner_options": options})
    end_probe(study, 0.99)
    asked = ask(study)
    assert study.report(asked.number, epoch(1, 0.1)) is Decision.CONTINUE, "it would be far below"
    study.tell(TrialResult(asked.number, "complete", 0.1, 4, 4, 1.0, "", "run", "file"))
    complete(study, 0.99)
    complete(study, 0.99)
    assert study.report(ask(study).number, epoch(1, 0.1)) is Decision.PRUNE, "a control: with trained ones it is"


def test_the_probe_is_none_of_the_trials_that_must_have_run_before_one_is_pruned(own_home: Path) -> None:
    options = {"n_startup_trials": 3, "n_warmup_steps": 0}
    study = begun_study(own_home, study={"pruner": "MedianPruner", "pruner_options": options})
    complete(study, 0.9)
    complete(study, 0.9)
    early = ask(study)
    assert study.report(early.number, epoch(1, 0.1)) is Decision.CONTINUE, "two have run"
    complete(study, 0.9)
    assert study.report(ask(study).number, epoch(1, 0.1)) is Decision.PRUNE, "three have"


def test_a_point_to_try_first_that_is_one_of_the_portfolio_is_tried_once(own_home: Path) -> None:
    second = default_points(config(), DEPTHS)[1]
    ahead = [{"freeze_depth": 4, "learning_rate": 7e-4}, second]
    study = begun_study(own_home, study={"sampler": "RandomSampler", "enqueue": ahead})
    drawn = [(each.freeze_depth, each.learning_rate) for each in trained(study, len(PORTFOLIO) + 4)]
    assert drawn[:3] == pytest.approx([(4, 7e-4), starts_of(depth=5)[1], starts_of(depth=5)[0]])
    assert drawn.count(drawn[1]) == 1
    assert set(starts_of(depth=5)) <= set(drawn), "and all others of it are tried"


def test_a_budget_of_one_trial_is_the_probe(own_home: Path) -> None:
    study = open_study(own_home)
    queue = Queue(study, trials=1, batch=4, deadline=None)
    (asked,) = queue.next()
    assert asked.hyperparameters.is_probe
    study.tell(TrialResult(asked.number, "complete", 0.3, 1, 1, 1.0, "", "run", "file"))
    assert queue.next() == []
    best = study.best()
    assert best is not None
    assert best.hyperparameters.is_probe


def end_all(study: Study, queue: Queue, most: int = 60, *, state: Literal["complete", "failed"] = "complete") -> int:
    """Let every trial that the queue starts end at once; returns how many there were, at most ``most``."""
    count = 0
    while count < most and (together := queue.next()):
        for asked in together:
            value = 0.5 if state == "complete" else None
            study.tell(TrialResult(asked.number, state, value, 1, 1, 1.0, "", None, None))
        count += len(together)
    return count


def queue_for(study: Study, seconds: float = 600.0) -> Queue:
    return Queue.of(study, time.time() + seconds)


def test_with_a_time_limit_alone_trials_are_drawn_until_the_time_is_spent(own_home: Path) -> None:
    study = open_study(own_home, study={"sampler": "RandomSampler", "timeout_minutes": 10})
    queue = queue_for(study)
    assert end_all(study, queue) == 60, "three times as many as without a time limit, and no end"
    assert end_all(study, queue_for(study, seconds=0.0)) == 0
    limited = open_study(own_home, "limited", study={"sampler": "RandomSampler", "timeout_minutes": 10, "trials": 6})
    assert end_all(limited, queue_for(limited)) == 6, "both were given, and both hold"
    endless = open_study(own_home, "endless", study={"sampler": "RandomSampler"})
    assert end_all(endless, Queue.of(endless, None)) == 20, "without a time limit it is the usual number"


def test_trials_that_all_fail_end_a_search_that_only_time_limits(
    own_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"sampler": "RandomSampler", "timeout_minutes": 10, "batch": 1}
    study = open_study(own_home, study=options)
    assert end_all(study, queue_for(study), state="failed") == MOST_FRUITLESS
    assert "no further trial starts, although there is time left" in caplog.text
    resumed = open_study(own_home, study=options)
    assert end_all(resumed, queue_for(resumed), most=5) == 5, "whoever resumes it has removed the cause"
    assert end_all(resumed, queue_for(resumed), state="failed") == MOST_FRUITLESS


def test_a_space_of_one_point_ends_a_search_that_only_time_limits(own_home: Path) -> None:
    space = {"freeze_depth": [2, 2], "learning_rate": [0.001, 0.001]}
    study = open_study(own_home, space=space, study={"sampler": "RandomSampler", "timeout_minutes": 10, "batch": 1})
    tried = end_all(study, queue_for(study))
    assert tried == 2 + MOST_FRUITLESS, "the probe, the point, and the same again"


def test_a_grid_ends_a_search_that_only_time_limits(own_home: Path) -> None:
    grid = {"freeze_depth": [0, 5], "learning_rate": [1e-3, 1e-4]}
    options = {"sampler": "GridSampler", "sampler_options": {"search_space": grid}, "timeout_minutes": 10}
    study = open_study(own_home, study=options)
    assert end_all(study, queue_for(study)) == 1 + 4


def test_a_probe_that_was_begun_by_a_dead_process_is_resumed(own_home: Path) -> None:
    queue = Queue(open_study(own_home), trials=12, batch=4, deadline=None)
    (left,) = queue.next()
    again = open_study(own_home)
    queue = Queue(again, trials=12, batch=4, deadline=None)
    (asked,) = queue.next()
    assert (asked.number, asked.hyperparameters) == (0, left.hyperparameters)
    again.tell(TrialResult(0, "complete", 0.3, 1, 1, 1.0, "", "run", "file"))
    last = open_study(own_home)
    rest: list[Asked] = []
    queue = Queue(last, trials=12, batch=4, deadline=None)
    while together := queue.next():
        rest += together
        for each in together:
            last.tell(TrialResult(each.number, "complete", 0.5, 4, 4, 1.0, "", None, None))
    assert sorted(each.number for each in rest) == list(range(1, 12))
    assert not any(each.hyperparameters.is_probe for each in rest), "one that has ended is not begun again"


def test_a_probe_that_was_just_being_drawn_when_its_process_died_is_one_afterwards(own_home: Path) -> None:
    first = open_study(own_home)
    assert first._study.ask().number == 0  # and then it dies, before anything was noted
    assert first.records() == []
    (asked,) = open_study(own_home).unfinished()
    assert (asked.number, asked.hyperparameters.is_probe, asked.hyperparameters.freeze_depth) == (0, True, 5)


def test_the_probe_runs_before_and_apart_from_the_heads_of_its_batch(own_home: Path) -> None:
    space = {"freeze_depth": [5, 5]}
    study = open_study(own_home, space=space, study={"sampler": "RandomSampler"})
    queue = Queue(study, trials=8, batch=4, deadline=None)
    groups = []
    while together := queue.next():
        groups.append([asked.number for asked in together])
        for asked in together:
            study.tell(TrialResult(asked.number, "complete", 0.5, 1, 1, 1.0, "", None, None))
    assert groups == [[0], [1, 2, 3], [4, 5, 6, 7]]


def test_what_the_space_does_not_open_keeps_the_configuration_s_value(own_home: Path) -> None:
    study = begun_study(own_home, train={"optimizer": "sgd", "weight_decay": 0.02})
    hyperparameters = [ask(study).hyperparameters for _ in range(len(PORTFOLIO) + 2)]
    assert {h.optimizer for h in hyperparameters} == {"sgd"}
    assert {h.weight_decay for h in hyperparameters} == {0.02}


def test_what_the_space_opens_is_sampled_within_its_range(own_home: Path) -> None:
    space = {
        "freeze_depth": [2, 4],
        "learning_rate": [1e-4, 1e-3],
        "weight_decay": [1e-3, 1e-1],
        "head_learning_rate_factor": [1, 10],
        "optimizer": ["adamw", "sgd"],
        "policy": ["static", "gradual", "lp_ft"],
        "layer_decay": [0.5, 1],
        "batch_norm": ["frozen_eval", "train_affine"],
    }
    study = begun_study(own_home, space=space, study={"sampler": "RandomSampler"})
    sampled = [ask(study).hyperparameters for _ in range(30)]
    assert {h.freeze_depth for h in sampled} == {2, 3, 4}
    assert {h.optimizer for h in sampled} == {"adamw", "sgd"}
    assert {h.policy for h in sampled} == {"static", "gradual", "lp_ft"}
    assert {h.batch_norm for h in sampled} == {"frozen_eval", "train_affine"}
    assert len({h.layer_decay for h in sampled}) > 10
    for h in sampled:
        assert 0.5 <= h.layer_decay <= 1
        assert 1e-4 <= h.learning_rate <= 1e-3
        assert 1e-3 <= h.weight_decay <= 1e-1
        assert 1 <= h.head_learning_rate_factor <= 10
    assert len({h.weight_decay for h in sampled}) > 10


def test_the_first_that_is_trained_thaws_as_the_configuration_says_where_the_space_has_it(own_home: Path) -> None:
    train = {"policy": "lp_ft", "layer_decay": 0.9, "batch_norm": "train_all"}
    space = {"policy": ["gradual", "lp_ft"], "layer_decay": [0.5, 0.8], "batch_norm": ["frozen_eval", "train_affine"]}
    first = ask(begun_study(own_home, train=train, space=space)).hyperparameters
    assert (first.policy, first.layer_decay, first.batch_norm) == ("lp_ft", 0.8, "frozen_eval")
    fixed = ask(begun_study(own_home, "fixed", train=train)).hyperparameters
    assert (fixed.policy, fixed.layer_decay, fixed.batch_norm) == ("lp_ft", 0.9, "train_all")


def test_a_policy_to_try_first_must_be_one_of_the_space(own_home: Path) -> None:
    space = {"policy": ["static", "lp_ft"]}
    study = begun_study(own_home, space=space, study={"enqueue": [{"policy": "lp_ft"}]})
    assert ask(study).hyperparameters.policy == "lp_ft"
    with pytest.raises(ConfigError, match="policy must be one of static, lp_ft, but got 'gradual'"):
        open_study(own_home, "other", space=space, study={"enqueue": [{"policy": "gradual"}]})
    with pytest.raises(ConfigError, match="the space does not open 'layer_decay'"):
        open_study(own_home, "third", space=space, study={"enqueue": [{"layer_decay": 0.5}]})


def test_random_weights_have_no_batch_norm_statistics_to_keep_so_all_is_trained(own_home: Path) -> None:
    def first(name: str, weights: Any) -> Any:
        return ask(begun_study(own_home, name, backbone={"weights": weights})).hyperparameters.batch_norm

    assert [first("random", "none"), first("pretrained", "default")] == ["train_all", "frozen_eval"]
    space = {"batch_norm": ["frozen_eval", "train_all"]}
    check_space(config(space=space), DEPTHS)
    with pytest.raises(ConfigError, match=r"nothing to choose with backbone\.weights=none"):
        check_space(config(space=space, backbone={"weights": "none"}), DEPTHS)


@pytest.mark.parametrize("searched", [{"policy": ["static", "gradual"]}, {"layer_decay": [0.5, 1]}])
def test_there_is_nothing_to_thaw_where_every_trial_trains_only_the_head(searched: dict[str, Any]) -> None:
    (key,) = searched
    deepest = DEPTHS["resnet18"]
    check_space(config(space={**searched, "freeze_depth": [deepest - 1, deepest]}), DEPTHS)
    with pytest.raises(ConfigError, match=rf"space\.{key}: there is nothing to choose, because every trial trains the"):
        check_space(config(space={**searched, "freeze_depth": [deepest, deepest]}), DEPTHS)


@pytest.mark.parametrize(
    ("train", "space", "shares"),
    [
        ({}, {"freeze_depth": [3, 4]}, {3: 1 / 2, 4: 1 / 2}),
        ({"policy": "lp_ft"}, {"freeze_depth": [0, 0]}, {0: 1 / 2, 5: 1 / 2}),
        ({"policy": "lp_ft", "thaw_fraction": 0.25}, {"freeze_depth": [0, 0]}, {0: 3 / 4, 5: 1 / 4}),
        ({"policy": "gradual", "thaw_epochs": [2, 4]}, {"freeze_depth": [3, 3]}, {3: 1 / 4, 4: 1 / 2, 5: 1 / 4}),
        ({}, {"freeze_depth": [4, 4], "policy": ["static", "lp_ft"]}, {4: 3 / 4, 5: 1 / 4}),
    ],
)
def test_it_is_known_before_which_share_of_the_epochs_has_which_freeze_depth(
    train: dict[str, Any], space: dict[str, Any], shares: dict[int, float]
) -> None:
    assert depth_shares(config(train={"epochs": 4, **train}, space=space), DEPTHS, "resnet18") == pytest.approx(shares)


def test_there_is_nothing_to_choose_for_batch_norms_that_no_backbone_has(tmp_path: Path) -> None:
    file = tmp_path / "squeezenet.pth"
    torch.save(get_model("squeezenet1_1", weights=None).state_dict(), file)
    space = {"batch_norm": ["frozen_eval", "train_all"]}
    weights = {"squeezenet1_1": str(file), "mobilenet_v3_small": "starter"}
    both = {**space, "backbone": list(weights)}
    assert len(check_backbones(config(space=both, backbone={"weights": weights}))) == 2, "one of them has some"
    with pytest.raises(
        ConfigError, match=r"nothing to choose, because squeezenet1_1 has no batch-norms\. Leave it out"
    ):
        check_backbones(config(space=space, backbone={"name": "squeezenet1_1", "weights": str(file)}))


def test_trials_recorded_before_there_were_policies_are_read_as_what_they_were() -> None:
    old = {"backbone": "resnet18", "freeze_depth": 2, "learning_rate": 1e-3, "weight_decay": 0.01}
    read = Hyperparameters(**old, head_learning_rate_factor=1.0, optimizer="sgd")
    assert (read.policy, read.layer_decay, read.batch_norm) == ("static", 1.0, "train_all")


def test_the_default_sampler_learns_from_pruned_trials_and_never_asks_for_the_same_again(own_home: Path) -> None:
    """Optuna's own GPSampler sees no pruned trials: with nothing learnt, it asks for one point over and over."""
    study = begun_study(own_home)
    for value in (0.5, 0.6, 0.7, 0.8):
        complete(study, value)
    asked = []
    for _ in range(6):
        trial = ask(study)
        study.report(trial.number, epoch(1, 0.1))
        study.tell(TrialResult(trial.number, "pruned", 0.1, 1, 1, 1.0, "pruned after epoch 1", None, None))
        asked.append((trial.hyperparameters.freeze_depth, round(trial.hyperparameters.learning_rate, 6)))
    assert len(set(asked)) == len(asked)


def test_where_time_is_the_budget_what_a_trial_promises_is_weighed_by_its_cost(own_home: Path) -> None:
    def mean_depth(name: str, seconds: list[float], **study: Any) -> float:
        opened = begun_study(own_home, name, study={"sampler_options": {"n_startup_trials": 2}, **study})
        opened.keep_seconds("resnet18", seconds)
        for number in range(8):  # no evidence for one depth or another
            complete(opened, 0.5 + 0.001 * ((number // 2) % 2))
        depths = []
        for _ in range(10):
            asked = ask(opened)
            depths.append(asked.hyperparameters.freeze_depth)
            opened.tell(TrialResult(asked.number, "complete", 0.5, 4, 4, 1.0, "", "run", "file"))
        return sum(depths) / len(depths)

    short = {"timeout_minutes": 60.0}
    deep_is_cheap = mean_depth("deep", [100.0, 80.0, 60.0, 40.0, 20.0, 1.0], **short)
    deep_is_expensive = mean_depth("shallow", [1.0, 20.0, 40.0, 60.0, 80.0, 100.0], **short)
    assert deep_is_cheap > deep_is_expensive + 1
    one = mean_depth("one", [100.0, 80.0, 60.0, 40.0, 20.0, 1.0])
    other = mean_depth("other", [1.0, 20.0, 40.0, 60.0, 80.0, 100.0])
    assert one == other, "a control: where trials are the budget, seconds do not matter"


def test_each_backbone_has_a_depth_range_of_its_own(own_home: Path) -> None:
    study = open_study(own_home, space={"backbone": ["resnet18", "vgg11"]}, study={"sampler": "RandomSampler"})
    sampled = trained(study, 46)
    deepest = {name: max(h.freeze_depth for h in sampled if h.backbone == name) for name in DEPTHS}
    assert deepest == DEPTHS


def test_a_bad_trial_is_pruned_before_its_last_epoch_and_a_good_one_is_not(own_home: Path) -> None:
    study = begun_study(own_home)
    for value in (0.8, 0.82, 0.84, 0.86) * 2:
        complete(study, value)
    bad, good = ask(study), ask(study)
    assert [study.report(bad.number, epoch(number, 0.1)) for number in (1, 2)] == [Decision.CONTINUE, Decision.PRUNE]
    assert {study.report(good.number, epoch(number, 0.9)) for number in (1, 2, 3, 4)} == {Decision.CONTINUE}


def test_no_trial_is_pruned_before_eight_have_run_to_their_end(own_home: Path) -> None:
    study = begun_study(own_home)
    for value in (0.8, 0.82, 0.84, 0.86, 0.8, 0.82, 0.84):
        complete(study, value)
    bad = ask(study)
    assert {study.report(bad.number, epoch(number, 0.1)) for number in (1, 2, 3)} == {Decision.CONTINUE}


def test_a_trial_is_not_pruned_while_something_is_still_to_be_thawed(own_home: Path) -> None:
    study = begun_study(own_home, space={"freeze_depth": [2, 2]})
    for _ in range(8):
        complete(study, 0.9)

    def reported(trial: int, number: int, depth: int) -> bool:
        result = epoch(number, 0.1)
        decision = study.report(trial, EpochResult(number, {**result.metrics, "train/freeze_depth": depth}, 0))
        return decision is Decision.PRUNE

    gradual, static = ask(study).number, ask(study).number
    assert [reported(gradual, number, depth) for number, depth in ((1, 5), (2, 4), (3, 3))] == [False, False, False]
    assert [reported(static, number, 2) for number in (1, 2)] == [False, True]


def test_a_trial_is_never_pruned_after_its_last_epoch(own_home: Path) -> None:
    study = begun_study(own_home)
    for value in (0.8, 0.82, 0.84, 0.86) * 2:
        complete(study, value)
    assert study.report(ask(study).number, epoch(4, 0.0)) is Decision.CONTINUE


def test_a_study_of_losses_prunes_large_ones_and_ranks_small_ones_first(own_home: Path) -> None:
    study = begun_study(own_home, study={"metric": "loss"})
    for value in (0.4, 0.2, 0.3, 0.5) * 2:
        asked = ask(study)
        for number in (1, 2, 3, 4):
            study.report(asked.number, EpochResult(number, {"val/loss": value, "train/loss": value}, 0))
        study.tell(TrialResult(asked.number, "complete", value, 4, 4, 1.0, "", None, None))
    ranked = [record.value for record in study.records() if not record.hyperparameters.is_probe]
    assert ranked == [0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5]
    asked = ask(study)
    verdicts = [study.report(asked.number, EpochResult(n, {"val/loss": 9.0, "train/loss": 9.0}, 0)) for n in (1, 2)]
    assert verdicts == [Decision.CONTINUE, Decision.PRUNE]


def test_a_failed_trial_is_failed_and_counts_towards_the_budget_but_never_wins(own_home: Path) -> None:
    study = open_study(own_home)
    complete(study, 0.5)
    asked = ask(study)
    study.tell(TrialResult.without_result(asked.number, reason="killed by signal 9"))
    pruned = ask(study)
    study.tell(TrialResult(pruned.number, "pruned", 0.99, 1, 1, 1.0, "pruned after epoch 1", None, None))
    assert [record.state for record in study.records()] == ["complete", "pruned", "failed"]
    assert study.finished() == 3
    best = study.best()
    assert best is not None
    assert best.number == 0


def test_telling_twice_keeps_the_first_end(own_home: Path) -> None:
    study = open_study(own_home)
    number = complete(study, 0.5)
    study.tell(TrialResult.without_result(number, reason="late"))
    assert [record.state for record in study.records()] == ["complete"]


def test_the_same_name_resumes_with_the_same_trials(own_home: Path) -> None:
    complete(open_study(own_home), 0.5)
    again = open_study(own_home)
    assert again.finished() == 1
    assert ask(again).number == 1


def test_trials_of_a_dead_process_are_given_back_in_order(own_home: Path) -> None:
    first = open_study(own_home)
    complete(first, 0.5)
    left = [ask(first), ask(first)]
    first.report(left[0].number, epoch(1, 0.3))
    again = open_study(own_home)
    waiting = again.unfinished()
    assert [asked.number for asked in waiting] == [1, 2]
    assert [asked.hyperparameters for asked in waiting] == [asked.hyperparameters for asked in left]
    assert [asked.resumed for asked in waiting] == [True, False], "of the second nothing was trained"
    assert again.reported_epochs(1) == 1


def test_sampling_resumes_after_a_restart_as_if_there_had_been_none(own_home: Path, tmp_path: Path) -> None:
    def run(home: Path, restarts: bool) -> list[float]:
        study = open_study(home)
        rates = []
        for index in range(len(PORTFOLIO) + 14):
            if restarts and index % 3 == 0:
                study = open_study(home)
            asked = ask(study)
            rates.append(asked.hyperparameters.learning_rate)
            value = 1 - abs(asked.hyperparameters.learning_rate - 2e-3)
            study.tell(TrialResult(asked.number, "complete", value, 1, 1, 1.0, "", None, None))
        return rates

    whole = run(tmp_path / "whole", restarts=False)
    assert run(tmp_path / "restarted", restarts=True) == whole
    assert len(set(whole)) > 10, "a sampler that draws the same numbers again would repeat itself"


def test_a_grid_ends_the_study_when_all_of_it_was_tried(own_home: Path) -> None:
    grid = {"freeze_depth": [4, 5], "learning_rate": [1e-3]}
    sections = {"study": {"sampler": "GridSampler", "sampler_options": {"search_space": grid}}}
    study = open_study(own_home, **sections)
    depths = set()
    queue = Queue(study, trials=10, batch=4, deadline=None)
    while together := queue.next():
        (asked,) = together
        if not asked.hyperparameters.is_probe:
            depths.add(asked.hyperparameters.freeze_depth)
        study.tell(TrialResult(asked.number, "complete", 0.5, 1, 1, 1.0, "", None, None))
    assert depths == {4, 5}, "and nothing besides"
    assert study.finished() == 3, "with the probe"
    assert open_study(own_home, **sections).exhausted, "also after a restart"


def test_a_grid_that_is_resumed_in_its_last_point_ends_with_that(own_home: Path) -> None:
    grid = {"freeze_depth": [3, 4, 5], "learning_rate": [1e-3]}
    sections = {"study": {"sampler": "GridSampler", "sampler_options": {"search_space": grid}}}

    def run(study: Study, most: int) -> Iterator[Asked]:
        queue = Queue(study, trials=10, batch=4, deadline=None)
        while most and (together := queue.next()):
            (asked,) = together
            yield asked
            study.tell(TrialResult(asked.number, "complete", 0.5, 1, 1, 1.0, "", None, None))
            most -= 1

    first = open_study(own_home, **sections)
    list(run(first, 3))
    (last,) = Queue(first, trials=10, batch=4, deadline=None).next()
    assert not first.exhausted, "a control: it is killed in this trial"
    again = open_study(own_home, **sections)
    assert [asked.number for asked in run(again, 10)] == [last.number]
    assert sorted(record.hyperparameters.freeze_depth for record in again.records())[-3:] == [4, 5, 5], "5 is the probe"


@pytest.mark.parametrize("dies_at", range(1, 8))
def test_a_study_that_is_killed_while_its_first_trials_are_enqueued_has_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    calls, enqueue = 0, optuna.Study.enqueue_trial

    def dying(study: optuna.Study, *args: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == dies_at:
            raise KeyboardInterrupt
        enqueue(study, *args, **options)

    def opened(name: str) -> Study:
        return open_study(tmp_path / name, study={"enqueue": [{"learning_rate": 3e-3}]})

    def first_trials(name: str) -> list[Hyperparameters]:
        study = opened(name)
        return [ask(study).hyperparameters for _ in range(9)]

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "enqueue_trial", dying)
        with pytest.raises(KeyboardInterrupt):
            opened("killed")
    assert first_trials("killed") == first_trials("whole")


@pytest.mark.parametrize(("train", "together"), [({}, 11), ({"ema": 0.9}, 1), ({"exact": True}, 1)])
def test_heads_of_any_policy_are_trained_together_unless_each_must_be_alone(
    own_home: Path, train: dict[str, Any], together: int
) -> None:
    space = {"freeze_depth": [5, 5], "policy": ["static", "gradual", "lp_ft"], "layer_decay": [0.5, 1]}
    sections = {"space": space, "train": train, "study": {"sampler": "RandomSampler", "trials": 12, "batch": 12}}
    study = open_study(own_home, **sections)
    queue = Queue.of(study, None)
    assert [each.hyperparameters.policy for each in queue.next()] == ["probe"]
    asked = queue.next()
    assert len(asked) == together
    assert together == 1 or len({each.hyperparameters.policy for each in asked}) > 1


def test_heads_of_another_augmentation_are_not_trained_together(own_home: Path) -> None:
    space = {"freeze_depth": [5, 5], "augmentation": ["none", "light"]}
    study = begun_study(own_home, space=space, study={"sampler": "RandomSampler"})
    queue = Queue(study, trials=16, batch=16, deadline=None)
    groups = []
    while together := queue.next():
        groups.append([asked.hyperparameters.augmentation for asked in together])
        for asked in together:
            study.tell(TrialResult(asked.number, "complete", 0.5, 1, 1, 1.0, "", None, None))
    assert {len(set(group)) for group in groups} == {1}
    assert {group[0] for group in groups} == {"none", "light"}
    assert max(map(len, groups)) > 1, "those of one are"


def test_another_seed_samples_other_points(own_home: Path) -> None:
    rates, starts = [], starts_of(depth=5)
    for seed in (0, 1):
        study = begun_study(own_home, name=f"seed-{seed}", study={"seed": seed})
        rates.append([ask(study).hyperparameters.learning_rate for _ in range(len(starts) + 1)])
    assert rates[0][:-1] == rates[1][:-1] == pytest.approx([rate for _, rate in starts]), "what is first is no chance"
    assert rates[0][-1] != rates[1][-1]


def test_a_study_made_with_other_settings_is_refused_by_naming_them(own_home: Path) -> None:
    open_study(own_home, train={"batch_size": 16})
    with pytest.raises(StudyError, match=r"made with train\.batch_size=16, so its trials cannot be compared"):
        open_study(own_home, fingerprint="g", train={"batch_size": 32})


def test_a_study_that_another_process_holds_is_refused(own_home: Path) -> None:
    study = open_study(own_home)
    with study.held():
        other = open_study(own_home)
        with pytest.raises(StudyError, match="being run by another process"), other.held():
            pass
    with open_study(own_home).held():
        pass


def test_studies_are_listed_and_the_latest_is_the_one_that_ran_last(own_home: Path) -> None:
    assert study_names(own_home) == []
    with pytest.raises(StudyError, match=r"No Thawline home here: .*home does not exist"):
        latest_study(own_home)
    with pytest.raises(StudyError, match=r"No Thawline home here: .*home does not exist"):
        load_records(own_home, "ant")
    assert not own_home.exists()
    own_home.mkdir()
    with pytest.raises(StudyError, match="no study in"):
        latest_study(own_home)
    complete(open_study(own_home, name="zebra"), 0.5)
    complete(open_study(own_home, name="ant"), 0.5)
    assert study_names(own_home) == ["zebra", "ant"]
    assert latest_study(own_home) == "ant"
    metric, records = load_records(own_home, "ant")
    assert (metric, len(records)) == ("accuracy", 1)
    with pytest.raises(StudyError, match=r"no study 'none'.*Known: zebra, ant"):
        load_records(own_home, "none")


def test_a_sampler_or_pruner_that_optuna_lacks_is_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match=r"study\.sampler: Optuna has no 'Nope'\. It has .*TPESampler"):
        check_sampling(config(study={"sampler": "Nope"}).study)
    with pytest.raises(ConfigError, match=r"study\.pruner: Optuna has no 'BasePruner'"):
        check_sampling(config(study={"pruner": "BasePruner"}).study)
    with pytest.raises(ConfigError, match=r"study\.sampler_options: TPESampler does not take"):
        check_sampling(config(study={"sampler": "TPESampler", "sampler_options": {"wrong": 1}}).study)
    check_sampling(config(study={"sampler": "TPESampler", "pruner": "NopPruner"}).study)


def test_importances_name_what_made_the_difference_and_say_nothing_of_too_few_trials(own_home: Path) -> None:
    study = open_study(own_home, study={"sampler": "RandomSampler"})
    assert study.importances() == {}
    for _ in range(12):
        asked = ask(study)
        value = 0.5 + 0.09 * asked.hyperparameters.freeze_depth  # the rate has no say
        study.report(asked.number, epoch(4, value))
        study.tell(TrialResult(asked.number, "complete", value, 4, 4, 1.0, "", "run", "file"))
    found = study.importances()
    assert next(iter(found)) == "freeze_depth"
    assert found["freeze_depth"].share > 0.8
    assert abs(sum(importance.share for importance in found.values()) - 1) < 1e-6
    assert load_importances(own_home, "pets") == found


def test_an_importance_is_less_sure_where_values_are_mostly_chance(own_home: Path) -> None:
    chance = np.random.default_rng(0).random(12)
    widths = []
    for name, noise in (("clear", 0.0), ("chance", 1.0)):
        study = open_study(own_home, name, study={"sampler": "RandomSampler"})
        for number in range(12):
            asked = ask(study)
            value = float((1 - noise) * (0.1 + 0.09 * asked.hyperparameters.freeze_depth) + noise * chance[number])
            study.report(asked.number, epoch(4, value))
            study.tell(TrialResult(asked.number, "complete", value, 4, 4, 1.0, "", "run", "file"))
        importance = study.importances()["freeze_depth"]
        assert 0 <= importance.low <= importance.share <= importance.high <= 1
        widths.append(importance.high - importance.low)
    clear, by_chance = widths
    assert by_chance > 2 * clear
