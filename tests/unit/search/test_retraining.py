"""When a retraining is skipped, and where it begins."""

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_networks import write_tiny

from thawline.config import SearchConfig
from thawline.data import Manifest
from thawline.exceptions import ConfigError, DataError, StudyError
from thawline.search import retraining
from thawline.search.prepare import complete
from thawline.search.retraining import (
    alone_at_home,
    conclude_retraining,
    model_of,
    plan_retraining,
    read_changes,
)
from thawline.search.space import point_of
from thawline.tracking import MlflowStore

OLD, NEW = "a" * 32, "b" * 32
DEPTHS = {"resnet18": 6, "mobilenet_v3_small": 6}
CHAMPION = {
    "trial": "7",
    "backbone": "resnet18",
    "freeze_depth": "4",
    "learning_rate": "0.002",
    "weight_decay": "0.03",
    "head_learning_rate_factor": "1.0",
    "optimizer": "sgd",
}


def config_of(*layers: dict[str, Any], path: Path = Path("birds")) -> SearchConfig:
    return SearchConfig.build({"data": {"path": str(path), "workers": 1}}, *layers)


def manifest_of(digest: str) -> Manifest:
    return Manifest(root=Path("birds"), classes=("a", "b"), rows=(), problems=(), digest=digest, layout="")


