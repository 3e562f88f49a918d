"""The plan stores what pays, keeps to the budget, and says it in two sentences."""

from typing import Any

import pytest

from thawline.activations import Plan, Profile, make_plan
from thawline.activations.plan import Compilation
from thawline.config import SearchConfig, TrainConfig
from thawline.exceptions import ConfigError


def make_profile(**changes: Any) -> Profile:
    """Three groups and a head. Behind the first lie as many bytes as time would read them; the head is nearly free."""
    fields: dict[str, Any] = {
        "precision": "fp32",
        "channels_last": True,
        "groups": ("stem", "body", "neck"),
        "forward": (0.010, 0.010, 0.010, 0.00001),
        "training": (0.030, 0.030, 0.030, 0.00003),
        "parameters": (1_000, 1_000, 1_000, 1_000),
        "numbers": (200_000, 100_000, 500),
        "computed_as": ("float32",) * 3,
        "largest": (10.0, 10.0, 10.0),
        "input_seconds": 0.001,
        "step_seconds": 1e-9,
        "read_bytes_per_second": 2e9,
        "write_bytes_per_second": 1e9,
        "start_seconds": 0.5,
    }
    return Profile(**fields | changes)


def plan(profile: Profile | None = None, **changes: Any) -> Plan:
    options: dict[str, Any] = {
        "train_rows": 1_000,
        "validation_rows": 200,
        "views": 1,
        "trials": 20,
        "depths": (0, 3),
        "budget": 10**12,
        "input_numbers": 40_000,
    }
    config = changes.pop("config", TrainConfig(epochs=10))
    options |= changes
    low, high = options["depths"]
    evenly = dict.fromkeys(range(low, high + 1), 1 / (high - low + 1))
    return make_plan(profile or make_profile(), config, **options | {"depths": evenly})


def test_with_room_for_all_every_boundary_of_the_space_is_stored() -> None:
    assert plan().boundaries == (1, 2, 3)
    assert plan(depths=(2, 3)).boundaries == (2, 3)
    assert plan(depths=(3, 3)).boundaries == (3,)
    assert plan(depths=(1, 2)).boundaries == (1, 2, 3), "and the deepest"


@pytest.mark.parametrize("exact", [False, True])
def test_what_the_linear_probe_is_fitted_to_is_stored_though_no_trial_freezes_as_much(exact: bool) -> None:
    config = TrainConfig(epochs=10, exact=exact)
    probed = plan(depths=(0, 0), config=config)
    assert probed.boundaries == (3,)
    assert plan(depths=(0, 0), config=config, budget=probed.bytes).boundaries == (3,)
    assert plan(depths=(0, 0), config=config, budget=probed.bytes - 1).boundaries == (), "unless there is no room"


def test_room_for_the_linear_probe_is_not_given_to_what_saves_more_time() -> None:
    second = plan(depths=(2, 2)).bytes_of(2)
    assert plan(depths=(2, 2), budget=second).boundaries == (3,)
    assert plan(depths=(2, 2), budget=second + plan().bytes_of(3)).boundaries == (2, 3)


def test_a_small_budget_goes_to_what_saves_the_most_time_for_its_bytes() -> None:
    tight = plan(budget=10_000_000)
    assert tight.boundaries == (3,)
    assert tight.bytes <= 10_000_000
    assert plan(budget=300_000_000).boundaries == (2, 3)
    assert plan(budget=1_000).boundaries == ()


def test_what_takes_longer_to_read_than_to_compute_is_not_stored() -> None:
    slow_disk = make_profile(read_bytes_per_second=5e6)
    assert plan(slow_disk).boundaries == (3,)


def test_what_a_gpu_keeps_is_read_at_its_speed_and_what_is_larger_from_the_host() -> None:
    slow = {"read_bytes_per_second": 1e6}
    host = plan(make_profile(**slow))
    kept = plan(make_profile(**slow, resident_bytes=10**12, resident_bytes_per_second=1e12))
    assert kept.boundaries == (1, 2, 3)
    assert kept.epoch_seconds()[2] < kept.without_store().epoch_seconds()[2]
    assert host.boundaries == (3,), "a control: reading takes longer than computing"
    few = kept.bytes_of(3)
    assert plan(make_profile(**slow, resident_bytes=few, resident_bytes_per_second=1e12)).boundaries == (3,)


def test_for_one_epoch_of_one_trial_nothing_is_stored_but_what_the_linear_probe_is_fitted_to() -> None:
    slow_disk, once = make_profile(write_bytes_per_second=5e6), TrainConfig(epochs=1)
    assert plan(slow_disk, trials=1, depths=(2, 2), config=once).boundaries == (3,)
    assert plan(slow_disk, trials=20, depths=(2, 2), config=once).boundaries == (2, 3), "a control: of more it pays"


