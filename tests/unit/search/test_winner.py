"""The end of a search: its result stands beside the majority class and the linear probe."""

import dataclasses
import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from thawline.config import SearchConfig
from thawline.data import Manifest, files_of, scan
from thawline.exceptions import DataError, ExportError, StudyError
from thawline.registry import MlflowRegistry, Prediction, parse_model
from thawline.registry import exports as exports
from thawline.reports import StudyReport
from thawline.search import winner
from thawline.search.prepare import Prepared
from thawline.search.recorder import Recorder
from thawline.search.records import TrialRecord
from thawline.search.spec import TrialSpec
from thawline.search.study import Study
from thawline.search.trial import run_trial
from thawline.search.trial_result import TrialResult
from thawline.search.winner import SearchOutcome, conclude, judge_best, restore
from thawline.study_report import make_report
from thawline.tracking import MlflowStore
from thawline.training import Checkpoint, CheckpointFolder, Decision, load_checkpoint

Concluded = Callable[..., SearchOutcome]


@pytest.fixture(scope="module")
def trained_before() -> list[Checkpoint]:
    """The network that the first of these tests trained."""
    return []


@pytest.fixture
def concluded(
    make_spec: Callable[..., TrialSpec],
    probe_once: None,
    trained_before: list[Checkpoint],
    scanned: tuple[Manifest, Path],
    store: MlflowStore,
    own_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Concluded:
    def conclude_study(
        *values: float,
        probe: int | None = None,
        learned: float = 1.0,
        reported: bool = False,
        unknown: float | None = 0.05,
        exports: tuple[str, ...] = (),
    ) -> SearchOutcome:
        """A study whose trials have these values.

        Args:
            values: of the trials.
            probe: number of the trial that is the linear probe.
            learned: factor of the trained head's weights; with -1 every class is taken for the other.
            reported: whether to write the report.
            unknown: share of false alarms.
            exports: other formats; PyTorch's exporter takes seconds.
        """
        spec = make_spec(depth=0, learning_rate=1e-2, epochs=10)
        ends = Decision.STOP if trained_before else Decision.CONTINUE  # the others only need a run of their own
        trained = run_trial(dataclasses.replace(spec, number=99), lambda result: ends)
        assert trained.checkpoint is not None
        if not trained_before:
            trained_before.append(load_checkpoint(own_home / trained.checkpoint))
        (checkpoint,) = trained_before
        head = {
            f"classifier.3.{name}": learned * checkpoint.model[f"classifier.3.{name}"] for name in ("weight", "bias")
        }
        checkpoint = dataclasses.replace(checkpoint, model={**checkpoint.model, **head})
        promotion = spec.config.promotion.model_copy(
            update={"model": "pictures", "unknown": unknown, "exports": exports}
        )
        space = spec.config.space.model_copy(update={"freeze_depth": (0, 0)})
        config = spec.config.model_copy(update={"promotion": promotion, "space": space})
        backbone = spec.hyperparameters.backbone
        study = Study.open(own_home, spec.study, config, {backbone: 6}, "f")
        for number, value in enumerate(values):
            study.draw(1, trials=100)
            folder = own_home / "studies" / spec.study / f"trial-{number:03d}"
            where = str(CheckpointFolder(folder, keep=1, maximise=True).save(checkpoint).relative_to(own_home))
            study.tell(TrialResult(number, "complete", value, 4, 4, 1.0, "", trained.run_id, where))
        monkeypatch.setattr(Study, "records", _with_probe(Study.records, probe))
        files = {backbone: spec.activations.data}
        prepared = Prepared(config, config, scanned[0], {backbone: 6}, files, "f")
        recorder = Recorder.connect(config, own_home)
        with study.held(), recorder.study_run(prepared, study) as run:
            outcome = conclude(prepared, study, run, judge_best(prepared, run))
            recorder.log_outcome(outcome, study)
            report = make_report(prepared, run, outcome) if reported else None
            return dataclasses.replace(outcome, report=report and report.page)

    return conclude_study


def test_the_version_tells_what_is_like_nothing_that_it_was_trained_on(
    concluded: Concluded, store: MlflowStore, scanned: tuple[Manifest, Path], tmp_path: Path
) -> None:
    outcome = concluded(1.0, unknown=0.2)
    model = MlflowRegistry(store).load(parse_model("pictures"))
    manifest = scanned[0]
    known = model.predict([*files_of(manifest, manifest.of("train")), *files_of(manifest, manifest.of("validation"))])
    alarms = [isinstance(answer, Prediction) and answer.unknown for answer in known]
    assert not any(alarms[:32])  # each is its own nearest neighbour
    assert 0 < sum(map(bool, alarms[32:])) <= 3  # of 16
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[8:24, 8:24] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "square.png")
    (square,) = model.predict([tmp_path / "square.png"])
    assert isinstance(square, Prediction)
    assert square.unknown
    assert "false_alarms" in outcome.promotion.challenger.metrics