def add_version(
    store: MlflowStore,
    config: SearchConfig,
    *,
    digest: str = OLD,
    verdict: str | None = "promote",
    champion: bool = True,
    hyperparameters: dict[str, str] = CHAMPION,
    model: str = "birds",
    recorded: dict[str, Any] | None = None,
) -> str:
    """What a search leaves in the registry."""
    client = store.client
    study = client.create_run(store.experiment_id).info.run_id
    client.log_text(study, yaml.safe_dump(recorded or config.model_dump(mode="json")), "config.yaml")
    lines = [",".join(hyperparameters), ",".join(hyperparameters.values())]
    client.log_text(study, "\n".join(lines), "leaderboard.csv")
    trial = client.create_run(store.experiment_id, tags={"mlflow.parentRunId": study}).info.run_id
    if not client.search_registered_models():
        client.create_registered_model(model)
    tags = {"thawline.data_digest": digest, "thawline.trial": "7", "thawline.study": "s"}
    if verdict is not None:
        tags["thawline.verdict"] = verdict
    if champion:
        tags["thawline.previous_champion"] = "none"
    version = str(client.create_model_version(model, f"runs:/{trial}/model", trial, tags=tags).version)
    client.set_registered_model_alias(model, "challenger", version)
    if champion:
        client.set_registered_model_alias(model, "champion", version)
    return version


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of noise."""
    random = np.random.default_rng(0)
    for index in range(24):
        file = tmp_path / "birds" / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (9, 9, 3)).astype(np.uint8)).save(file)
    return tmp_path / "birds"


read_old_changes = partial(read_changes, racy_seconds=-3600.0)
"""Files that were made a moment ago count as old."""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[SearchConfig]:
    """Every time that a folder was read."""
    made: list[SearchConfig] = []
    read = retraining.read_data

    def reading(config: SearchConfig) -> Manifest:
        made.append(config)
        return read(config)

    monkeypatch.setattr(retraining, "read_data", reading)
    return made


def test_a_folder_that_did_not_change_is_listed_but_not_read(
    images: Path, own_home: Path, reads: list[SearchConfig]
) -> None:
    config = config_of(path=images)
    first = read_old_changes(config, own_home)
    (images / "a" / ".hidden").write_text("no image, and no change")
    again = read_old_changes(config_of({"data": {"workers": 2}}, path=images), own_home)
    assert again == first
    assert len(reads) == 1


def add(folder: Path) -> None:
    shutil.copy(folder / "a" / "0.png", folder / "b" / "copy.png")


def remove(folder: Path) -> None:
    (folder / "a" / "0.png").unlink()


def rename(folder: Path) -> None:
    (folder / "a" / "0.png").rename(folder / "b" / "0.png")


def replace_with_the_same_size_and_time(folder: Path) -> None:
    file = folder / "a" / "0.png"
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("change", [add, remove, rename, replace_with_the_same_size_and_time])
def test_a_folder_that_changed_is_read_again(
    change: Callable[[Path], None], images: Path, own_home: Path, reads: list[SearchConfig]
) -> None:
    config = config_of({"data": {"max_bad_fraction": 0.5}}, path=images)
    before = read_old_changes(config, own_home)
    change(images)
    assert read_old_changes(config, own_home).digest != before.digest
    assert len(reads) == 2


def change_later(file: Path, change: Callable[[Path], Any]) -> None:
    """Change a file so that its time tells it, however coarse the clock of the file system is."""
    before = file.stat()
    change(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))


@pytest.mark.parametrize("option", ["exclude", "relabel"])
def test_corrections_beside_the_data_are_read_again_when_they_change(
    option: str, images: Path, tmp_path: Path, own_home: Path, reads: list[SearchConfig]
) -> None:
    suspects = tmp_path / "suspects.csv"
    suspects.write_text("path,suggested\na/0.png,b\n")
    config = config_of({"data": {option: str(suspects)}}, path=images)
    first = read_old_changes(config, own_home)
    assert read_old_changes(config, own_home) == first
    assert len(reads) == 1
    change_later(suspects, lambda file: file.write_text("path,suggested\na/2.png,b\n"))
    assert read_old_changes(config, own_home).digest != first.digest
    suspects.unlink()
    with pytest.raises(DataError, match=r"suspects\.csv: there is no such file"):
        read_old_changes(config, own_home)


@pytest.mark.parametrize("place", ["beside", "image_folder", "image_folder of a folder"])
def test_images_that_a_table_names_are_looked_at_too(
    place: str, images: Path, tmp_path: Path, own_home: Path, reads: list[SearchConfig]
) -> None:
    names = sorted(path.relative_to(tmp_path / "birds").as_posix() for path in images.rglob("*.png"))
    table = (images if place == "beside" else tmp_path / "tables") / "labels.csv"
    table.parent.mkdir(exist_ok=True)
    table.write_text("image,label\n" + "".join(f"{name},{name[0]}\n" for name in names))
    options = {} if place == "beside" else {"image_folder": str(images)}
    config = config_of({"data": options}, path=table.parent if place.endswith("of a folder") else table)
    first = read_old_changes(config, own_home)
    (images / "log.txt").write_text("no image, and no change")
    assert read_old_changes(config, own_home) == first
    assert len(reads) == 1
    replace_with_the_same_size_and_time(images)
    assert read_old_changes(config, own_home).digest != first.digest
    assert len(reads) == 2


@pytest.mark.parametrize("name", ["pets.tar", "pets/0.tar"])
def test_names_of_classes_beside_shards_are_looked_at_too(
    name: str, images: Path, tmp_path: Path, own_home: Path, reads: list[SearchConfig]
) -> None:
    tar = tmp_path / "data" / name
    tar.parent.mkdir(parents=True)
    with tarfile.open(tar, "w") as archive:
        for file in sorted(images.rglob("*.png")):
            archive.add(file, f"{file.stem}.png")
            info = tarfile.TarInfo(f"{file.stem}.cls")
            info.size = 1
            archive.addfile(info, io.BytesIO(b"01"[int(file.stem) % 2 :]))
    config = config_of(path=tmp_path / "data" / "pets" if "/" in name else tar)
    assert read_old_changes(config, own_home).classes == ("0", "1")
    names = tmp_path / "data" / "classnames.txt"
    names.write_text("cat\ndog\n")
    assert read_old_changes(config, own_home).classes == ("cat", "dog")
    assert read_old_changes(config, own_home).classes == ("cat", "dog")
    assert len(reads) == 2
    change_later(names, lambda file: file.write_text("cow\ndog\n"))
    assert read_old_changes(config, own_home).classes == ("cow", "dog")


def test_what_lies_beside_a_table_of_texts_is_not_looked_at(
    tmp_path: Path, images: Path, own_home: Path, reads: list[SearchConfig]
) -> None:
    table = tmp_path / "sms.csv"
    table.write_text("label,text\n" + "".join(f"{'ab'[n % 2]},message number {n}\n" for n in range(60)))
    encoder = write_tiny("bert", tmp_path / "bert", weights=False)
    config = config_of({"backbone": {"name": f"hf:{encoder}"}}, path=table)
    read_old_changes(config, own_home)
    add(images)
    read_old_changes(config, own_home)
    assert len(reads) == 1


def test_a_folder_read_by_other_rules_is_read_again(images: Path, own_home: Path, reads: list[SearchConfig]) -> None:
    read_old_changes(config_of(path=images), own_home)
    read_old_changes(config_of({"data": {"test_fraction": 0.3}}, path=images), own_home)
    assert len(reads) == 2


def test_a_file_written_a_moment_ago_may_still_change_so_that_its_folder_is_not_remembered(
    images: Path, own_home: Path, reads: list[SearchConfig]
) -> None:
    for _ in range(2):
        read_changes(config_of(path=images), own_home, racy_seconds=3600.0)
    assert len(reads) == 2


def test_a_folder_that_changes_while_it_is_read_is_not_remembered(
    images: Path, own_home: Path, reads: list[SearchConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = retraining.read_data

    def reading(config: SearchConfig) -> Manifest:
        manifest = read(config)
        if len(reads) == 1:
            add(images)
        return manifest

    monkeypatch.setattr(retraining, "read_data", reading)
    first = read_old_changes(config_of(path=images), own_home)
    second = read_old_changes(config_of(path=images), own_home)
    assert (len(reads), first.digest == second.digest) == (2, False)
    read_old_changes(config_of(path=images), own_home)
    assert len(reads) == 2


def test_a_damaged_memory_of_a_folder_is_not_believed(images: Path, own_home: Path, reads: list[SearchConfig]) -> None:
    first = read_old_changes(config_of(path=images), own_home)
    (memory,) = (own_home / "cache" / "manifests").rglob("*.json")
    memory.write_text(memory.read_text().replace('"label": 0', '"label": 1'))
    assert read_old_changes(config_of(path=images), own_home) == first
    assert len(reads) == 2


def test_links_that_lead_back_end_and_a_missing_folder_is_named(
    images: Path, own_home: Path, reads: list[SearchConfig]
) -> None:
    (images / "a" / "again").symlink_to(images)
    (images / "b" / "nowhere.png").symlink_to(images / "missing.png")
    read_old_changes(config_of({"data": {"max_bad_fraction": 0.5}}, path=images), own_home)
    assert len(reads) == 1
    with pytest.raises(DataError, match=r"Cannot read .*none: No such file"):
        read_old_changes(config_of(path=images / "none"), own_home)


def test_a_table_of_texts_is_read_again_when_a_line_was_added_and_its_model_has_its_name(
    tmp_path: Path, own_home: Path, store: MlflowStore, reads: list[SearchConfig]
) -> None:
    table = tmp_path / "sms.tsv"
    table.write_text("label\ttext\n" + "".join(f"{'ab'[n % 2]}\tmessage number {n}\n" for n in range(60)))
    encoder = write_tiny("bert", tmp_path / "bert", weights=False)
    config = config_of({"backbone": {"name": f"hf:{encoder}"}}, path=table)
    first = read_old_changes(config, own_home)
    assert model_of(config) == complete(config, first)[0].promotion.model == "sms"
    add_version(store, config, digest=first.digest, model="sms")
    again = plan_retraining(config, read_old_changes(config, own_home), own_home)
    assert str(again.reason).startswith("nothing has changed since sms version 1")
    assert len(reads) == 1
    with table.open("a") as lines:
        lines.write("a\tone more\n")
    assert plan_retraining(config, read_old_changes(config, own_home), own_home).reason is None
    assert len(reads) == 2


def test_nothing_changed_since_the_last_verdict_is_a_reason_to_train_nothing(store: MlflowStore) -> None:
    version = add_version(store, config_of(), verdict="hold")
    plan = plan_retraining(config_of(), manifest_of(OLD), store.home)
    assert plan.reason == (
        f"nothing has changed since birds version {version} (verdict: hold): the same recipe, the same data "
        f"(digest {OLD[:12]})"
    )
    outcome = conclude_retraining(plan, None)
    assert (outcome.end, outcome.title, outcome.model) == ("skipped", "birds: skipped", "birds")
    assert outcome.as_dict()["search"] is None
    assert "nothing has changed" in outcome.as_markdown()


@pytest.mark.parametrize(
    ("settings", "digest"),
    [({}, NEW), ({"train": {"epochs": 9}}, OLD), ({"space": {"learning_rate": [1e-4, 1e-2]}}, OLD)],
)
def test_other_data_or_another_recipe_must_be_trained(
    settings: dict[str, Any], digest: str, store: MlflowStore
) -> None:
    add_version(store, config_of())
    assert plan_retraining(config_of(settings), manifest_of(digest), store.home).reason is None


@pytest.mark.parametrize(
    "settings", [{"study": {"trials": 99}}, {"retrain": {"narrow": True}}, {"study": {"name": "x"}}]
)
def test_another_budget_or_name_is_no_other_recipe(settings: dict[str, Any], store: MlflowStore) -> None:
    add_version(store, config_of())
    assert plan_retraining(config_of(settings), manifest_of(OLD), store.home).reason is not None


def test_a_version_that_was_never_judged_is_no_reason_and_its_study_is_resumed(store: MlflowStore) -> None:
    add_version(store, config_of(), digest="c" * 32)
    add_version(store, config_of(), verdict=None, champion=False)
    plan = plan_retraining(config_of(), manifest_of(OLD), store.home)
    assert plan.reason is None
    assert plan.config.study.name == complete(config_of(), manifest_of(OLD))[0].study.name


def test_a_promotion_that_was_interrupted_before_or_during_its_approval_is_resumed(store: MlflowStore) -> None:
    add_version(store, config_of())
    version = add_version(store, config_of(), digest=NEW, champion=False)
    plan = plan_retraining(config_of(), manifest_of(NEW), store.home)
    assert plan.reason is None
    assert plan.config.study.name == complete(config_of(), manifest_of(NEW))[0].study.name
    # One that was promoted, and replaced later, is settled.
    store.client.set_model_version_tag("birds", version, "thawline.previous_champion", "1")
    assert plan_retraining(config_of(), manifest_of(NEW), store.home).reason is not None


def test_settings_unknown_to_this_version_of_thawline_are_another_recipe(store: MlflowStore) -> None:
    add_version(store, config_of(), recorded={"train": {"augmentation": "fresh"}})
    assert plan_retraining(config_of(), manifest_of(OLD), store.home).reason is None


def test_data_that_went_back_to_what_it_was_is_judged_again(store: MlflowStore) -> None:
    add_version(store, config_of(), digest=OLD)
    add_version(store, config_of(), digest=NEW)
    assert plan_retraining(config_of(), manifest_of(OLD), store.home).reason is None
    store.client.set_registered_model_alias("birds", "challenger", "1")  # as the search does that finds version 1 again
    assert plan_retraining(config_of(), manifest_of(OLD), store.home).reason is not None


def test_a_narrowed_search_is_recognised_by_the_recipe_that_asked_for_it(store: MlflowStore) -> None:
    add_version(store, config_of())
    recipe = config_of({"retrain": {"narrow": True}})
    plan = plan_retraining(recipe, manifest_of(NEW), store.home)
    assert plan.config.space != recipe.space
    version = add_version(store, plan.config, digest=NEW)
    assert plan_retraining(recipe, manifest_of(NEW), store.home).reason is None  # by its own space it is another recipe
    conclude_retraining(plan, searched(version))
    assert plan_retraining(recipe, manifest_of(NEW), store.home).reason is not None
    assert plan_retraining(config_of({"train": {"epochs": 9}}), manifest_of(NEW), store.home).reason is None


def test_a_recipe_is_recognised_by_the_copy_in_int8_that_its_search_registered_last(store: MlflowStore) -> None:
    add_version(store, config_of())
    plan = plan_retraining(config_of({"retrain": {"narrow": True}}), manifest_of(NEW), store.home)
    version = add_version(store, plan.config, digest=NEW)
    copy = add_version(store, plan.config, digest=NEW)
    conclude_retraining(plan, searched(version, copy))
    again = plan_retraining(config_of({"retrain": {"narrow": True}}), manifest_of(NEW), store.home)
    assert str(again.reason).startswith(f"nothing has changed since birds version {copy}")


def searched(version: str, copy: str | None = None) -> Any:
    """The part of a search's outcome that is remembered."""
    promotion = SimpleNamespace(version=version, verdict=SimpleNamespace(reason="it is better"))
    quantised = None if copy is None else SimpleNamespace(version=copy)
    return SimpleNamespace(model="birds", promotion=promotion, quantised=quantised)


