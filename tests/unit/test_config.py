"""The configuration is one value, and its mistakes are all named at once."""

import json
import pickle
import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from thawline.config import ResolvedConfig, SearchConfig, flatten, load_recipe, nested, parse_assignments
from thawline.config.fields import FIELDS
from thawline.config.mistakes import _MEANT
from thawline.exceptions import ConfigError
from thawline.recipes import copy, find_recipe, recipe_path, shipped_recipes

DATA = {"data": {"path": "photos"}}


def test_every_mistake_is_reported_at_once_with_the_path_of_its_key() -> None:
    with pytest.raises(ConfigError) as caught:
        SearchConfig.build(
            DATA, {"train": {"epoch": 3, "batch_size": 0}, "space": {"learning_rate": [1, 0.1]}, "studdy": {}}
        )
    message = str(caught.value)
    assert "train.epoch: unknown key. Did you mean 'epochs'?" in message
    assert "train.batch_size" in message
    assert "got 0" in message
    assert "0 < low <= high must hold, but got [1.0, 0.1]" in message
    assert "studdy: unknown key. Did you mean 'study'?" in message


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("train.lr", 0.1, "Did you mean 'space.learning_rate', a range such as [0.1, 0.1]?"),
        ("train.learning_rate", 0.1, "Did you mean 'space.learning_rate', a range such as [0.1, 0.1]?"),
        ("lr", 1e-3, "Did you mean 'space.learning_rate', a range such as [0.001, 0.001]?"),
        ("train.bs", 8, "Did you mean 'train.batch_size'?"),
        ("study.wd", 0.1, "Did you mean 'train.weight_decay'?"),
        ("epochs", 3, "Did you mean 'train.epochs'?"),
        ("train.image-size", 64, "Did you mean 'backbone.image_size'?"),
        ("optimizer", "sgd", "Did you mean 'train.optimizer' or 'space.optimizer'?"),
        ("training.epochs", 3, "Did you mean 'train'?"),
        ("train.zzz", 3, "Known keys: epochs, batch_size"),
    ],
)
def test_a_key_by_the_name_of_another_library_or_in_another_section_is_answered_with_the_setting_that_is_meant(
    key: str, value: object, meant: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"unknown key. {meant}")):
        SearchConfig.build(DATA, nested({key: value}))


def test_every_name_of_another_library_means_one_setting_that_there_is() -> None:
    names = [name for called in _MEANT.values() for name in called]
    assert _MEANT.keys() <= FIELDS.keys()
    assert len(names) == len(set(names))
    assert not set(names) & {key.rpartition(".")[2] for key in FIELDS}, "the name itself would be found first"


@pytest.mark.parametrize("key", ["space.freeze_depth", "space.learning_rate"])
def test_one_number_where_a_range_belongs_is_answered_with_the_range(key: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{key}: must be a range such as [3, 3], but got 3")):
        SearchConfig.build(DATA, nested({key: 3}))


def test_later_layers_win_and_leave_other_keys_alone() -> None:
    config = SearchConfig.build(
        DATA, {"train": {"epochs": 3, "batch_size": 8}}, {"train": {"epochs": 5}}, parse_assignments(["study.seed=7"])
    )
    assert (config.train.epochs, config.train.batch_size, config.study.seed) == (5, 8, 7)


def test_options_of_a_pruner_are_replaced_as_a_whole() -> None:
    config = SearchConfig.build(DATA, {"study": {"pruner": "HyperbandPruner", "pruner_options": {"max_resource": 8}}})
    assert config.study.pruner_options == {"max_resource": 8}


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("0.5", 0.5), ("2", 2.0)],
)
def test_numbers_are_read_as_people_write_them(text: str, value: float) -> None:
    config = SearchConfig.build(DATA, parse_assignments([f"train.weight_decay={text}"]))
    assert config.train.weight_decay == value


@pytest.mark.parametrize("text", ["epochs", "=3", "train..epochs=3"])
def test_an_assignment_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--set takes key=value"):
        parse_assignments([text])


@pytest.mark.parametrize("name", ["../up", "a b", "", "-x", "a/b", "x" * 101])
def test_names_that_could_leave_a_folder_or_break_a_url_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"study\.name"):
        SearchConfig.build(DATA, {"study": {"name": name}})


def test_a_recipe_that_is_missing_or_no_mapping_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Cannot read the recipe"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match="must be a mapping of keys, but it is a list"):
        load_recipe(tmp_path / "list.yaml")