def test_a_trial_begins_after_the_last_boundary_that_it_freezes() -> None:
    stored = plan(budget=10_000_000)
    assert [stored.boundary_for(depth) for depth in range(4)] == [0, 0, 0, 3]


def test_what_exact_results_begin_at_does_not_depend_on_what_was_measured() -> None:
    exact = TrainConfig(epochs=10, exact=True)
    busy = make_profile(forward=(1e-9,) * 4, training=(1e-9,) * 4, read_bytes_per_second=1.0)
    assert plan(busy).boundaries == (3,), "what the probe is fitted to"
    assert plan(busy, config=exact).boundaries == plan(config=exact).boundaries == (2, 3)
    assert plan(config=exact, input_numbers=70_000).boundaries == (1, 2, 3), "the first is not too large for it"
    assert plan(config=exact, budget=10_000_000).boundaries == (3,)
    assert plan(config=exact, budget=0).boundaries == ()
    assert plan(config=exact, depths=(3, 3)).boundaries == (3,)


def test_single_precision_is_kept_where_results_must_be_exact_or_numbers_are_large() -> None:
    assert set(plan().stored_as.values()) == {"float16"}
    assert set(plan(config=TrainConfig(exact=True)).stored_as.values()) == {"float32"}
    large = plan(make_profile(largest=(10.0, 50_000.0, 10.0)))
    assert large.stored_as == {1: "float16", 2: "float32", 3: "float16"}
    assert set(plan(make_profile(computed_as=("bfloat16",) * 3)).stored_as.values()) == {"bfloat16"}


def test_views_multiply_the_training_images_alone() -> None:
    one, four = plan(depths=(3, 3)), plan(depths=(3, 3), views=4)
    assert (one.bytes, four.bytes) == (500 * 2 * 1_200, 500 * 2 * 4_200)
    assert four.fill_seconds() > 3 * one.fill_seconds()


def test_with_a_new_view_each_epoch_only_validation_is_stored() -> None:
    fresh = plan(depths=(3, 3), views=None)
    assert fresh.bytes == 500 * 2 * 200
    assert fresh.trial_seconds([3] * 10) > 10 * 1_000 * 0.030, "training images go through the frozen layers each time"


def test_epochs_of_a_depth_count_by_their_share() -> None:
    options: dict[str, Any] = {"train_rows": 1_000, "validation_rows": 200, "views": 1, "trials": 20}
    options |= {"budget": 10**12, "input_numbers": 40_000}
    config = TrainConfig(epochs=10)
    # As lp_ft at freeze depth 0: half of all epochs train only the head, half everything.
    halves = make_plan(make_profile(), config, depths={0: 0.5, 3: 0.5}, **options)
    assert halves.boundaries == (3,), "nothing begins after the others"
    trial = halves.trial_seconds([3] * 5 + [0] * 5)
    assert halves.search_seconds() == pytest.approx(halves.fill_seconds() + 20 * trial)
    assert trial > 5 * halves.trial_seconds([3]), "the epochs that train everything are the expensive ones"


def test_a_search_that_ends_with_the_probe_stores_only_what_the_probe_is_fitted_to() -> None:
    whole = plan()
    probes = whole.for_probes()
    assert len(whole.boundaries) > 1
    assert probes.boundaries == (3,)
    assert probes.bytes == whole.bytes_of(3)
    assert probes.search_seconds() < 0.2 * whole.search_seconds()
    assert plan(budget=0).for_probes().boundaries == ()


def test_the_seconds_add_up() -> None:
    stored = plan(depths=(3, 3))
    epoch = 1_000 * 0.00003 + 200 * 0.00001 + 1_200 * 1_000 / 2e9 + 32 * 1_000 * 1e-9 + 12_000 / 1e9
    assert stored.trial_seconds([3] * 10) == pytest.approx(0.5 + 10 * epoch, rel=0.01)
    assert stored.fill_seconds() == pytest.approx(1_200 * 0.031, rel=0.01)
    assert stored.search_seconds() == pytest.approx(stored.fill_seconds() + 20 * stored.trial_seconds([3] * 10))
    without = 0.5 + 10 * (1_000 * 0.03103 + 200 * 0.03101)
    assert stored.seconds_without_store() == pytest.approx(20 * without, rel=0.05)


def test_it_is_told_in_two_lines() -> None:
    lines = plan(budget=300_000_000).lines()
    assert lines == [
        "plan: stores activations after body, neck: 0.2 GB; trains in fp32, channels last",
        "plan: search about 2.9 h instead of 3.7 h, if no trial is stopped early",
    ]
    assert plan(budget=0).lines()[0] == "plan: stores nothing, trains in fp32, channels last"