def test_a_checkpoint_that_another_search_has_in_its_own_home_is_named_with_the_next_step(
    make_spec: Callable[..., TrialSpec], own_home: Path
) -> None:
    spec = make_spec()
    result = TrialResult(7, "complete", 0.9, 4, 4, 1.0, "", "run", "studies/shapes/trial-007/epoch-0004.safetensors")
    record = TrialRecord(7, "complete", spec.hyperparameters, 0.9, result)
    prepared = Prepared(spec.config, spec.config, scan(spec.config.data), {}, {}, "f")
    with pytest.raises(StudyError, match=r"trial 7 is not in .*run the same command there"):
        restore(prepared, record, own_home)


def test_a_version_tells_nothing_of_it_where_that_is_left_out(
    concluded: Concluded, store: MlflowStore, scanned: tuple[Manifest, Path]
) -> None:
    outcome = concluded(1.0, unknown=None)
    model = MlflowRegistry(store).load(parse_model("pictures"))
    (answer,) = model.predict(files_of(scanned[0], scanned[0].of("test")[:1]))
    assert isinstance(answer, Prediction)
    assert answer.unknown is None
    assert "false_alarms" not in outcome.promotion.challenger.metrics
    assert not list(store.home.rglob("reference.safetensors"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::DeprecationWarning:onnxscript")
def test_by_default_a_model_of_images_is_computed_by_the_fastest_engine_that_is_installed(
    concluded: Concluded, store: MlflowStore, scanned: tuple[Manifest, Path]
) -> None:
    concluded(1.0, exports=SearchConfig.build({"data": {"path": "photos"}}).promotion.exports)
    registry, name = MlflowRegistry(store), parse_model("pictures")
    with registry.artifacts(name) as artifacts:
        assert (artifacts / "model.onnx").is_file()
    model = registry.load(name, engine="auto")
    tried = {each.name: each for each in model.engines}
    assert tried["onnxruntime"].refused is None
    assert tried["openvino"].refused is None
    assert model.engine in [name for name, each in tried.items() if each.seconds is not None]
    files = files_of(scanned[0], scanned[0].of("test"))
    for ours, theirs in zip(model.predict(files), registry.load(name).predict(files), strict=True):
        assert isinstance(ours, Prediction)
        assert isinstance(theirs, Prediction)
        assert ours.class_name == theirs.class_name


def _not_installed(patch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    patch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else find(name))


def _fails(*_: object) -> Tensor:
    raise TypeError("no such operator\nand pages of details")


def _differs(classifier: torch.nn.Module, path: Path, pixels: Tensor, *_: object) -> Tensor:
    path.write_bytes(b"a graph")
    with torch.inference_mode():
        return classifier(pixels) + 0.01  # type: ignore[no-any-return]


def _exported_by(exporter: Callable[..., Tensor]) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setitem(exports._EXPORTERS, "onnx", exporter)


@pytest.mark.parametrize(
    ("hinder", "said"),
    [
        (_not_installed, None),
        (_exported_by(_fails), "The network cannot be exported as onnx: TypeError: no such operator"),
        (_exported_by(_differs), "exported as onnx gives different results: a probability differs by 1.0e-02"),
    ],
    ids=["not installed", "cannot be exported", "answers otherwise"],
)
def test_a_model_that_cannot_have_an_onnx_file_is_packaged_without_unless_it_is_asked_for_by_name(
    concluded: Concluded,
    store: MlflowStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    hinder: Callable[[pytest.MonkeyPatch], None],
    said: str | None,
) -> None:
    hinder(monkeypatch)
    if said is not None:
        with pytest.raises(ExportError, match="onnx"):
            concluded(1.0, exports=("auto", "onnx"))
    assert concluded(1.0, exports=("auto",)).promoted
    with MlflowRegistry(store).artifacts(parse_model("pictures")) as artifacts:
        assert (artifacts / "model.json").is_file()
        assert not (artifacts / "model.onnx").exists()
    lines = [line for line in caplog.messages if "model.onnx" in line]
    assert len(lines) == (said is not None)
    if said is not None:
        assert said in lines[0]
        assert "\n" not in lines[0]


def test_images_that_changed_during_the_search_are_not_scored(
    make_spec: Callable[..., TrialSpec], tmp_path: Path
) -> None:
    """Their score would stand under the digest of the others."""
    config = make_spec(depth=0).config.data
    root = shutil.copytree(config.path, tmp_path / "photos")
    manifest = scan(config.model_copy(update={"path": root}))
    files = winner.test_split(manifest).items
    assert files == [root / row.path for row in manifest.of("test")]
    other = (root / manifest.of("train")[0].path).read_bytes()
    for file in files:
        assert isinstance(file, Path)
        file.write_bytes(other)

    with pytest.raises(DataError, match=r"(?s)not what the study was trained on.*Start again"):
        winner.test_split(manifest)


def _with_probe(
    records: Callable[[Study], list[TrialRecord]], number: int | None
) -> Callable[[Study], list[TrialRecord]]:
    def changed(study: Study) -> list[TrialRecord]:
        return [
            dataclasses.replace(each, hyperparameters=dataclasses.replace(each.hyperparameters, policy=policy))
            for each in records(study)
            for policy in ["probe" if each.number == number else "static"]
        ]

    return changed


def test_the_result_stands_beside_the_majority_class_and_the_probe_wherever_it_is_shown(
    concluded: Concluded, store: MlflowStore
) -> None:
    outcome = concluded(0.875, 1.0, probe=0, reported=True)
    beside = "Validation accuracy: 1.0000 (linear probe 0.8750, majority class 0.5000)"
    lines = outcome.lines()
    assert lines[1] == beside
    assert lines[2] == "Test accuracy: 1.0000 (balanced 1.0000, macro F1 1.0000; majority class 0.5000)"
    assert lines[3].endswith("first champion; its accuracy is 1.0000, the majority class's 0.5000")
    assert outcome.promoted
    assert beside in outcome.as_markdown()
    assert beside in outcome.promotion.as_markdown()
    baselines = json.loads(json.dumps(outcome.as_dict()))["baselines"]
    assert baselines["validation"]["linear_probe"] == 0.875
    assert baselines["test"]["majority_class"]["accuracy"] == 0.5
    metrics = store.client.get_run(outcome.run_id).data.metrics
    assert {name: value for name, value in metrics.items() if name.startswith("baseline/")} == {
        "baseline/majority_class": 0.5,
        "baseline/majority_class_test_accuracy": 0.5,
        "baseline/probe": 0.875,
    }
    assert outcome.report is not None
    page = " ".join(outcome.report.read_text().split())
    report = StudyReport.from_json(outcome.report.with_name("report.json").read_text())
    assert report.promotion is not None
    assert report.promotion.validation is not None
    assert report.promotion.validation.majority_class == 0.5
    assert re.search(r"the linear probe</th>.*?0\.1250</td>", page)
    assert re.search(r"the majority class</th>.*?0\.5000</td>", page)


def test_a_probe_that_is_best_is_said_to_be(concluded: Concluded) -> None:
    outcome = concluded(1.0, 0.875, probe=0)
    assert outcome.lines()[1] == "Validation accuracy: 1.0000 (this is the linear probe, majority class 0.5000)"


def test_a_study_without_a_probe_names_the_majority_class_alone(concluded: Concluded, store: MlflowStore) -> None:
    outcome = concluded(1.0)
    assert outcome.lines()[1] == "Validation accuracy: 1.0000 (majority class 0.5000)"
    assert "baseline/probe" not in store.client.get_run(outcome.run_id).data.metrics


def test_a_first_model_that_is_worse_than_the_majority_class_stays_challenger_and_the_last_lines_say_what_to_do(
    concluded: Concluded, store: MlflowStore
) -> None:
    outcome = concluded(1.0, learned=-1.0)
    assert not outcome.promoted
    registry = MlflowRegistry(store)
    assert (registry.champion("pictures"), registry.challenger("pictures")) == (None, "1")
    model = next(line for line in outcome.lines() if line.startswith("Model: "))
    assert model.startswith(
        "Model: pictures version 1, not promoted: there is no champion yet, but the challenger does"
    )
    assert "balanced accuracy 0.0000 against 0.5000 on 16 test images" in model
    assert "`thawline promote pictures --version 1 --force --reason TEXT` makes it champion by force" in model
    assert registry.load(parse_model("pictures/1")).train_classes == {"bright": 16, "dark": 16}
    assert registry.tags("pictures", "1")["majority_class/accuracy"] == "0.5"
