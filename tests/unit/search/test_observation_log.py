"""What is recorded of a trial's inside, epoch by epoch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from thawline.config import DataConfig
from thawline.data import DecodedImages, scan
from thawline.search.observation_log import ObservationRecorder, ShownText, choose_rows, record_classes, texts_to_show
from thawline.testing import MemoryTracker
from thawline.tracking.media import Histogram, Image, Table
from thawline.training import Observation

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> tuple[ObservationRecorder, MemoryTracker]:
    """Of thirty validation pictures, the brightness of each telling its row."""
    labels = np.arange(30, dtype=np.int64) % 3
    images = np.broadcast_to(np.arange(30, dtype=np.uint8)[:, None, None, None] * 8, (30, 16, 16, 3))
    decoded = DecodedImages(Path("decoded.npy"), images, labels, {"validation": slice(0, 30)})
    monkeypatch.setattr(DecodedImages, "open", lambda path: decoded)
    tracker = MemoryTracker()
    return ObservationRecorder(tracker, images=decoded.path, classes=CLASSES, seed=0), tracker


def observation(*, steps: range, norms: Mapping[str, np.ndarray], logits: Any = None, **more: Any) -> Observation:
    logits = torch.zeros(30, 3) if logits is None else logits
    given = {"epoch": 2, "mean_norms": {}, "weights": {}, "gradients": {}, "in_detail": False} | more
    return Observation(steps=np.array(steps), norms=norms, logits=logits, **given)


def test_norms_are_recorded_by_epoch_and_by_step(recorder: Any) -> None:
    record, tracker = recorder
    norms = {"layer1": np.array([1.0, np.nan]), "head": np.array([3.0, 4.0])}
    record(observation(steps=range(7, 9), norms=norms, mean_norms={"layer1": 0.5, "head": 3.5}))
    assert tracker.metrics == {
        "gradient/layer1": {(2, None): 0.5},
        "gradient/head": {(2, None): 3.5},
        "gradient_step/layer1": {(7, None): 1.0},
        "gradient_step/head": {(7, None): 3.0, (8, None): 4.0},
    }
    assert tracker.media == []


def test_the_same_pictures_are_drawn_in_every_epoch_those_with_the_largest_loss_first(recorder: Any) -> None:
    record, tracker = recorder
    labels = np.arange(30) % 3
    shown = choose_rows(labels, 16, 0)
    worst, other = int(shown[5]), int(shown[9])
    right = 4.0 * torch.nn.functional.one_hot(torch.from_numpy(labels), 3).float()
    for epoch, row in ((1, worst), (2, other)):
        logits = right.clone()
        logits[row] = logits[row].roll(1)
        record(observation(epoch=epoch, steps=range(0), norms={"head": np.ones(0)}, logits=logits, in_detail=True))
    (first, one, _), (second, two, step) = tracker.media
    assert (first, second, step) == ("val/pictures", "val/pictures", 2)
    assert isinstance(one, Image)
    assert isinstance(two, Image)
    assert one.caption == "epoch 1: 1 of 16 wrong, largest loss first"
    assert (one.pixels[40, 40, 0], two.pixels[40, 40, 0]) == (worst * 8, other * 8)
    assert one.pixels.shape == two.pixels.shape
    inside = [set(np.unique(picture.pixels)) & set(shown * 8) for picture in (one, two)]
    assert inside[0] == inside[1] == set(shown * 8), "all of the same pictures are there"


def test_of_texts_a_table_says_in_every_detailed_epoch_what_they_were_taken_for_the_largest_loss_first() -> None:
    shown = (ShownText(4, "see you", 0), ShownText(9, "win now", 1), ShownText(2, "free cats", 2))
    tracker = MemoryTracker()
    record = ObservationRecorder(tracker, texts=shown, classes=CLASSES, seed=0)
    logits = torch.zeros(30, 3)
    logits[4, 0], logits[9, 0], logits[2, 2] = 9.0, 4.0, 1.0
    record(observation(epoch=1, steps=range(0), norms={"head": np.ones(0)}, logits=logits))
    assert tracker.media == [], "not while there is no time for it"
    record(observation(epoch=3, steps=range(0), norms={"head": np.ones(0)}, logits=logits, in_detail=True))
    ((name, table, step),) = tracker.media
    assert (name, step) == ("val/texts", 3)
    assert isinstance(table, Table)
    assert table.columns["text"] == ["win now", "free cats", "see you"]
    assert table.columns["label"] == ["bee", "cat", "ant"]
    assert table.columns["predicted"] == ["ant", "cat", "ant"]
    assert table.columns["probability"] == [pytest.approx(value, abs=1e-3) for value in (0.965, 0.576, 0.9998)]
    assert table.columns["loss"] == [pytest.approx(value, abs=1e-3) for value in (4.036, 0.551, 0.0002)]
    assert table.columns["epoch"] == [3] * 3


def test_the_texts_to_show_are_of_the_validation_split_with_their_rows_labels_and_beginnings(tmp_path: Path) -> None:
    lines = [f"{('ham', 'spam')[n % 2]}\tmessage number {n // 4} {n % 2} {'and more ' * 60}" for n in range(400)]
    (tmp_path / "sms.tsv").write_text("\n".join(["label\ttext", *lines]) + "\n", encoding="utf-8")
    manifest = scan(DataConfig(path=tmp_path / "sms.tsv"))
    validation = manifest.of("validation")
    shown = texts_to_show(manifest, seed=3)
    assert len(shown) == 16
    assert sum(each.label for each in shown) == 8
    assert len({validation[each.row].digest for each in shown}) == 16, "of copies one is shown"
    assert len({row.digest for row in validation}) < len(validation)
    for each in shown:
        line = int(validation[each.row].path.rpartition(":")[2])
        label, text = lines[line - 2].split("\t")
        assert manifest.classes[each.label] == label
        assert each.text.endswith("…")
        assert text.startswith(each.text[:-1])
    assert shown == texts_to_show(manifest, seed=3) != texts_to_show(manifest, seed=4)


def test_histograms_are_recorded_under_their_group(recorder: Any) -> None:
    from thawline.training.observation import Distribution

    record, tracker = recorder
    counted = {"layer1": Distribution(np.array([1, 2]), np.array([0.0, 1.0, 2.0]))}
    record(observation(steps=range(0), norms={"head": np.ones(0)}, weights=counted, gradients=counted, in_detail=True))
    found = {name: media for name, media, _ in tracker.media if isinstance(media, Histogram)}
    assert set(found) == {"weights/layer1", "gradients/layer1"}
    assert found["weights/layer1"].counts.tolist() == [1, 2]


def test_examples_are_of_every_class_and_chosen_by_the_seed_alone() -> None:
    labels = np.repeat([0, 1, 2], [200, 20, 3])
    chosen = choose_rows(labels, 16, 7)
    assert np.bincount(labels[chosen]).tolist() in ([7, 6, 3], [6, 7, 3])
    assert chosen.tolist() == choose_rows(labels, 16, 7).tolist() != choose_rows(labels, 16, 8).tolist()
    assert choose_rows(labels[:5], 16, 7).tolist() == [0, 1, 2, 3, 4]
    many = choose_rows(np.arange(1000) % 100, 16, 7)
    assert len(set(many % 100)) == 16


def test_tables_say_which_class_is_taken_for_which_and_how_good_each_is() -> None:
    tracker = MemoryTracker()
    record_classes(tracker, np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), CLASSES, step=5)
    (_, confusion, step), (_, classes, _) = tracker.media
    assert step == 5
    assert isinstance(confusion, Table)
    assert isinstance(classes, Table)
    assert confusion.columns == {
        "true / named": ["ant", "bee", "cat"],
        "ant": [3, 0, 0],
        "bee": [1, 4, 0],
        "cat": [0] * 3,
    }
    assert classes.columns["class"] == ["ant", "bee", "cat"]
    assert classes.columns["precision"] == [1.0, 0.8, None]
    assert classes.columns["recall"] == [0.75, 1.0, None]
    assert classes.columns["f1"] == [pytest.approx(6 / 7), pytest.approx(8 / 9), None]
    assert classes.columns["support"] == [4, 4, 0]
