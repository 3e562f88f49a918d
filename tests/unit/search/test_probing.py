"""The linear probe of a backbone is fitted once for a study, is its trial 0, and is what its trials begin with."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stored import with_activations
from tiny_networks import TINY
from torch import Tensor

from thawline.backbones import Backbone
from thawline.search import probing
from thawline.search import trial as trial_module
from thawline.search.probing import ProbeFile, begin_with_probe, fitted_probe, probe_curve
from thawline.search.space import probe_of
from thawline.search.spec import TrialSpec, build_backbone
from thawline.search.trial import run_trial
from thawline.search.trial_result import trial_folder
from thawline.tracking import MlflowStore
from thawline.training import (
    Augmentation,
    Decision,
    EpochResult,
    classification_metrics,
    load_checkpoint,
    predict,
    runtime_for,
)

Make = Callable[..., TrialSpec]
BACKBONE, DEEPEST = "mobilenet_v3_small", 6


def go_on(result: EpochResult) -> Decision:
    return Decision.CONTINUE


def backbone_of(spec: TrialSpec) -> Backbone:
    return build_backbone(spec.config, spec.hyperparameters.backbone, len(spec.classes))


def path_of(spec: TrialSpec) -> Path:
    return ProbeFile.path(spec.home, spec.study, BACKBONE)


def probed(spec: TrialSpec) -> ProbeFile:
    return fitted_probe(backbone_of(spec), spec.activations, spec.config, runtime_for(spec.config.train), path_of(spec))


def curve_of(spec: TrialSpec) -> dict[int, float]:
    return probe_curve(backbone_of(spec), spec.activations, spec.config, runtime_for(spec.config.train), path_of(spec))


def as_probe(spec: TrialSpec) -> TrialSpec:
    """The trial that is the linear probe."""
    return replace(spec, hyperparameters=probe_of(spec.config, {BACKBONE: DEEPEST}, BACKBONE))


def bits(probe: ProbeFile) -> list[Tensor]:
    return [probe.head.weight, probe.head.bias, probe.start.weight, probe.start.bias]


def same_bits(one: ProbeFile, other: ProbeFile) -> bool:
    return all(torch.equal(a, b) for a, b in zip(bits(one), bits(other), strict=True))


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of each backbone whose head a probe was fitted to."""
    names: list[str] = []
    original = probing.probes_of_head

    def noting(backbone: Backbone, *arguments: Any, **more: Any) -> Any:
        names.append(backbone.name)
        return original(backbone, *arguments, **more)

    monkeypatch.setattr(probing, "probes_of_head", noting)
    return names


def test_it_is_fitted_once_and_then_read_with_every_bit(make_spec: Make, fits: list[str]) -> None:
    spec = make_spec()
    first = probed(spec)
    again = probed(spec)
    assert fits == [BACKBONE]
    assert same_bits(first, again)
    assert first.head.weight.shape == (2, 1024)
    assert (again.head.penalty, again.head.validation) == (first.head.penalty, first.head.validation)
    assert (again.start.lowest, again.start.training) == (first.start.lowest, first.start.training)
    assert again.seconds == first.seconds > 0


def with_metric(spec: TrialSpec) -> TrialSpec:
    study = spec.config.study.model_copy(update={"metric": "loss"})
    return replace(spec, config=spec.config.model_copy(update={"study": study}))


def with_class_weights(spec: TrialSpec) -> TrialSpec:
    train = spec.config.train.model_copy(update={"class_weights": "balanced"})
    return replace(spec, config=spec.config.model_copy(update={"train": train}))


def with_other_data(spec: TrialSpec) -> TrialSpec:
    data = spec.activations.data
    for file in data.parent.glob(f"{data.stem}.*"):
        shutil.copy2(file, spec.home / file.name.replace(data.stem, "other"))
    return replace(spec, activations=replace(spec.activations, data=spec.home / f"other{data.suffix}"))


@pytest.mark.parametrize("changed", [with_metric, with_class_weights, with_other_data])
def test_one_of_other_data_or_another_metric_is_not_taken_for_it(
    make_spec: Make, fits: list[str], changed: Callable[[TrialSpec], TrialSpec]
) -> None:
    """A study may be deleted, and another made of the same name."""
    spec = make_spec()
    probed(spec)
    other = changed(spec)
    probed(other)
    assert len(fits) == 2
    probed(other)
    assert len(fits) == 2, "and is kept in its place"


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.999])
def test_a_torn_file_is_refitted(make_spec: Make, fits: list[str], kept: float) -> None:
    spec = make_spec()
    whole = probed(spec)
    content = path_of(spec).read_bytes()
    path_of(spec).write_bytes(content[: int(kept * len(content))])
    assert ProbeFile.read(path_of(spec)) is None
    assert same_bits(probed(spec), whole)
    assert len(fits) == 2
    assert path_of(spec).read_bytes()[:8] == content[:8]


