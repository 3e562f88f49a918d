"""A version is judged again by the settings of its study, or, where they cannot be read, by the defaults."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from thawline.config import PromotionConfig
from thawline.exceptions import ConfigError, RegistryError
from thawline.registry import MlflowRegistry
from thawline.search.challenger import Challenger, open_challenger
from thawline.search.version_config import config_of_version
from thawline.tracking import MlflowStore

OWN: dict[str, Any] = {"data": {"path": "birds"}, "promotion": {"minimum_gain": 0.25, "approve": True}}
EARLIER: dict[str, Any] = {**OWN, "train": {"augmentation": "fresh"}}


def add_version(store: MlflowStore, settings: str | None) -> None:
    """A version of ``birds`` whose study recorded these settings."""
    client = store.client
    study = client.create_run(store.experiment_id).info.run_id
    if settings is not None:
        client.log_text(study, settings, "config.yaml")
    trial = client.create_run(store.experiment_id, tags={"mlflow.parentRunId": study}).info.run_id
    client.create_registered_model("birds")
    client.create_model_version("birds", f"runs:/{trial}/model", trial)


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Labelled files, which are not opened yet."""
    for name in ("ab", "cd"):
        (tmp_path / "others" / name).mkdir(parents=True)
        (tmp_path / "others" / name / "1.png").touch()
    return tmp_path / "others"


def opened(store: MlflowStore, data: Path | None) -> Challenger:
    return open_challenger("birds", version=None, data=data, approve=None, tracking_uri=None, home=store.home)


def test_the_thresholds_are_those_of_the_study(store: MlflowStore, others: Path) -> None:
    add_version(store, yaml.safe_dump(OWN))
    challenger = opened(store, others)
    assert challenger.rules.minimum_gain == 0.25 != PromotionConfig().minimum_gain
    assert list(challenger.test.labels) == ["ab", "cd"]


@pytest.mark.parametrize(
    ("settings", "rules", "said"),
    [
        (yaml.safe_dump(EARLIER), OWN["promotion"], "Its thresholds apply."),
        (yaml.safe_dump({**EARLIER, "promotion": {"gain": 1}}), {}, "The default thresholds apply; approval"),
        ("train: [", {}, "The default thresholds apply; approval"),
        ("no settings", {}, "The default thresholds apply; approval"),
    ],
)
def test_settings_of_an_earlier_version_of_thawline_are_named_and_with_data_the_known_thresholds_hold(
    settings: str, rules: dict[str, Any], said: str, store: MlflowStore, others: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_version(store, settings)
    with pytest.raises(
        ConfigError, match=r"birds/1 was run with settings that this version .*(?s:.*)--data"
    ) as refused:
        opened(store, None)
    assert ("train.augmentation" in str(refused.value)) == ("fresh" in settings)
    challenger = opened(store, others)
    assert challenger.rules == PromotionConfig(**rules)
    assert list(challenger.test.labels) == ["ab", "cd"]
    assert said in caplog.text


def test_a_version_without_a_run_is_said_to_have_none(store: MlflowStore, others: Path) -> None:
    store.client.create_registered_model("birds")
    store.client.create_model_version("birds", "file:///birds", None)
    with pytest.raises(
        RegistryError, match=r"birds/1 cannot be compared: .* without a run.* birds --version 1 --force"
    ):
        opened(store, others)


def test_a_version_whose_run_is_in_another_store_is_refused_before_anything_is_scored(
    store: MlflowStore, others: Path
) -> None:
    store.client.create_registered_model("birds")
    store.client.create_model_version("birds", "file:///birds", "f" * 32)
    with pytest.raises(RegistryError, match=rf"run f{{32}}, which is not in {store.name}\. .*--tracking-uri"):
        opened(store, others)


def test_what_was_not_recorded_is_no_mistake_and_with_data_the_default_thresholds_hold(
    store: MlflowStore, others: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_version(store, None)
    assert config_of_version(MlflowRegistry(store), "birds", "1") is None
    assert opened(store, others).rules == PromotionConfig()
    assert "birds/1 are not recorded. The default thresholds apply; approval" in caplog.text


def test_settings_that_cannot_be_read_are_not_taken_for_absent_ones(store: MlflowStore, others: Path) -> None:
    """They may require another person's approval."""
    add_version(store, yaml.safe_dump(OWN))
    assert opened(store, others).rules.approve, "a control"
    (file,) = store.home.rglob("config.yaml")
    file.unlink()
    file.symlink_to("lost")  # for root, too, which may read all files
    with pytest.raises(RegistryError, match=r"Cannot read config\.yaml of the study that trained birds/1: "):
        opened(store, others)
