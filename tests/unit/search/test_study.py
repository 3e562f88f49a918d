"""The study samples what the space opens, prunes what is bad, and goes on where it stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import TINY
from torchvision.models import get_model

from thawline.config import SearchConfig
from thawline.exceptions import ConfigError, StudyError
from thawline.search import check_backbones
from thawline.search.conduct import Queue
from thawline.search.space import check_space, default_points, depth_shares, with_backbones
from thawline.search.study import (
    Asked,
    Study,
    check_sampling,
    latest_study,
    load_importances,
    load_records,
    study_names,
)
from thawline.search.trial import TrialResult
from thawline.training import EpochResult, Hyperparameters

DEPTHS = {"resnet18": 5, "vgg11": 6}


def config(**sections: Any) -> SearchConfig:
    return SearchConfig.build({"data": {"path": "photos"}, "train": {"epochs": 4}}, sections)


def open_study(home: Path, name: str = "pets", fingerprint: str = "f", **sections: Any) -> Study:
    return Study.open(home, name, config(**sections), DEPTHS, fingerprint)


def epoch(number: int, value: float) -> EpochResult:
    return EpochResult(number, {"val/accuracy": value, "val/loss": 1 - value, "train/loss": 1 - value}, 0)


def ask(study: Study) -> Asked:
    return study.draw(1, trials=10_000)[0]


def complete(study: Study, value: float) -> int:
    asked = ask(study)
    for number in range(1, 5):
        study.report(asked.number, epoch(number, value * number / 4))
    study.tell(TrialResult(asked.number, "complete", value, 4, 4, 1.0, "", "run", "file"))
    return asked.number


def test_the_first_trials_are_those_tried_by_hand(own_home: Path) -> None:
    def first(name: str, **sections: Any) -> list[tuple[int, float]]:
        study = open_study(own_home, name, study={"sampler": "RandomSampler"}, **sections)
        drawn = [ask(study).hyperparameters for _ in range(2)]
        return [(each.freeze_depth, each.learning_rate) for each in drawn]

    assert first("whole") == [(5, 1e-3), (0, 1e-4)], "the head alone, and everything"
    part = first("part", space={"freeze_depth": [1, 4], "learning_rate": [1e-3, 1e-2]})
    assert part == [(4, 1e-3), (1, 1e-3)], "or what comes next to it in the space"
    (depth, rate), other = first("head", space={"freeze_depth": [5, 5]})
    assert (depth, rate) == (5, 1e-3)
    assert other != (5, 1e-4), "sampled"


def test_everything_of_an_encoder_of_texts_is_tried_first_at_a_rate_of_its_own(tmp_path: Path) -> None:
    name = f"hf:{TINY['bert'](tmp_path / 'bert')}"
    points = default_points(config(backbone={"name": name}), {name: 3})
    assert points == [
        {"freeze_depth": 3, "learning_rate": 1e-3},
        {"freeze_depth": 0, "learning_rate": 5e-5},
    ]


def test_of_several_backbones_each_head_is_tried_first_and_all_of_the_best() -> None:
    several = config(space={"backbone": ["resnet18", "vgg11"]})
    points = default_points(with_backbones(several, ["vgg11", "resnet18"]), DEPTHS)
    assert points == [
        {"backbone": "vgg11", "freeze_depth:vgg11": 6, "learning_rate": 1e-3},
        {"backbone": "resnet18", "freeze_depth:resnet18": 5, "learning_rate": 1e-3},
        {"backbone": "vgg11", "freeze_depth:vgg11": 0, "learning_rate": 1e-4},
    ]


def test_what_the_space_does_not_open_keeps_the_configuration_s_value(own_home: Path) -> None:
    study = open_study(own_home, train={"optimizer": "sgd", "weight_decay": 0.02})
    hyperparameters = [ask(study).hyperparameters for _ in range(4)]
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
    study = open_study(own_home, space=space, study={"sampler": "RandomSampler"})
    sampled = [ask(study).hyperparameters for _ in range(20)]
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


def test_the_first_trial_thaws_as_the_configuration_says_where_the_space_has_it(own_home: Path) -> None:
    train = {"policy": "lp_ft", "layer_decay": 0.9, "batch_norm": "train_all"}
    space = {"policy": ["gradual", "lp_ft"], "layer_decay": [0.5, 0.8], "batch_norm": ["frozen_eval", "train_affine"]}
    first = ask(open_study(own_home, train=train, space=space)).hyperparameters
    assert (first.policy, first.layer_decay, first.batch_norm) == ("lp_ft", 0.8, "frozen_eval")
    fixed = ask(open_study(own_home, "fixed", train=train)).hyperparameters
    assert (fixed.policy, fixed.layer_decay, fixed.batch_norm) == ("lp_ft", 0.9, "train_all")


def test_a_policy_to_try_first_must_be_one_of_the_space(own_home: Path) -> None:
    space = {"policy": ["static", "lp_ft"]}
    study = open_study(own_home, space=space, study={"enqueue": [{"policy": "lp_ft"}]})
    assert ask(study).hyperparameters.policy == "lp_ft"
    with pytest.raises(ConfigError, match="policy must be one of static, lp_ft, but got 'gradual'"):
        open_study(own_home, "other", space=space, study={"enqueue": [{"policy": "gradual"}]})
    with pytest.raises(ConfigError, match="the space does not open 'layer_decay'"):
        open_study(own_home, "third", space=space, study={"enqueue": [{"layer_decay": 0.5}]})


def test_random_weights_have_no_batch_norm_statistics_to_keep_so_all_is_trained(own_home: Path) -> None:
    def first(name: str, weights: Any) -> Any:
        return ask(open_study(own_home, name, backbone={"weights": weights})).hyperparameters.batch_norm

    assert [first("random", "none"), first("pretrained", "default")] == ["train_all", "frozen_eval"]
    space = {"batch_norm": ["frozen_eval", "train_all"]}
    check_space(config(space=space), DEPTHS)
    with pytest.raises(ConfigError, match=r"nothing to choose with backbone\.weights=none"):
        check_space(config(space=space, backbone={"weights": "none"}), DEPTHS)


@pytest.mark.parametrize("searched", [{"policy": ["static", "gradual"]}, {"layer_decay": [0.5, 1]}])
def test_there_is_nothing_to_thaw_where_every_trial_trains_the_head_alone(searched: dict[str, Any]) -> None:
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
    study = open_study(own_home)
    for value in (0.5, 0.6, 0.7, 0.8):
        complete(study, value)
    asked = []
    for _ in range(6):
        trial = ask(study)
        study.report(trial.number, epoch(1, 0.1))
        study.tell(TrialResult(trial.number, "pruned", 0.1, 1, 1, 1.0, "pruned after epoch 1", None, None))
        asked.append((trial.hyperparameters.freeze_depth, round(trial.hyperparameters.learning_rate, 6)))
    assert len(set(asked)) == len(asked)


def test_each_backbone_has_a_depth_range_of_its_own(own_home: Path) -> None:
    study = open_study(own_home, space={"backbone": ["resnet18", "vgg11"]}, study={"sampler": "RandomSampler"})
    sampled = [ask(study).hyperparameters for _ in range(40)]
    deepest = {name: max(h.freeze_depth for h in sampled if h.backbone == name) for name in DEPTHS}
    assert deepest == DEPTHS


def test_a_bad_trial_is_pruned_before_its_last_epoch_and_a_good_one_is_not(own_home: Path) -> None:
    study = open_study(own_home)
    for value in (0.8, 0.82, 0.84, 0.86) * 2:
        complete(study, value)
    bad, good = ask(study), ask(study)
    assert [study.report(bad.number, epoch(number, 0.1)) for number in (1, 2)] == [False, True]
    assert not any(study.report(good.number, epoch(number, 0.9)) for number in (1, 2, 3, 4))


def test_no_trial_is_pruned_before_eight_have_run_to_their_end(own_home: Path) -> None:
    study = open_study(own_home)
    for value in (0.8, 0.82, 0.84, 0.86, 0.8, 0.82, 0.84):
        complete(study, value)
    bad = ask(study)
    assert not any(study.report(bad.number, epoch(number, 0.1)) for number in (1, 2, 3))


def test_a_trial_is_not_pruned_while_something_is_still_to_be_thawed(own_home: Path) -> None:
    study = open_study(own_home, space={"freeze_depth": [2, 2]})
    for _ in range(8):
        complete(study, 0.9)

    def reported(trial: int, number: int, depth: int) -> bool:
        result = epoch(number, 0.1)
        return study.report(trial, EpochResult(number, {**result.metrics, "train/freeze_depth": depth}, 0))

    gradual, static = ask(study).number, ask(study).number
    assert [reported(gradual, number, depth) for number, depth in ((1, 5), (2, 4), (3, 3))] == [False, False, False]
    assert [reported(static, number, 2) for number in (1, 2)] == [False, True]


def test_a_trial_is_never_pruned_after_its_last_epoch(own_home: Path) -> None:
    study = open_study(own_home)
    for value in (0.8, 0.82, 0.84, 0.86) * 2:
        complete(study, value)
    assert not study.report(ask(study).number, epoch(4, 0.0))


def test_a_study_of_losses_prunes_large_ones_and_ranks_small_ones_first(own_home: Path) -> None:
    study = open_study(own_home, study={"metric": "loss"})
    for value in (0.4, 0.2, 0.3, 0.5) * 2:
        asked = ask(study)
        for number in (1, 2, 3, 4):
            study.report(asked.number, EpochResult(number, {"val/loss": value, "train/loss": value}, 0))
        study.tell(TrialResult(asked.number, "complete", value, 4, 4, 1.0, "", None, None))
    assert [record.value for record in study.records()] == [0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5]
    asked = ask(study)
    verdicts = [study.report(asked.number, EpochResult(n, {"val/loss": 9.0, "train/loss": 9.0}, 0)) for n in (1, 2)]
    assert verdicts == [False, True]


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


def test_the_same_name_goes_on_with_the_same_trials(own_home: Path) -> None:
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


def test_sampling_goes_on_after_a_restart_as_if_there_had_been_none(own_home: Path, tmp_path: Path) -> None:
    def run(home: Path, restarts: bool) -> list[float]:
        study = open_study(home)
        rates = []
        for index in range(14):
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
    queue = Queue(study, trials=10, batch=4, depths=DEPTHS, deadline=None)
    while together := queue.next():
        (asked,) = together
        depths.add(asked.hyperparameters.freeze_depth)
        study.tell(TrialResult(asked.number, "complete", 0.5, 1, 1, 1.0, "", None, None))
    assert depths == {4, 5}, "and nothing besides"
    assert study.finished() == 2
    assert open_study(own_home, **sections).exhausted, "also after a restart"


@pytest.mark.parametrize(("train", "together"), [({}, 4), ({"ema": 0.9}, 1), ({"exact": True}, 1)])
def test_heads_of_any_policy_are_trained_together_unless_each_must_be_alone(
    own_home: Path, train: dict[str, Any], together: int
) -> None:
    space = {"freeze_depth": [5, 5], "policy": ["static", "gradual", "lp_ft"], "layer_decay": [0.5, 1]}
    sections = {"space": space, "train": train, "study": {"sampler": "RandomSampler"}}
    study = open_study(own_home, **sections)
    queue = Queue.of(study, config(**sections), DEPTHS, None)
    asked = queue.next()
    assert len(asked) == together
    assert together == 1 or len({each.hyperparameters.policy for each in asked}) > 1


def test_heads_of_another_augmentation_are_not_trained_together(own_home: Path) -> None:
    space = {"freeze_depth": [5, 5], "augmentation": ["none", "light"]}
    study = open_study(own_home, space=space, study={"sampler": "RandomSampler"})
    queue = Queue(study, trials=12, batch=12, depths=DEPTHS, deadline=None)
    groups = []
    while together := queue.next():
        groups.append([asked.hyperparameters.augmentation for asked in together])
        for asked in together:
            study.tell(TrialResult(asked.number, "complete", 0.5, 1, 1, 1.0, "", None, None))
    assert {len(set(group)) for group in groups} == {1}
    assert {group[0] for group in groups} == {"none", "light"}
    assert max(map(len, groups)) > 1, "those of one are"


def test_another_seed_samples_other_points(own_home: Path) -> None:
    rates = []
    for seed in (0, 1):
        study = open_study(own_home, name=f"seed-{seed}", study={"seed": seed})
        rates.append([ask(study).hyperparameters.learning_rate for _ in range(3)])
    assert rates[0][:2] == rates[1][:2] == [1e-3, 1e-4], "what is tried first is no chance"
    assert rates[0][2] != rates[1][2]


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
    shares = study.importances()
    assert next(iter(shares)) == "freeze_depth"
    assert shares["freeze_depth"] > 0.8
    assert abs(sum(shares.values()) - 1) < 1e-6
    assert load_importances(own_home, "pets") == shares