def test_a_search_begins_with_the_champion_and_not_with_a_later_version_that_lost(store: MlflowStore) -> None:
    add_version(store, config_of())
    add_version(store, config_of(), digest="c" * 32, champion=False, hyperparameters=CHAMPION | {"freeze_depth": "1"})
    mine = {"learning_rate": 0.005}
    recipe = config_of({"study": {"enqueue": [mine]}})
    plan = plan_retraining(recipe, manifest_of(NEW), store.home)
    assert plan.config.study.enqueue == ({"freeze_depth": 4, "learning_rate": 0.002}, mine)
    assert plan.config.space == recipe.space


def test_what_the_space_opens_is_taken_from_the_champion_and_kept_within_it(store: MlflowStore) -> None:
    add_version(store, config_of())
    recipe = config_of(
        {
            "space": {
                "backbone": ["mobilenet_v3_small", "resnet18"],
                "learning_rate": [0.003, 0.1],
                "weight_decay": [0.001, 0.1],
                "head_learning_rate_factor": [2, 10],
                "optimizer": ["adamw"],
            }
        }
    )
    (point,) = plan_retraining(recipe, manifest_of(NEW), store.home).config.study.enqueue
    assert point == {
        "backbone": "resnet18",
        "freeze_depth": 4,
        "learning_rate": 0.003,
        "weight_decay": 0.03,
        "head_learning_rate_factor": 2,
    }
    assert point_of(point, recipe, DEPTHS)["freeze_depth:resnet18"] == 4


