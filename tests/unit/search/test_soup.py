"""A soup is used where it wins on validation, and nowhere else."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from thawline.data import Manifest
from thawline.exceptions import CheckpointError
from thawline.reports import StudyReport
from thawline.search import winner
from thawline.search.prepare import Prepared
from thawline.search.recorder import Recorder
from thawline.search.records import TrialRecord
from thawline.search.soup import Weights, greedy_soup, kept_soup, make_soup
from thawline.search.spec import TrialSpec, build_backbone
from thawline.search.study import Study
from thawline.search.trial import run_trial
from thawline.search.trial_result import TrialResult
from thawline.search.winner import conclude, judge_best, restore
from thawline.study_report import make_report
from thawline.tracking import MlflowStore
from thawline.training import Checkpoint, CheckpointFolder, Decision, load_checkpoint, load_model

DEPTH = 6


def network(weight: list[float]) -> Weights:
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weight]))
    return dict(layer.state_dict())


def distance(weights: Weights) -> float:
    """A loss whose smallest value is at (1, 1)."""
    return float((weights["weight"] - 1).square().sum())


def test_errors_that_cancel_make_a_soup_that_wins() -> None:
    trials = [(3, network([1.2, 1.0])), (1, network([0.8, 1.1])), (7, network([1.0, 0.6]))]
    soup = greedy_soup(iter(trials), distance, metric="loss")
    assert soup.trials == (3, 1)
    assert soup.tried == 3
    assert torch.allclose(soup.weights["weight"], torch.tensor([[1.0, 1.05]]))
    assert soup.wins
    assert soup.value < soup.best_value
    assert str(soup) == "the average of trials 3, 1 (3 tried): val/loss 0.0025, trial 3 alone 0.0400"
    assert soup.tags["thawline.soup_trials"] == "3,1"


def test_a_trial_that_spoils_the_soup_is_left_out_and_later_ones_are_tried() -> None:
    trials = [(0, network([1.2, 1.0])), (1, network([5.0, 5.0])), (2, network([0.8, 1.0]))]
    soup = greedy_soup(iter(trials), distance, metric="loss")
    assert soup.trials == (0, 2)
    assert soup.value == pytest.approx(0)


def test_members_have_equal_shares_however_many_there_are() -> None:
    trials = [(number, network([1 + offset, 1.0])) for number, offset in enumerate((0.3, -0.1, -0.2, -0.0))]
    soup = greedy_soup(iter(trials), distance, metric="loss")
    assert soup.trials == (0, 1, 2, 3)
    assert torch.allclose(soup.weights["weight"], torch.tensor([[1.0, 1.0]]))


def test_a_soup_that_does_not_win_is_the_best_trial_alone() -> None:
    trials = [(4, network([1.0, 1.0])), (5, network([0.0, 2.0]))]
    soup = greedy_soup(iter(trials), lambda weights: -distance(weights), metric="accuracy")
    assert soup.trials == (4,)
    assert not soup.wins
    assert str(soup) == "not used: no average of the 2 trials is better than trial 4 alone (val/accuracy -0.0000)"
    assert "thawline.soup_trials" not in soup.tags


def test_statistics_are_averaged_and_counts_of_batches_are_not() -> None:
    def normalising(mean: float, batches: int) -> Weights:
        norm = nn.BatchNorm1d(1)
        state = norm.state_dict()
        state["running_mean"].fill_(mean)
        state["num_batches_tracked"].fill_(batches)
        return dict(state)

    soup = greedy_soup(iter([(0, normalising(1.0, 10)), (1, normalising(3.0, 20))]), lambda w: 1.0, metric="accuracy")
    assert soup.trials == (0, 1)
    assert float(soup.weights["running_mean"]) == 2.0
    assert int(soup.weights["num_batches_tracked"]) == 10
    assert not soup.wins, "what is no better does not replace the best"


# ----------------------------------------------------------------------------------------------------- in a search


@dataclasses.dataclass
class Searched:
    """A study of trials whose best checkpoints were written by the test."""

    spec: TrialSpec
    prepared: Prepared
    study: Study
    learned: dict[str, Tensor]
    """Of the head that was trained."""


@pytest.fixture
def searched(
    make_spec: Callable[..., TrialSpec],
    probe_once: None,
    scanned: tuple[Manifest, Path],
    store: MlflowStore,
    own_home: Path,
) -> Any:
    def make(*disturbances: float, shown: tuple[float, ...] = (0.9, 0.8, 0.7), **sections: Any) -> Searched:
        """A trial for each disturbance, which is added to the learned head's weights along one direction."""
        spec = make_spec(depth=DEPTH, epochs=4)
        config = spec.config.model_copy(
            update={
                "study": spec.config.study.model_copy(update={"soup": True, "metric": "loss", **sections}),
                "space": spec.config.space.model_copy(update={"freeze_depth": (DEPTH, DEPTH)}),
                "promotion": spec.config.promotion.model_copy(update={"model": "pictures"}),
            }
        )
        trained = run_trial(dataclasses.replace(spec, number=99, config=config), lambda result: Decision.CONTINUE)
        assert trained.checkpoint is not None
        learned = load_checkpoint(own_home / trained.checkpoint)
        direction = torch.randn(learned.model["classifier.3.weight"].shape, generator=torch.Generator().manual_seed(0))
        study = Study.open(own_home, spec.study, config, {spec.hyperparameters.backbone: DEPTH}, "f")
        for number, disturbance in enumerate(disturbances):
            study.draw(1, trials=100)
            moved = learned.model["classifier.3.weight"] + disturbance * direction
            checkpoint = dataclasses.replace(learned, model={**learned.model, "classifier.3.weight": moved})
            folder = own_home / "studies" / spec.study / f"trial-{number:03d}"
            path = CheckpointFolder(folder, keep=1, maximise=False).save(checkpoint)
            where = str(path.relative_to(own_home))
            result = TrialResult(number, "complete", 1 - shown[number], 4, 4, 1.0, "", trained.run_id, where)
            study.tell(result)
        files = {spec.hyperparameters.backbone: spec.activations.data}
        prepared = Prepared(config, config, scanned[0], {spec.hyperparameters.backbone: DEPTH}, files, "f")
        return Searched(spec, prepared, study, learned.model)

    return make