def test_the_plan_knows_how_many_gpus_a_trial_has_and_that_heads_have_one() -> None:
    one, two = plan(budget=0), plan(budget=0, devices=2)
    for depth, (alone, shared) in enumerate(zip(one.epoch_seconds(), two.epoch_seconds(), strict=True)):
        assert shared / alone == pytest.approx(1.0 if depth == 3 else 0.5, rel=0.01)
    assert two.trials_within(3600.0) > one.trials_within(3600.0)
    assert two.lines()[0] == "plan: stores nothing, trains in fp32, channels last, each trial on 2 GPUs"
    assert "GPU" not in one.lines()[0]


def test_where_time_ends_the_search_the_trials_that_fit_are_counted() -> None:
    made = plan(budget=300_000_000)
    hour = made.for_time(3600.0)
    assert hour.search_seconds() <= 3600.0 < hour.model_copy(update={"trials": hour.trials + 1}).search_seconds()
    without = made.without_store().trials_within(3600.0)
    assert 1 < without < hour.trials
    assert hour.lines()[1] == (
        f"plan: about {hour.trials} trials in 60 min instead of {without}, if no trial is stopped early"
    )
    assert made.for_time(0.0).trials == 1, "what has begun is trained"
    assert made.for_time(0.0).lines()[1].startswith("plan: about 1 trial in 1 s")


def test_it_is_kept_as_json() -> None:
    made = plan(budget=300_000_000)
    assert Plan.model_validate_json(made.model_dump_json()) == made


def test_a_budget_is_a_size() -> None:
    def budget(text: str) -> int | None:
        sections = {"data": {"path": "x"}, "activations": {"budget": text}}
        return SearchConfig.build(sections).activations.budget_bytes

    assert (budget("500MB"), budget("1.5TB")) == (500_000_000, 1_500_000_000_000)
    with pytest.raises(ConfigError, match=r"activations.budget: must be a size such as 500MB"):
        budget("20")


def test_exact_in_half_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="exact needs precision fp32 or auto, but got precision=bf16"):
        SearchConfig.build({"data": {"path": "x"}, "train": {"exact": True, "precision": "bf16"}})


def test_a_trial_is_compiled_where_that_saves_more_than_it_takes() -> None:
    # An epoch at depth 0 trains for 90 s, at depth 2 for 30 s; a quarter of the network compiles in 50 s.
    measured = make_profile(compilation=Compilation(seconds=200.0, gain=2.0))
    ten = plan(measured, config=TrainConfig(epochs=10))
    assert [ten.compiles([depth] * 10) for depth in range(4)] == [True, True, True, False]
    eager = plan(config=TrainConfig(epochs=10))
    assert eager.trial_seconds([0] * 10) - ten.trial_seconds([0] * 10) == pytest.approx(450 - 200, rel=0.01)
    assert eager.epoch_seconds()[0] - ten.epoch_seconds()[0] == pytest.approx(25, rel=0.01)
    assert ten.search_seconds() < eager.search_seconds()
    assert "compiled at freeze depth 0, 1, 2" in ten.lines()[0]

    three = plan(measured, config=TrainConfig(epochs=3))
    assert [three.compiles([depth] * 3) for depth in range(4)] == [False, False, False, False]
    assert three.trial_seconds([0] * 3) == plan(config=TrainConfig(epochs=3)).trial_seconds([0] * 3)
    assert "compiled" not in three.lines()[0]
    assert ten.why_not_compiled() == ""
    assert three.why_not_compiled() == "it takes about 3 min, and training is then 2.0 times as fast"
    assert "started without train.compile" in eager.why_not_compiled()
    failed = plan(make_profile(not_compiled="no compiler is installed"))
    assert failed.why_not_compiled() == "no compiler is installed"


def test_a_study_that_resumes_without_compiling_is_planned_without() -> None:
    measured = make_profile(compilation=Compilation(seconds=200.0, gain=2.0))
    config = TrainConfig(epochs=10)
    compiled, resumed = plan(measured, config=config), plan(measured, config=config).without_compilation()
    assert compiled.compiles([0] * 10)
    assert not resumed.compiles([0] * 10)
    assert "compiled" not in resumed.lines()[0]
    assert resumed.epoch_seconds() == plan(config=config).epoch_seconds()


def test_a_trial_that_thaws_on_the_way_is_compiled_again_for_each_depth() -> None:
    measured = make_profile(compilation=Compilation(seconds=200.0, gain=2.0))
    ten = plan(measured, config=TrainConfig(epochs=10))
    assert ten.compiles([3, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    assert not ten.compiles([3, 2, 2, 2, 1, 1, 1, 0, 0, 0]), "450 s to compile, 270 s saved"