@pytest.mark.parametrize("narrow", [True, False])
def test_a_champion_of_another_backbone_says_nothing(narrow: bool, store: MlflowStore) -> None:
    add_version(store, config_of())
    recipe = config_of({"backbone": {"name": "mobilenet_v3_small"}, "retrain": {"narrow": narrow}})
    plan = plan_retraining(recipe, manifest_of(NEW), store.home)
    assert (plan.config.study.enqueue, plan.config.space) == ((), recipe.space)


def test_a_champion_that_is_a_linear_probe_adds_no_point_since_every_search_begins_with_one(store: MlflowStore) -> None:
    config = config_of({"retrain": {"narrow": True}})
    add_version(store, config, hyperparameters={**CHAMPION, "policy": "probe", "learning_rate": ""})
    planned = plan_retraining(config, manifest_of(NEW), store.home).config
    assert planned.study.enqueue == ()
    assert planned.space == config.space


def test_without_a_champion_or_a_model_the_search_begins_from_scratch(store: MlflowStore) -> None:
    first = plan_retraining(config_of(), manifest_of(NEW), store.home)
    assert (first.reason, first.config.study.enqueue) == (None, ())
    add_version(store, config_of(), verdict="reject", champion=False)
    assert plan_retraining(config_of(), manifest_of(NEW), store.home).config.study.enqueue == ()