@pytest.mark.parametrize("name", [recipe.name for recipe in shipped_recipes()])
def test_every_shipped_recipe_is_valid_and_names_its_command(name: str) -> None:
    recipe = next(recipe for recipe in shipped_recipes() if recipe.name == name)
    SearchConfig.build(DATA, load_recipe(recipe_path(name)))
    assert recipe.command.startswith("thawline ")
    assert recipe.purpose.endswith(".")


def test_a_copied_recipe_never_overwrites(tmp_path: Path) -> None:
    target = copy("fast", tmp_path)
    assert target.read_text() == recipe_path("fast").read_text()
    target.write_text("mine")
    with pytest.raises(ConfigError, match="already exists and is not overwritten"):
        copy("fast", tmp_path)
    assert target.read_text() == "mine"


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'balanced'"):
        recipe_path("balancd")


def test_a_recipe_is_a_file_that_exists_or_the_name_of_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe(Path("best")) == recipe_path("best")
    assert find_recipe(Path("best.yaml")) == Path("best.yaml"), "a file that is missing is no name"
    assert find_recipe(Path("folder/best")) == Path("folder/best")
    with pytest.raises(ConfigError, match="The recipe 'thorough' is now 'best'"):
        find_recipe(Path("thorough"))
    (tmp_path / "best").write_text("study: {trials: 3}\n")
    assert find_recipe(Path("best")) == Path("best"), "one's own file is meant"


@pytest.mark.parametrize(
    ("former", "now"), [("quick", "fast"), ("thorough", "best"), ("backbones", "best"), ("texts", "balanced-texts")]
)
def test_a_recipe_that_was_renamed_is_named_by_its_new_name(former: str, now: str) -> None:
    with pytest.raises(ConfigError, match=f"The recipe '{former}' is now '{now}': `thawline recipes copy {now}`"):
        recipe_path(former)
    assert recipe_path(now).is_file()


def test_the_fingerprint_changes_with_what_makes_trials_incomparable_and_only_then() -> None:
    def fingerprint(digest: str = "d", **sections: object) -> str:
        return SearchConfig.build(DATA, sections).fingerprint(digest)  # type: ignore[arg-type]

    known = fingerprint()
    for budget in ({"trials": 99}, {"timeout_minutes": 5}, {"workers": 2}, {"name": "other"}):
        assert fingerprint(study=budget) == known
    assert fingerprint(promotion={"model": "m"}) == known
    for tracking in ({"wandb": "offline"}, {"observe": False}, {"plugins": ["memory"]}, {"git_diff": False}):
        assert fingerprint(tracking=tracking) == known
    assert fingerprint("other data") != known
    assert fingerprint(train={"epochs": 3}) != known
    assert fingerprint(space={"learning_rate": [1e-4, 1e-3]}) != known
    assert fingerprint(backbone={"name": "resnet34"}) != known


def test_the_number_of_trials_is_twenty_unless_time_limits_the_search() -> None:
    def most(**study: object) -> tuple[int | None, int | None]:
        config = SearchConfig.build(DATA, {"study": study})
        return config.study.most_trials, ResolvedConfig.of(config, study="s", model="m").study.trials

    assert most() == (20, 20), "what is recorded says it"
    assert most(timeout_minutes=30) == (None, None)
    assert most(trials=7) == (7, 7)
    assert most(trials=7, timeout_minutes=30) == (7, 7)


