"""What the report of a study records beside its page: mistakes, answers and features, of images and of texts."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_networks import write_tiny
from torch import Tensor

from thawline.backbones import create
from thawline.config import DataConfig, SearchConfig
from thawline.data import scan
from thawline.drift.check import catch_features
from thawline.labels import LabelCheck, Suspect
from thawline.reports import worst_mistakes
from thawline.search import TrialRecord
from thawline.search.probing import ProbeFile
from thawline.search.trial_result import trial_folder
from thawline.study_report import media
from thawline.study_report.held_out import HeldOut
from thawline.study_report.labels import shown_labels
from thawline.study_report.making import _chosen, _curves, _explanations, _point, _probe_curves
from thawline.study_report.media import _answers, _sheet, features_of
from thawline.tracking.media import Embedding, Image, Predictions, Table
from thawline.training import Hyperparameters, Probe

CLASSES = ("ham", "spam")
TEXTS = ["see you", "win\n\n£1000 now", "a long text " + "that continues " * 20]


@pytest.fixture
def predictions() -> Predictions:
    """The second of three is got wrong."""
    return Predictions(np.array([0, 1, 0]), np.array([[0.8, 0.2], [0.9, 0.1], [0.6, 0.4]]), CLASSES)


@pytest.fixture
def texts(predictions: Predictions) -> HeldOut:
    return HeldOut([f"sms.tsv:{line}" for line in (4, 7, 2)], TEXTS, predictions)


@pytest.fixture
def images(predictions: Predictions) -> HeldOut:
    pictures = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.full((3, 16, 16, 3), 90, dtype=np.uint8)
    return HeldOut(["a.png", "b.png", "c.png"], pictures, predictions)


def test_answers_name_images_by_their_files_and_texts_by_their_beginnings_and_lines(
    images: HeldOut, texts: HeldOut
) -> None:
    of_images, of_texts = _answers(images).columns, _answers(texts).columns
    assert of_images["image"] == ["b.png", "c.png", "a.png"], "the worst mistakes first"
    assert of_texts["line"] == ["sms.tsv:7", "sms.tsv:2", "sms.tsv:4"]
    first, second, third = of_texts["text"]
    assert (first, third) == ("win £1000 now", "see you")
    assert str(second).endswith("…")
    assert len(str(second)) <= 100
    assert set(of_images) - set(of_texts) == {"image"}
    for columns in (of_images, of_texts):
        assert columns["label"] == ["spam", "ham", "ham"]
        assert columns["right"] == [0, 1, 1]


def test_the_worst_mistakes_are_a_sheet_of_pictures_or_a_table_of_texts(images: HeldOut, texts: HeldOut) -> None:
    sheet, table = (
        _sheet(worst_mistakes(test.predictions, test.files, lambda i, test=test: test.examples[i]))  # type: ignore[misc]
        for test in (images, texts)
    )
    assert isinstance(sheet, Image)
    assert 90 in sheet.pixels, "the second picture is on it"
    assert isinstance(table, Table)
    assert table.columns == {
        "text": ["win £1000 now"],
        "label": ["spam"],
        "predicted": ["ham"],
        "probability": [0.9],
        "file": ["sms.tsv:7"],
    }


def record(number: int, hyperparameters: Hyperparameters, value: float) -> TrialRecord:
    return TrialRecord(number, "complete", hyperparameters, value, None)


TRAINED = Hyperparameters("resnet18", 3, 1e-3, 0.01, 10.0, "adamw")
PROBE = Hyperparameters("resnet18", 5, 0.0, 0.0, 1.0, "adamw", policy="probe")


def test_a_linear_probe_is_a_point_without_a_learning_rate_and_without_what_only_training_has() -> None:
    trained = _point(record(1, TRAINED, 0.9), "http://127.0.0.1:5000/runs/1")
    probe = _point(record(0, PROBE, 0.8), None)
    assert (trained.learning_rate, trained.others["weight_decay"], trained.is_probe) == (1e-3, 0.01, False)
    assert (probe.learning_rate, probe.others, probe.is_probe) == (None, {"policy": "probe"}, True)
    assert (probe.freeze_depth, probe.value) == (5, 0.8)
    assert (trained.link, probe.link) == ("http://127.0.0.1:5000/runs/1", None)


def test_a_linear_probe_has_no_learning_curve(tmp_path: Path) -> None:
    for number in (0, 1):
        folder = trial_folder(tmp_path, "pets", number)
        folder.mkdir(parents=True)
        (folder / "history.csv").write_text("epoch,val/accuracy\n1,0.5\n", encoding="utf-8")
    curves = _curves(tmp_path, "pets", [record(0, PROBE, 0.8), record(1, TRAINED, 0.9)])
    assert [(curve.trial, curve.metrics) for curve in curves] == [(1, {"val/accuracy": (0.5,)})]


def test_the_probe_curve_is_read_from_what_is_kept_of_each_backbone(tmp_path: Path) -> None:
    records = [record(0, PROBE, 0.8), record(1, TRAINED, 0.9), record(2, replace(PROBE, backbone="resnet34"), 0.7)]
    assert _probe_curves(tmp_path, "pets", records) == {}
    head = Probe(torch.zeros(2, 4), torch.zeros(2), 0.1, {"loss": 0.5}, {"loss": 0.6}, 0.0)
    for backbone, curve in (("resnet18", {3: 0.7, 5: 0.8}), ("resnet34", {})):
        ProbeFile(head=head, start=head, seconds=1.0, curve=curve).write(ProbeFile.path(tmp_path, "pets", backbone), {})
    assert _probe_curves(tmp_path, "pets", records) == {"resnet18": {3: 0.7, 5: 0.8}}


def test_mistakes_and_correct_predictions_of_each_class_are_explained_in_turn() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 0, 1, 0, 0, 0, 1])
    spam = np.array([0.9, 0.7, 0.1, 0.8, 0.2, 0.9, 0.3, 0.1, 0.6, 0.05, 0.2, 0.35])
    said = Predictions(labels, np.stack([1 - spam, spam], axis=1), CLASSES)
    chosen = _chosen(said).tolist()
    right = [bool(said.predicted[i] == labels[i]) for i in chosen]
    assert right == [False, True] * 4
    assert chosen[::2] == [0, 7, 4, 1], "the least expected mistakes first"
    assert {labels[i] for i in chosen[1:4:2]} == {0, 1}, "the surest of each class"
    without = Predictions(labels, np.eye(2)[labels], CLASSES)
    assert len(_chosen(without)) == 8
    assert len(_chosen(Predictions(labels, np.eye(2)[1 - labels], CLASSES))) == 8


def test_nothing_is_explained_of_texts(texts: HeldOut) -> None:
    backbone: Any = None  # is not asked
    assert _explanations(backbone, texts) == ()


class Tokens:
    """Texts of one, two and three tokens, of which the longest comes first."""

    boundary = 0
    labels = np.array([0, 1, 0])
    lengths = np.array([3, 1, 2], dtype=np.int32)

    def __init__(self) -> None:
        self.padded = torch.tensor([[4, 5, 6], [9, -1, -1], [1, 3, -1]])
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return 3

    def read(self, rows: np.ndarray, epoch: int) -> Tensor:
        self.asked.append(rows.tolist())
        return self.padded[rows]

    def prepare(self, read: Tensor, rows: np.ndarray, epoch: int) -> Tensor:
        return read


def test_features_of_texts_are_what_the_head_is_given_beside_their_beginnings(
    texts: HeldOut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = Tokens()
    monkeypatch.setattr(media, "open_inputs", lambda path, split, preprocessing, runtime: inputs)
    monkeypatch.setattr(media, "image_preprocessing", lambda config, backbone: None)
    config = SearchConfig.build({"data": {"path": "sms.tsv"}, "train": {"batch_size": 2, "device": "cpu"}})
    backbone = create(f"hf:{write_tiny('bert', tmp_path / 'bert')}", num_classes=2, max_length=8)
    prepared: Any = SimpleNamespace(
        config=config, manifest=SimpleNamespace(classes=CLASSES), inputs={backbone.name: Path("tokens")}
    )
    ((name, embedding, _),) = features_of(prepared, tmp_path, backbone, texts)
    assert name == "features"
    assert isinstance(embedding, Embedding)
    assert inputs.asked == [[1, 2], [0]], "short texts are not padded to the length of long ones"
    caught = catch_features(backbone.module)
    for row, (text, length) in enumerate(zip(inputs.padded, inputs.lengths.tolist(), strict=True)):
        with torch.inference_mode():
            backbone.module(text[None, :length])
        np.testing.assert_allclose(embedding.vectors[row], caught()[0], atol=1e-5)
    assert embedding.labels == ("ham", "spam", "ham")
    assert embedding.texts is not None
    assert [text[:9] for text in embedding.texts] == ["see you", "win £1000", "a long te"]
    assert embedding.thumbnails is None


def test_labels_to_look_at_are_shown_with_their_texts_in_the_order_of_the_list(tmp_path: Path) -> None:
    table = tmp_path / "notes.csv"
    table.write_text("text,label\n" + "".join(f"text number {i},{'xy'[i % 2]}\n" for i in range(60)))
    manifest = scan(DataConfig(path=table))
    suspects = tuple(
        Suspect(f"notes.csv:{line}", "x", "y", 0.01 * line, 0.9, "train", "") for line in (12, 4, *range(20, 50))
    )
    found = LabelCheck(suspects, 60, 0.1, 0.8, (), "the pretrained network")
    prepared: Any = SimpleNamespace(manifest=manifest)
    best: Any = None  # of texts no file of pictures is asked for
    shown = shown_labels(prepared, found, best)
    assert (shown.listed, len(shown.suspects), shown.file) == (32, 24, "suspects.csv")
    assert [(each.file, each.text) for each in shown.suspects[:2]] == [
        ("notes.csv:12", "text number 10"),
        ("notes.csv:4", "text number 2"),
    ]
    nothing = LabelCheck((), 60, 0.0, 0.8, (), "the pretrained network")
    assert shown_labels(prepared, nothing, best).file == ""