def test_a_narrowed_space_lies_around_the_champion_and_within_the_recipes(store: MlflowStore) -> None:
    add_version(store, config_of())
    for space, depths, rates in (
        ({}, (3, 5), (0.002 / 3, 0.006)),
        ({"freeze_depth": [4, 6], "learning_rate": [0.001, 0.003]}, (4, 5), (0.001, 0.003)),
        ({"backbone": ["mobilenet_v3_small", "resnet18"]}, (3, 5), (0.002 / 3, 0.006)),
    ):
        recipe = config_of({"space": space, "retrain": {"narrow": True}})
        config = plan_retraining(recipe, manifest_of(NEW), store.home).config
        assert config.backbones == ("resnet18",)
        assert config.space.freeze_depth == depths
        assert config.space.learning_rate == pytest.approx(rates)
        (point,) = config.study.enqueue
        assert point_of(point, config, DEPTHS) == {"freeze_depth": 4, "learning_rate": 0.002}


def test_points_of_the_recipe_go_into_the_narrowed_space_where_they_lie_in_it(
    store: MlflowStore, caplog: pytest.LogCaptureFixture
) -> None:
    add_version(store, config_of())
    of_champion = {"backbone": "resnet18", "freeze_depth": 3, "learning_rate": 0.001}
    of_any = {"learning_rate": 0.004}
    of_another = {"backbone": "mobilenet_v3_small", "freeze_depth": 3}
    too_deep, too_fast = {"backbone": "resnet18", "freeze_depth": 1}, {"learning_rate": 0.01}
    settings = {
        "space": {"backbone": ["mobilenet_v3_small", "resnet18"]},
        "study": {"enqueue": [of_champion, of_another, of_any, too_deep, too_fast]},
    }
    with caplog.at_level("INFO"):
        config = plan_retraining(
            config_of(settings, {"retrain": {"narrow": True}}), manifest_of(NEW), store.home
        ).config
    assert config.study.enqueue[1:] == ({"freeze_depth": 3, "learning_rate": 0.001}, of_any)
    assert "study.enqueue: 3 of 5 points are not near the champion: skipped" in caplog.text
    for point in config.study.enqueue:
        point_of(point, config, DEPTHS)
    wide = plan_retraining(config_of(settings), manifest_of(NEW), store.home).config
    assert len(wide.study.enqueue) == 6, "all of them, and the champion's"