def test_what_thaws_is_one_of_what_there_is_and_within_its_range() -> None:
    with pytest.raises(ConfigError) as caught:
        SearchConfig.build(
            DATA,
            {
                "train": {"policy": "all", "layer_decay": 1.5, "ema": 1.0, "thaw_patience": 0, "batch_norm": "eval"},
                "space": {"policy": [], "layer_decay": [0.5, 1.5], "batch_norm": ["train_all", "train_all"]},
            },
        )
    message = str(caught.value)
    for key in ("train.policy", "train.layer_decay", "train.ema", "train.thaw_patience", "train.batch_norm"):
        assert key in message
    assert "layer_decay: 0 < low <= high <= 1 must hold, but got [0.5, 1.5]" in message
    assert "policy: must list at least one choice, each once, but got []" in message
    assert "batch_norm: must list at least one choice, each once" in message


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"thaw_epochs": [2], "thaw_patience": 1}, "train: thaw_epochs and thaw_patience cannot both be set"),
        ({"thaw_epochs": [1, 3]}, "thaw_epochs must increase, from at least 2 .* but got [1, 3] with epochs=8"),
        ({"thaw_epochs": [3, 3]}, "but got [3, 3] with epochs=8"),
        ({"thaw_epochs": [3, 9]}, "but got [3, 9] with epochs=8"),
        ({"thaw_epochs": [2], "epochs": 1}, "but got [2] with epochs=1"),
        ({"thaw_epochs": []}, "train.thaw_epochs: "),
        (
            {"thaw_epochs": [2], "policy": "lp_ft"},
            "train.thaw_epochs=(2,) needs the policy gradual, but the policy is lp_ft",
        ),
        ({"thaw_patience": 2, "policy": "static"}, "train.thaw_patience=2 needs the policy gradual, .* is static"),
        (
            {"thaw_patience": 2, "epochs": 6},
            "thaw_patience=2 would never thaw anything: .* is thawed after 3 epochs, which must be at least 4",
        ),
        ({"thaw_fraction": 0.3, "policy": "static"}, "train.thaw_fraction=0.3 has no effect: the policy is static."),
        (
            {"thaw_fraction": 0.3, "thaw_epochs": [2, 4]},
            "train.thaw_fraction=0.3 has no effect: the policy is gradual, and thaw_epochs sets the epochs.",
        ),
    ],
)
def test_when_to_thaw_is_set_in_one_way_and_to_a_policy_that_listens(train: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=".*".join(map(re.escape, message.split(".*")))):
        SearchConfig.build(DATA, {"train": {"policy": "gradual", **train}})


def test_batch_norms_of_random_backbones_are_trained_whatever_the_recipe_says() -> None:
    names = {"resnet18": "none", "resnet34": "starter"}
    config = SearchConfig.build(DATA, {"backbone": {"weights": names}, "space": {"backbone": list(names)}})
    assert [config.batch_norm_of(name) for name in names] == ["train_all", "frozen_eval"]


def test_it_is_enough_that_some_trials_thaw_gradually() -> None:
    both = {"thaw_epochs": [2, 4], "thaw_fraction": 0.3}
    assert SearchConfig.build(DATA, {"train": both, "space": {"policy": ["lp_ft", "gradual"]}}), "each reads one"
    for train in ({"thaw_patience": 2}, {"thaw_epochs": [2, 5, 8]}):
        assert SearchConfig.build(DATA, {"train": {"policy": "gradual", **train}})
        assert SearchConfig.build(DATA, {"train": train, "space": {"policy": ["lp_ft", "gradual"]}})
        with pytest.raises(ConfigError, match="but the policy is static or lp_ft: set"):
            SearchConfig.build(
                DATA, {"train": {"policy": "gradual", **train}, "space": {"policy": ["static", "lp_ft"]}}
            )


def test_a_later_layer_names_its_own_backbones_and_weights_and_adds_none() -> None:
    recipe = {
        "space": {"backbone": {"resnet18": [1, 2], "resnet34": None}},
        "backbone": {"weights": {"resnet34": "none"}, "image_size": 64},
    }
    over = {"space": {"backbone": {"resnet50": None}}, "backbone": {"weights": {"resnet50": "none"}}}
    config = SearchConfig.build(DATA, recipe, over)
    assert config.backbones == ("resnet50",)
    assert config.backbone.weights == {"resnet50": "none"}
    assert config.backbone.image_size == 64, "the rest of a section stays"
    several = parse_assignments(["space.backbone.resnet18=null", "space.backbone.resnet50=[1,2]"])
    assert SearchConfig.build(DATA, recipe, {"backbone": {"weights": "default"}}, several).backbones == (
        "resnet18",
        "resnet50",
    )


@pytest.mark.parametrize("key", ["policy", "optimizer", "batch_norm", "augmentation", "backbone"])
def test_one_choice_where_a_list_belongs_is_answered_with_the_list(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"space\.{key}: must be a list( of names,)? such as \[x\], but got 'x'$"):
        SearchConfig.build(DATA, {"space": {key: "x"}})


def test_a_soup_is_made_of_the_same_trials_and_how_they_thaw_makes_them_others() -> None:
    known = SearchConfig.build(DATA).fingerprint("d")
    assert SearchConfig.build(DATA, {"study": {"soup": True}}).fingerprint("d") == known
    for train in (
        {"policy": "gradual"},
        {"batch_norm": "train_all"},
        {"ema": 0.9},
        {"policy": "lp_ft", "thaw_fraction": 0.3},
    ):
        assert SearchConfig.build(DATA, {"train": train}).fingerprint("d") != known