def test_a_soup_that_wins_is_kept_and_restored_in_place_of_the_best_trial(
    searched: Callable[..., Searched], own_home: Path
) -> None:
    made = searched(1.0, -1.0)
    soup = make_soup(made.prepared, made.study.records(), own_home)
    assert soup is not None
    assert soup.wins
    assert soup.trials == (0, 1)
    torch.testing.assert_close(soup.weights["classifier.3.weight"], made.learned["classifier.3.weight"])
    assert sorted(soup.weights) == ["classifier.3.bias", "classifier.3.weight"], "frozen parts are the same in all"

    (best, second) = made.study.records()
    restored, other = (restore(made.prepared, record, own_home).module.state_dict() for record in (best, second))
    assert torch.equal(restored["classifier.3.weight"], soup.weights["classifier.3.weight"])
    assert not torch.equal(other["classifier.3.weight"], soup.weights["classifier.3.weight"])
    assert kept_soup(made.prepared.study, 1, own_home) is None, "it won against another"


def test_a_soup_that_loses_is_not_used(searched: Callable[..., Searched], own_home: Path) -> None:
    made = searched(0.0, 5.0)
    soup = make_soup(made.prepared, made.study.records(), own_home)
    assert soup is not None
    assert not soup.wins
    best = made.study.records()[0]
    restored = restore(made.prepared, best, own_home).module.state_dict()
    assert torch.equal(restored["classifier.3.weight"], made.learned["classifier.3.weight"])


def test_trials_of_another_freeze_depth_join_with_what_they_had_frozen(
    searched: Callable[..., Searched], own_home: Path
) -> None:
    made = searched(1.0, -1.0)
    config, best = made.prepared.config, made.study.records()[0]
    backbone = build_backbone(config, best.hyperparameters.backbone, 2)
    deepest_group = backbone.layer_groups[-1]
    tensors = backbone.module.state_dict()
    name = next(name for name in deepest_group.tensors if name.endswith(".weight"))
    pretrained = tensors[name].clone()
    assert best.result is not None
    assert best.result.checkpoint is not None
    head = load_checkpoint(own_home / best.result.checkpoint)
    thawed = {key: tensors[key].clone() for key in deepest_group.tensors}
    thawed[name] += 0.01
    state: dict[str, Any] = {**head.state, "freeze_depth": DEPTH - 1}
    CheckpointFolder(own_home / "studies" / "tests" / "trial-001", keep=1, maximise=False).save(
        Checkpoint(head.epoch, {**thawed, **made.learned}, {}, {}, state)
    )
    records = [
        dataclasses.replace(
            record,
            hyperparameters=dataclasses.replace(record.hyperparameters, freeze_depth=DEPTH - record.number),
        )
        for record in made.study.records()
    ]
    soup = make_soup(made.prepared, records, own_home)
    assert soup is not None
    assert soup.trials == (0, 1)
    torch.testing.assert_close(soup.weights[name], pretrained + 0.005)
    kept = kept_soup("tests", 0, own_home)
    assert kept is not None
    load_model(kept, backbone)
    assert torch.equal(backbone.module.state_dict()[name], soup.weights[name])