def test_a_resumed_search_with_more_stored_layer_groups_adds_their_probes(make_spec: Make) -> None:
    spec = with_activations(make_spec(), {2: 0.5, 4: 0.5})
    plan = spec.activations.plan
    assert plan is not None
    probes_alone = replace(spec, activations=replace(spec.activations, plan=plan.for_probes()))
    first, second = curve_of(probes_alone), curve_of(spec)
    assert list(first) == [DEEPEST]
    assert list(second) == [2, 4, DEEPEST]
    assert second[DEEPEST] == first[DEEPEST]


def test_what_is_no_probe_is_not_read_as_one(tmp_path: Path) -> None:
    for content in (b"", b"nothing", b"\x02\0\0\0\0\0\0\0{}"):
        (tmp_path / "probe.safetensors").write_bytes(content)
        assert ProbeFile.read(tmp_path / "probe.safetensors") is None
    assert ProbeFile.read(tmp_path / "missing.safetensors") is None


def test_a_trial_begins_with_the_probe_and_so_above_one_with_a_fresh_head(make_spec: Make) -> None:
    def first_epoch(number: int, **train: Any) -> dict[str, float]:
        told: list[EpochResult] = []

        def tell(result: EpochResult) -> Decision:
            told.append(result)
            return Decision.CONTINUE

        result = run_trial(make_spec(number=number, epochs=1, learning_rate=1e-6, **train), tell)
        assert result.state == "complete", result.reason
        return dict(told[0].metrics)

    probe, fresh, usual = (
        first_epoch(number, **train) for number, train in enumerate(({"head": "probe"}, {"head": "fresh"}, {}))
    )
    assert fresh["val/loss"] == pytest.approx(np.log(2), abs=0.01), "a guess"
    assert probe["val/loss"] < fresh["val/loss"] - 0.02
    assert probe["val/accuracy"] > fresh["val/accuracy"] + 0.2
    assert probe["train/accuracy"] > fresh["train/accuracy"]
    assert usual["val/loss"] == probe["val/loss"], "which is what trials of images do"


def test_a_head_of_texts_begins_at_zero_unless_a_probe_is_asked_for(make_spec: Make, tmp_path: Path) -> None:
    spec = make_spec()
    name = f"hf:{TINY['bert'](tmp_path / 'bert')}"
    backbone = spec.config.backbone.model_copy(update={"name": name, "image_size": None, "weights": "default"})
    of_texts = replace(
        spec,
        hyperparameters=replace(spec.hyperparameters, backbone=name),
        config=spec.config.model_copy(update={"backbone": backbone}),
        activations=replace(spec.activations, backbone=name, preprocessing=None),
    )
    for each, begins_with_probe in ((of_texts, False), (spec, True)):
        made = trial_module._backbone(each, runtime_for(each.config.train))
        head = made.module.get_submodule(made.head.name)
        assert bool(head.get_parameter("weight").any()) == begins_with_probe


def test_what_a_trial_begins_with_answers_as_the_probe_did(make_spec: Make) -> None:
    spec = make_spec()
    runtime = runtime_for(spec.config.train)
    backbone = backbone_of(spec)
    begin_with_probe(backbone, spec.activations, spec.config, runtime, path_of(spec))
    _, validation = spec.activations.open_plain(DEEPEST, runtime)
    logits = predict(backbone, validation, runtime, 8)
    measured = classification_metrics(logits, torch.from_numpy(np.array(validation.labels)))
    assert measured["accuracy"] == probed(spec).start.validation["accuracy"]
    blank = predict(backbone_of(spec), validation, runtime, 8)
    assert not blank.any(), "a control: a fresh head says nothing"


def test_trials_share_the_probe_of_trial_0(make_spec: Make, fits: list[str]) -> None:
    run_trial(as_probe(make_spec()), go_on)
    run_trial(make_spec(number=1, epochs=1), go_on)
    run_trial(make_spec(number=2, epochs=1, depth=4), go_on)
    assert fits == [BACKBONE]
    run_trial(make_spec(number=0, epochs=1, study="another"), go_on)
    assert len(fits) == 2, "another study has one of its own"


