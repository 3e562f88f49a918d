"""Storing activations saves time; a search works without it."""

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from stored import with_activations

from thawline.activations import StoredSplits
from thawline.backbones import depth_of
from thawline.data import scan
from thawline.exceptions import RegistryError, StudyError
from thawline.labels import FrozenFeatures, Network, network_of
from thawline.search import Prepared, Study, store_activations, stored_activations
from thawline.search.spec import TrialSpec
from thawline.search.trial_result import TrialResult
from thawline.tracking import MlflowStore
from thawline.training import Augmentation, Runtime, runtime_for

pytestmark = pytest.mark.xdist_group("processes")


def _killed(request: object) -> None:
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
    monkeypatch.setattr(stored_activations, "_plan_and_fill", _killed)
    with caplog.at_level(logging.WARNING, "thawline.search"):
        splits = stored(spec, own_home)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "storing activations of mobilenet_v3_small: its process was killed by signal 9; retrying",
        "no activations of mobilenet_v3_small are stored, so every trial computes them: its process was killed by "
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


@pytest.mark.parametrize("more", [0, 1])
def test_a_trial_that_was_begun_has_its_inputs_although_the_budget_was_lowered_to_what_has_ended(
    make_spec: Callable[..., TrialSpec], own_home: Path, more: int
) -> None:
    spec = make_spec(study="lowered")
    depths = {spec.hyperparameters.backbone: depth_of(spec.hyperparameters.backbone)}
    prepared = Prepared(
        spec.config, spec.config, scan(spec.config.data), depths, dict.fromkeys(depths, spec.activations.data), "f"
    )
    study = Study.open(own_home, spec.study, spec.config, depths, prepared.fingerprint)
    with study.held():
        probe, *_ = study.draw(1 + more, trials=10)
        study.tell(TrialResult(probe.number, "complete", 0.5, 1, 1, 1.0, "", "run", "file"))
    lowered = spec.config.model_copy(update={"study": spec.config.study.model_copy(update={"trials": 1})})
    study = Study.open(own_home, spec.study, lowered, depths, prepared.fingerprint)
    stored_for = store_activations(replace(prepared, config=lowered), study, own_home)
    assert set(stored_for) == (set(depths) if more else set()), "nothing where no trial remains"


def test_where_time_ends_the_search_the_plan_counts_the_trials_and_says_if_they_are_few(
    make_spec: Callable[..., TrialSpec], own_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def planned(study: str, minutes: float) -> int:
        spec = make_spec(study=study)
        limited = spec.config.study.model_copy(update={"timeout_minutes": minutes})
        timed = replace(spec, config=spec.config.model_copy(update={"study": limited}))
        caplog.clear()
        with caplog.at_level(logging.INFO, "thawline.search"):
            plan = stored(timed, own_home).plan
        assert plan is not None
        assert plan.seconds is not None
        assert f"plan: about {plan.trials} trial" in caplog.text
        return plan.trials

    assert planned("long", 1_000) > 20
    assert "use a longer --timeout" not in caplog.text
    assert planned("short", 0.001) == 1
    assert "fewer trials (1) than the probe and the first points of every search (7)" in caplog.text


def test_what_one_gpu_stored_is_found_by_trials_on_another_and_not_on_another_kind_of_device(
    make_spec: Callable[..., TrialSpec], own_home: Path
) -> None:
    splits = stored(make_spec(), own_home)

    def key(device: str, precision: torch.dtype | None = None) -> str:
        runtime = Runtime(torch.device(device), precision, channels_last=True)
        return splits._key("train", Augmentation(), None, max(splits.boundaries), runtime).digest

    assert key("cuda:0") == key("cuda:1")
    assert len({key("cpu"), key("cuda:0"), key("cuda:0", torch.bfloat16)}) == 3


def test_trials_from_other_pretrained_weights_do_not_join_a_study(
    make_spec: Callable[..., TrialSpec], own_home: Path
) -> None:
    spec = make_spec()
    splits = stored(spec, own_home)
    assert stored(spec, own_home).weights == splits.weights, "the control"
    # As a file of weights whose content changed, or a hub whose branch moved: the recipe is the same.
    name, depths = spec.hyperparameters.backbone, {spec.hyperparameters.backbone: 6}
    study = Study.open(own_home, "other", spec.config, depths, "same")
    study.keep_weights(name, "0" * 16)
    with pytest.raises(
        StudyError, match=rf"started with other weights of {name} \(digest 0000000000000000, now .*--study"
    ):
        stored(replace(spec, study="other"), own_home)
    assert study.weights_of(name) == "0" * 16


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


def test_the_label_doctor_finds_what_a_search_has_stored_and_stores_what_is_missing(
    make_spec: Callable[..., TrialSpec], own_home: Path
) -> None:
    spec = with_activations(make_spec(depth=6))
    manifest, backbone = scan(spec.config.data), spec.hyperparameters.backbone
    others = Network("another way to compute", backbone, spec.config)
    own = Network("the study", backbone, spec.config, spec.activations.plan)
    fresh, found = (FrozenFeatures.of(each, manifest, spec.config, own_home / "other") for each in (others, own))
    assert not fresh.are_stored
    found = replace(found, stored=replace(found.stored, folder=spec.activations.folder))
    assert found.are_stored
    computed: list[int] = []
    features = found.read(lambda done, total: computed.append(total))
    assert set(computed) == {len(manifest.of("test"))}, "training and validation images are there"
    np.testing.assert_allclose(fresh.read(), features, atol=1e-3)  # stored in half precision
    assert features.shape == (len(manifest.rows), 1024)
    again: list[int] = []
    fresh.read(lambda done, total: again.append(total))
    assert not again


def test_the_network_of_a_study_is_the_pretrained_one_of_its_settings(
    make_spec: Callable[..., TrialSpec], own_home: Path, store: MlflowStore
) -> None:
    spec = make_spec()
    given = spec.config.model_copy(update={"backbone": spec.config.backbone.model_copy(update={"weights": "none"})})
    backbone = spec.hyperparameters.backbone
    Study.open(own_home, spec.study, spec.config, {backbone: depth_of(backbone)}, "same")
    with pytest.raises(StudyError, match=r"The settings of the study tests are not recorded\. Name"):
        network_of(spec.study, given, home=own_home, tracking_uri=store.uri)
    settings = yaml.safe_dump(spec.config.model_dump(mode="json"))
    store.client.log_text(spec.parent_run_id, settings, "config.yaml")
    found = network_of(spec.study, given, home=own_home, tracking_uri=store.uri)
    assert found.described == "the pretrained mobilenet_v3_small of the study tests"
    assert found.config.backbone.weights == "starter"
    with pytest.raises(RegistryError, match=r"Unknown backbone 'birds'.* There is no study 'birds'.* No model 'birds'"):
        network_of("birds", given, home=own_home, tracking_uri=store.uri)