def test_a_damaged_checkpoint_is_left_out_by_name_unless_it_is_that_of_the_best_trial(
    searched: Callable[..., Searched], own_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = searched(1.0, 0.5, -1.0)
    records = made.study.records()

    def damage(record: TrialRecord) -> None:
        assert record.result is not None
        assert record.result.checkpoint is not None
        (own_home / record.result.checkpoint).write_bytes(b"half of a checkpoint")

    damage(records[1])
    soup = make_soup(made.prepared, records, own_home)
    assert soup is not None
    assert (soup.trials, soup.tried) == ((0, 2), 2)
    assert "soup: trial 1 is skipped: " in caplog.text
    damage(records[0])
    with pytest.raises(CheckpointError):
        make_soup(made.prepared, records, own_home)


def test_one_trial_alone_makes_no_soup_and_the_outcome_says_so(
    searched: Callable[..., Searched], store: MlflowStore, own_home: Path
) -> None:
    made = searched(0.0)
    assert make_soup(made.prepared, made.study.records(), own_home) is None
    recorder = Recorder.connect(made.prepared.config, own_home)
    with made.study.held(), recorder.study_run(made.prepared, made.study) as run:
        judged = judge_best(made.prepared, run)
        outcome = conclude(made.prepared, made.study, run, judged)
    assert outcome.soup == "not tried: this home has no checkpoints of two complete trials of the best trial's backbone"


@pytest.mark.parametrize(("disturbances", "wins"), [((1.0, -1.0), True), ((0.0, 5.0), False)])
def test_the_outcome_and_the_version_record_the_result_of_the_soup(
    searched: Callable[..., Searched],
    store: MlflowStore,
    own_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    disturbances: tuple[float, ...],
    wins: bool,
) -> None:
    packaged: list[Mapping[str, Tensor]] = []
    package = winner.package
    monkeypatch.setattr(
        winner, "package", lambda *args, **kwargs: (packaged.append(kwargs["state_dict"]), package(*args, **kwargs))
    )
    made = searched(*disturbances)
    recorder = Recorder.connect(made.prepared.config, own_home)
    with made.study.held(), recorder.study_run(made.prepared, made.study) as run:
        judged = judge_best(made.prepared, run)
        outcome = conclude(made.prepared, made.study, run, judged)
        again = conclude(made.prepared, made.study, run, judge_best(made.prepared, run))
    (line,) = [line for line in outcome.lines() if line.startswith("Soup: ")]
    assert line.startswith("Soup: the average of trials 0, 1" if wins else "Soup: not used: no average of the 2 trials")
    assert outcome.as_dict()["soup"] == line.removeprefix("Soup: ")
    assert line in outcome.as_markdown()
    torch.testing.assert_close(packaged[0]["classifier.3.weight"], made.learned["classifier.3.weight"])
    assert (again.soup, len(packaged)) == (outcome.soup, 1), "nothing is packaged twice"


@pytest.mark.parametrize("gone", [False, True])
def test_a_report_shows_no_other_network_than_the_soup_that_was_registered(
    searched: Callable[..., Searched], own_home: Path, gone: bool, caplog: pytest.LogCaptureFixture
) -> None:
    made = searched(1.0, -1.0)
    recorder = Recorder.connect(made.prepared.config, own_home)
    with made.study.held(), recorder.study_run(made.prepared, made.study) as run:
        outcome = conclude(made.prepared, made.study, run, judge_best(made.prepared, run))
        if gone:  # as where another machine has concluded the study
            shutil.rmtree(own_home / "studies" / made.prepared.study / "soup")
        made_report = make_report(made.prepared, run, outcome)
    assert made_report is not None
    report = StudyReport.from_json(made_report.page.with_name("report.json").read_text())
    assert report.test is not None
    assert bool(report.explanations) is not gone
    lacking = f"lacks its explanations, graph and features: {outcome.model}/{outcome.promotion.version} is an average"
    assert (lacking in caplog.text) is gone


def test_without_the_setting_nothing_is_tried(searched: Callable[..., Searched], own_home: Path) -> None:
    made = searched(1.0, -1.0, soup=False)
    best = made.study.records()[0]
    restored = restore(made.prepared, best, own_home).module.state_dict()
    assert not torch.allclose(restored["classifier.3.weight"], made.learned["classifier.3.weight"])
