"""A preset is a shipped recipe, fitted to the data and to the networks that are available."""

from pathlib import Path
from typing import Any, get_args

import pytest

from thawline import backbones
from thawline.backbones import Place
from thawline.cli._shared import config_of
from thawline.config import SearchConfig, load_recipe
from thawline.exceptions import ConfigError, DataError
from thawline.presets import Fitted, Preset, fitted
from thawline.recipes import recipe_path

PRESETS: tuple[Preset, ...] = get_args(Preset)


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> dict[str, Place]:
    """Where the weights of networks are, to be filled in; those of all others are nowhere."""
    known: dict[str, Place] = {}
    monkeypatch.setattr(backbones, "weights_place", lambda name: known.get(name, "nowhere"))
    return known


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    return tmp_path / "photos"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    table = tmp_path / "messages.tsv"
    table.write_text("ham\tsee you at noon\nspam\twin a free prize now\n")
    return table


def config(preset: str, data: Path, **given: Any) -> SearchConfig:
    return SearchConfig.build(fit(preset, data, **given).layer, {"data": {"path": str(data)}}, given)


def fit(preset: str, data: Path, **given: Any) -> Fitted:
    return fitted(preset, {"data": {"path": str(data)}}, given)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_the_shipped_recipe_of_its_name_for_images_and_for_texts(
    preset: Preset, photos: Path, texts: Path, places: dict[str, Place]
) -> None:
    recipe = load_recipe(recipe_path(preset))
    listed = recipe.get("space", {}).get("backbone") or [recipe["backbone"]["name"]]
    places.update(dict.fromkeys(listed, "cache"))
    assert config(preset, photos) == SearchConfig.build({"data": {"path": str(photos)}}, recipe)
    of_texts = load_recipe(recipe_path(f"{preset}-texts"))
    assert config(preset, texts) == SearchConfig.build({"data": {"path": str(texts)}}, of_texts)
    assert f"`thawline recipes copy {preset}-texts` writes a copy" in fit(preset, texts).notes[0]


def test_balanced_is_what_a_search_does_by_itself(photos: Path, places: dict[str, Place]) -> None:
    places["resnet18"] = "cache"
    plain = SearchConfig.build({"data": {"path": str(photos)}}, {"study": {"trials": 20}})
    assert config("balanced", photos).model_dump() == plain.model_dump()


def test_fast_takes_the_first_network_whose_weights_are_cached(photos: Path, places: dict[str, Place]) -> None:
    places |= {"mobilenet_v3_small": "network", "squeezenet1_0": "cache", "resnet18": "cache"}
    assert config("fast", photos).backbone.name == "squeezenet1_0"
    assert "squeezenet1_0, whose weights are cached" in fit("fast", photos).notes[1]
    places["mobilenet_v3_small"] = "cache"
    assert config("fast", photos).backbone.name == "mobilenet_v3_small"


@pytest.mark.parametrize("preset", ["fast", "balanced"])
def test_where_nothing_is_cached_the_first_that_can_be_downloaded_is_taken(
    preset: Preset, photos: Path, places: dict[str, Place]
) -> None:
    places |= {"timm/tf_efficientnet_lite0": "network", "resnet18": "network"}
    first = {"fast": "timm/tf_efficientnet_lite0", "balanced": "resnet18"}[preset]
    chosen = config(preset, photos).backbone
    assert (chosen.name, chosen.weights) == (first, "default")
    assert "not cached and will be downloaded" in fit(preset, photos).notes[1]


def test_fast_needs_no_network_and_says_what_would_be_better(photos: Path, places: dict[str, Place]) -> None:
    assert places == {}
    chosen = config("fast", photos).backbone
    assert (chosen.name, chosen.weights, chosen.image_size) == ("mobilenet_v3_small", "starter", 64)
    assert "says which file to put where" in fit("fast", photos).notes[1]
    assert config("fast", photos, backbone={"image_size": 48}).backbone.image_size == 48


def test_balanced_and_best_never_begin_with_weights_that_are_no_imagenet_s(
    photos: Path, places: dict[str, Place]
) -> None:
    assert places == {}
    for preset in ("balanced", "best"):
        assert config(preset, photos).backbone.weights == "default", "loading them says which file is missing"
        assert len(config(preset, photos).backbones) == 1


def test_best_leaves_out_what_is_not_available(photos: Path, places: dict[str, Place]) -> None:
    places |= {"resnet50": "cache", "efficientnet_b0": "network"}
    best = config("best", photos)
    assert best.backbones == ("efficientnet_b0", "resnet50")
    assert best.study.keep_backbones == 2
    assert "left out timm/tf_efficientnet_lite0" in fit("best", photos).notes[-1]
    del places["efficientnet_b0"]
    alone = config("best", photos)
    assert (alone.backbone.name, alone.space.backbone, alone.study.keep_backbones) == ("resnet50", None, None)
    assert alone.study.soup, "an ensemble that is one model"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("named", [{"backbone": {"name": "vgg11"}}, {"space": {"backbone": ["vgg11", "vgg13"]}}])
def test_networks_that_the_user_names_are_not_chosen(
    preset: Preset, named: dict[str, Any], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> Place:
        raise AssertionError(name)

    monkeypatch.setattr(backbones, "weights_place", refuse)
    chosen = config(preset, photos, **named)
    assert chosen.backbones[0] == "vgg11"
    assert chosen.study.keep_backbones is None
    with pytest.raises(AssertionError, match="mobilenet_v3_small"):
        fit("fast", photos)  # a control


@pytest.mark.parametrize("preset", PRESETS)
def test_a_number_of_trials_or_a_time_limit_takes_the_place_of_the_preset_s_budget(
    preset: Preset, photos: Path, places: dict[str, Place]
) -> None:
    places["resnet18"] = "cache"

    def budget(**study: Any) -> tuple[int | None, float | None]:
        study_config = config(preset, photos, study=study).study
        return study_config.most_trials, study_config.timeout_minutes

    assert budget(timeout_minutes=30) == (None, 30), "the number of trials follows"
    assert budget(trials=3) == (3, None)
    assert budget(trials=3, timeout_minutes=30) == (3, 30)
    assert budget() == budget(seed=1) == {"fast": (7, 5), "balanced": (20, None), "best": (40, 240)}[preset]


def test_recipe_options_and_assignments_come_over_a_preset_in_this_order(
    photos: Path, tmp_path: Path, places: dict[str, Place], capsys: pytest.CaptureFixture[str]
) -> None:
    places["mobilenet_v3_small"] = "cache"
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("train: {epochs: 5, batch_size: 16, weight_decay: 0.5}\n")
    options, assignments = {"train.epochs": 6, "train.batch_size": 8}, ["train.epochs=7"]
    made = config_of(str(photos), recipe, options, assignments, preset="fast")
    assert (made.train.epochs, made.train.batch_size, made.train.weight_decay) == (7, 8, 0.5)
    assert made.backbone.image_size == 128, "what nothing comes over is the preset's"
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == list(fit("fast", photos).notes)
    config_of(str(photos), recipe, options, assignments, preset="fast", quiet=True)
    assert capsys.readouterr().err == ""


def test_a_preset_that_there_is_not_and_data_that_do_not_exist_are_named(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--preset must be one of fast, balanced, best, but got 'good'"):
        fit("good", photos)
    with pytest.raises(DataError, match="nowhere"):
        fit("fast", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="backbone: "):
        config("best", photos, backbone="vgg11")