def test_a_mistake_in_a_point_is_not_taken_for_one_that_is_far_from_the_champion(store: MlflowStore) -> None:
    add_version(store, config_of())
    recipe = config_of({"study": {"enqueue": [{"freeze_depth": 99}]}, "retrain": {"narrow": True}})
    with pytest.raises(ConfigError, match=r"study\.enqueue: .*freeze_depth"):
        plan_retraining(recipe, manifest_of(NEW), store.home)


def test_a_study_with_a_name_of_its_own_gets_another_for_other_data(store: MlflowStore) -> None:
    recipe = config_of({"study": {"name": "nightly"}, "promotion": {"model": "gulls"}})
    old, new = (str(plan_retraining(recipe, manifest_of(d), store.home).config.study.name) for d in (OLD, NEW))
    assert old.startswith("nightly-")
    assert new.startswith("nightly-")
    assert old != new
    assert (model_of(recipe), model_of(config_of())) == ("gulls", "birds")


def test_another_retraining_of_the_model_is_a_reason_too(store: MlflowStore) -> None:
    who = "birds is being retrained by another process"
    outcome = conclude_retraining(plan_retraining(config_of(), manifest_of(NEW), store.home, busy=who), None)
    assert (outcome.end, outcome.reason) == ("skipped", who)


def test_a_home_retrains_a_model_once_at_a_time(own_home: Path) -> None:
    with alone_at_home("birds", own_home):
        with pytest.raises(StudyError, match="birds is being retrained"), alone_at_home("birds", own_home):
            pass
        with alone_at_home("gulls", own_home):
            pass
    with alone_at_home("birds", own_home):
        pass