def test_the_flat_configuration_holds_every_key() -> None:
    flat = flatten(SearchConfig.build(DATA))
    assert flat["data.path"] == "photos"
    assert flat["train.epochs"] == "8"
    assert all("." in key for key in flat)


def test_options_of_sampler_and_pruner_default_to_the_measured_ones_of_the_default_classes_alone() -> None:
    default = SearchConfig.build(DATA).study
    assert default.sampler_options == {"n_startup_trials": 4}
    assert default.pruner_options == {"n_startup_trials": 8, "n_warmup_steps": 2}
    others = SearchConfig.build(DATA, {"study": {"sampler": "TPESampler", "pruner": "NopPruner"}}).study
    assert (others.sampler_options, others.pruner_options) == ({}, {})


def test_options_that_are_given_reach_another_sampler_though_they_are_the_defaults_of_this_one() -> None:
    given = {"sampler": "TPESampler", "sampler_options": {"n_startup_trials": 4}}
    assert SearchConfig.build(DATA, {"study": given}).study.sampler_options == {"n_startup_trials": 4}


def test_off_is_off_as_yaml_reads_it_and_as_it_is_written_back(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("tracking:\n  wandb: off\n")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe == {"tracking": {"wandb": False}}
    for layer in (recipe, parse_assignments(["tracking.wandb=off"]), {"tracking": {"wandb": "off"}}):
        config = SearchConfig.build(DATA, {"tracking": {"wandb": "offline"}}, layer)
        assert config.tracking.wandb == "off"
        assert SearchConfig.build(config.model_dump(mode="json")) == config
    assert SearchConfig.build(DATA, parse_assignments(["tracking.wandb=online"])).tracking.wandb == "online"
    with pytest.raises(
        ConfigError, match=r"tracking\.wandb: Input should be 'off', 'offline' or 'online' \(got True\)"
    ):
        SearchConfig.build(DATA, parse_assignments(["tracking.wandb=on"]))


@pytest.mark.parametrize("key", ["near_duplicates", "cache"])
def test_what_data_settings_call_off_may_be_written_so(key: str) -> None:
    for value in (f"data.{key}=off", f"data.{key}='off'"):
        config = SearchConfig.build(DATA, parse_assignments([value]))
        assert getattr(config.data, key) == "off"
    with pytest.raises(ConfigError, match=rf"data\.{key}: Input should be"):
        SearchConfig.build(DATA, parse_assignments([f"data.{key}=on"]))


@pytest.mark.parametrize("name", ["", "a/b", "50 %", "a#b", "a?b", "a:b", "a\\b", "a\nb", "x" * 129])
def test_a_project_that_wandb_would_refuse_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.wandb_project: must be 1 to 128 characters without"):
        SearchConfig.build(DATA, {"tracking": {"wandb_project": name}})
    assert SearchConfig.build(DATA, {"tracking": {"wandb_project": "x" * 128}}).tracking.wandb_project == "x" * 128


def test_a_recipe_that_is_carried_out_has_names_and_a_budget_and_is_the_same_in_all_else() -> None:
    written = SearchConfig.build(DATA, {"space": {"backbone": ["resnet18", "resnet34"]}, "train": {"epochs": 3}})
    resolved = ResolvedConfig.of(written, study="birds-1", model="birds")
    assert (resolved.study.name, resolved.promotion.model) == ("birds-1", "birds")
    named = {"study": {"name": "birds-1", "trials": 20}, "promotion": {"model": "birds"}}
    assert resolved.model_dump() == SearchConfig.build(written.model_dump(), named).model_dump()
    assert resolved.fingerprint("d") == written.fingerprint("d")
    with pytest.raises(ValidationError, match=r"study\.name"):
        ResolvedConfig.model_validate(written.model_dump())


def test_a_recipe_that_is_carried_out_goes_wherever_a_recipe_does() -> None:
    resolved = ResolvedConfig.of(SearchConfig.build(DATA), study="birds-1", model="birds")
    flows = TypeAdapter(SearchConfig)  # as Prefect takes and stores the parameter of a flow
    assert flows.validate_python(resolved) is resolved
    assert SearchConfig.build(json.loads(flows.dump_json(resolved))).model_dump() == resolved.model_dump()
    assert pickle.loads(pickle.dumps(resolved)) == resolved  # noqa: S301