def test_the_probe_is_a_complete_trial_with_a_checkpoint_and_a_run(
    make_spec: Make, store: MlflowStore, own_home: Path
) -> None:
    told: list[EpochResult] = []

    def tell(result: EpochResult) -> Decision:
        told.append(result)
        return Decision.CONTINUE

    spec = as_probe(make_spec(epochs=3))
    result = run_trial(spec, tell)
    assert (result.state, result.best_epoch, result.epochs, result.reason) == ("complete", 1, 1, "")
    assert (result.unsent, result.unkept) == (0, "")
    assert [epoch.epoch for epoch in told] == [1]
    probe = probed(spec).head
    assert result.value == told[0].metrics["val/accuracy"] == probe.validation["accuracy"]

    assert result.checkpoint is not None
    checkpoint = load_checkpoint(own_home / result.checkpoint)
    assert checkpoint.state["freeze_depth"] == DEEPEST
    (weight,) = (value for name, value in checkpoint.model.items() if name.endswith("weight"))
    assert torch.equal(weight, probe.weight)
    assert trial_folder(own_home, spec.study, 0) in (own_home / result.checkpoint).parents

    assert result.run_id is not None
    run = store.client.get_run(result.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "trial-00 linear probe")
    assert run.data.params["policy"] == "probe"
    assert run.data.params["freeze_depth"] == str(DEEPEST)
    untrue = ("learning_rate", "weight_decay", "epochs", "optimizer", "augmentation", "schedule")
    assert not [name for name in run.data.params if any(word in name for word in untrue)]
    assert run.data.metrics["best/accuracy"] == result.value
    assert {"val_recall/bright", "val_recall/dark", "val/loss", "train/loss"} <= run.data.metrics.keys()
    (model,) = store.client.search_logged_models([run.info.experiment_id])
    assert (model.source_run_id, model.name) == (result.run_id, "tests-trial-000")


def test_a_trained_trial_has_its_learning_rate_and_its_policy_among_its_params(
    make_spec: Make, store: MlflowStore
) -> None:
    run_id = run_trial(make_spec(epochs=1), go_on).run_id
    assert run_id is not None
    params = store.client.get_run(run_id).data.params
    assert (params["learning_rate"], params["policy"], params["train.epochs"]) == ("0.01", "static", "1")
    assert "train.policy" not in params, "under one name alone"


def test_the_same_probe_has_the_same_bits_in_another_study(make_spec: Make, fits: list[str], own_home: Path) -> None:
    results = [run_trial(as_probe(make_spec(study=study)), go_on) for study in ("one", "other")]
    assert len(fits) == 2
    checkpoints = [load_checkpoint(own_home / str(result.checkpoint)) for result in results]
    one, other = (checkpoint.model for checkpoint in checkpoints)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert any(value.any() for value in one.values())
    assert results[0].value == results[1].value
    assert checkpoints[0].state["loss"] == checkpoints[1].state["loss"]


def test_a_probe_that_is_run_again_by_another_process_comes_out_the_same(make_spec: Make, own_home: Path) -> None:
    """A search that was killed before its storage knew that the probe was over."""
    first, again = (run_trial(as_probe(make_spec()), go_on) for _ in range(2))
    assert (again.state, again.value, again.epochs, again.checkpoint) == (
        first.state,
        first.value,
        first.epochs,
        first.checkpoint,
    )
    assert again.checkpoint is not None
    assert (own_home / again.checkpoint).is_file()


def test_augmented_trials_begin_with_a_probe_of_images_as_they_are(make_spec: Make) -> None:
    plain, other = make_spec(), make_spec(study="augmented")
    augmentations = (Augmentation("light"),)
    augmented = replace(other, activations=replace(other.activations, augmentations=augmentations))
    train, _ = augmented.activations.open(DEEPEST, runtime_for(augmented.config.train), "light")
    unchanged, _ = plain.activations.open(DEEPEST, runtime_for(plain.config.train), "none")
    rows = np.arange(8)
    assert not torch.equal(
        train.prepare(train.read(rows, 0), rows, 0), unchanged.prepare(unchanged.read(rows, 0), rows, 0)
    ), "a control: they are augmented"
    assert same_bits(probed(augmented), probed(plain))


def test_the_curve_has_every_depth_that_is_stored_and_is_kept(
    make_spec: Make, fits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = with_activations(make_spec(), depths={1: 0.25, 3: 0.25, 5: 0.25, 6: 0.25})
    assert {1, 3} & set(spec.activations.boundaries), "a control: the store holds some in front of the deepest"
    curve = curve_of(spec)
    assert list(curve) == sorted({*spec.activations.boundaries, DEEPEST})
    assert curve[DEEPEST] == probed(spec).head.validation["accuracy"]
    assert all(0.5 <= value <= 1 for value in curve.values())
    assert fits == [BACKBONE]
    monkeypatch.setattr(probing, "fit_probes", None)
    assert curve_of(spec) == curve
    kept = ProbeFile.read(path_of(spec))
    assert kept is not None
    assert kept.curve == curve


def test_a_curve_leaves_out_what_is_no_longer_stored(make_spec: Make) -> None:
    spec = with_activations(make_spec(), depths={3: 0.5, 6: 0.5})
    assert len(spec.activations.boundaries) > 1
    shutil.rmtree(spec.activations.folder)
    assert list(curve_of(spec)) == [DEEPEST]


def test_of_nothing_stored_the_curve_is_the_head_only(make_spec: Make) -> None:
    spec = make_spec()
    assert curve_of(spec) == {DEEPEST: probed(spec).head.validation["accuracy"]}
