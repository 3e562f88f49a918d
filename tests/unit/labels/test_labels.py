"""Planted wrong labels are found, right ones are left alone, and the list is what the data settings read."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from thawline.cli import app
from thawline.data import Manifest, Row, folder
from thawline.data import cache as data_cache
from thawline.data.contract import content_digest
from thawline.exceptions import ConfigError, DataError, TrackingError
from thawline.labels import LabelCheck, check_suspects_file, judged
from thawline.labels.contradiction import contradictions
from thawline.labels.probing import folds_of, out_of_fold


def blobs(classes: int, each: int, spread: float, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of overlapping classes, their labels, and the labels after a share was changed to any other."""
    random = np.random.default_rng(seed)
    true = np.repeat(np.arange(classes), each)
    features = random.normal(size=(classes, 32))[true] + spread * random.normal(size=(len(true), 32))
    labels, wrong = true.copy(), random.permutation(len(true))[: round(noise * len(true))]
    labels[wrong] = (labels[wrong] + random.integers(1, classes, len(wrong))) % classes
    return features.astype(np.float32), true, labels


def manifest_of(labels: np.ndarray, classes: int) -> Manifest:
    rows = tuple(
        Row(f"{i}.png", int(label), "train", content_digest(str(i).encode()), None) for i, label in enumerate(labels)
    )
    return Manifest(Path("photos"), tuple(f"c{i}" for i in range(classes)), rows, (), "", "")


@pytest.mark.parametrize(("classes", "each"), [(2, 400), (10, 100)])
@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_most_wrong_labels_are_found_and_most_that_are_found_are_wrong(classes: int, each: int, noise: float) -> None:
    features, true, labels = blobs(classes, each, 1.7, noise, seed=1)
    found = judged(manifest_of(labels, classes), features, "blobs")
    listed = np.array([int(suspect.path.removesuffix(".png")) for suspect in found.suspects])
    wrong = np.flatnonzero(labels != true)
    hits = len(np.intersect1d(listed, wrong))
    assert hits >= 0.7 * len(wrong)
    assert hits >= 0.7 * len(listed)
    assert found.noise == pytest.approx(noise, abs=0.03)
    suggested = np.array([int(suspect.suggested.removeprefix("c")) for suspect in found.suspects])
    assert (suggested == true[listed]).mean() >= 0.7


def test_of_right_labels_almost_none_is_listed_however_often_the_probe_errs() -> None:
    features, true, labels = blobs(10, 100, 2.0, 0.0, seed=2)
    keys = [str(i) for i in range(len(labels))]
    probabilities = out_of_fold(features, labels, folds_of(keys, labels), 10)
    assert (probabilities.argmax(1) != true).mean() > 0.1
    assert len(contradictions(probabilities, labels).rows) <= 0.01 * len(labels)


def test_features_that_hardly_tell_the_classes_are_said_to_be_doubtful() -> None:
    told, hardly = (blobs(10, 100, spread, 0.05, seed=6) for spread in (2.0, 4.0))
    assert not judged(manifest_of(told[2], 10), told[0], "blobs").is_doubtful
    assert judged(manifest_of(hardly[2], 10), hardly[0], "blobs").is_doubtful


def test_the_least_likely_label_comes_first_and_is_named_with_its_place() -> None:
    features, _, labels = blobs(3, 60, 0.5, 0.0, seed=3)
    labels[7] = 2
    found = judged(manifest_of(labels, 3), features, "blobs")
    first = found.suspects[0]
    assert (first.path, first.label, first.suggested, first.split) == ("7.png", "c2", "c0", "train")
    assert first.digest == content_digest(b"7")
    shown = [suspect.label_probability for suspect in found.suspects]
    assert shown == sorted(shown)


def test_copies_are_in_one_fold_and_every_fold_has_its_share_of_every_class() -> None:
    labels = np.repeat([0, 1], 50)
    keys = [f"{i // 2}" for i in range(100)]
    folds = folds_of(keys, labels)
    assert all(folds[i] == folds[i + 1] for i in range(0, 100, 2))
    assert np.bincount(folds[:50]).tolist() == [10] * 5
    assert np.bincount(folds[50:]).tolist() == [10] * 5


def test_a_copy_does_not_vouch_for_a_wrong_label() -> None:
    features, _, labels = blobs(3, 60, 0.3, 0.0, seed=4)
    manifest = manifest_of(np.append(labels, 2), 3)
    twin = Row("twin.png", 2, "train", manifest.rows[0].digest, None)
    rows = (Row("0.png", 2, "train", twin.digest, None), *manifest.rows[1:-1], twin)
    found = judged(Manifest(manifest.root, manifest.classes, rows, (), "", ""), np.vstack([features, features[:1]]), "")
    assert {suspect.path for suspect in found.suspects} >= {"0.png", "twin.png"}


def test_a_class_of_few_examples_is_not_judged() -> None:
    features, _, labels = blobs(3, 60, 0.5, 0.0, seed=5)
    kept = np.arange(len(labels)) < 125  # five of the last class
    found = judged(manifest_of(labels[kept], 3), features[kept], "blobs")
    assert (found.unjudged, found.examples) == (("c2",), 120)
    assert not found.suspects
    alone = judged(manifest_of(labels[:65], 3), features[:65], "blobs")
    assert alone == LabelCheck((), 0, 0.0, 0.0, ("c1", "c2"), "blobs")


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Red and blue, three of each under the other name; decoded in this process."""

    def map_here(function, items, **options):  # type: ignore[no-untyped-def]
        return [function(item) for item in items]

    monkeypatch.setattr(folder, "map_files", map_here)
    monkeypatch.setattr(data_cache, "map_files", map_here)
    monkeypatch.chdir(tmp_path)
    random, root = np.random.default_rng(0), tmp_path / "pictures"
    for place, name in enumerate(("red", "blue")):
        (root / name).mkdir(parents=True)
        for index in range(45):
            pixels = random.integers(0, 8, (32, 32, 3), dtype=np.uint8)
            pixels[..., 2 * place if index >= 3 else 2 - 2 * place] += 180
            Image.fromarray(pixels).save(root / name / f"{index:02}.png")
    return root


def test_the_command_lists_them_and_a_search_without_them_or_with_the_other_class_reads_the_list(
    pictures: Path, own_home: Path
) -> None:
    options = ["--labels", "mobilenet_v3_small", "--set", "backbone.weights=starter", "--set", "backbone.image_size=32"]
    done = CliRunner().invoke(app, ["check", str(pictures), *options], catch_exceptions=False)
    planted = {f"{name}/{index:02}.png" for name in ("red", "blue") for index in range(3)}
    assert done.exit_code == 0
    assert "Labels that the features of the pretrained mobilenet_v3_small contradict: 6" in done.output
    assert all(path in done.output for path in planted)
    assert "--set data.exclude=suspects.csv" in done.output
    said = " ".join(done.output.split())
    assert f"{' '.join(options[2:])} --set data.relabel=suspects.csv" in said, "as it was read for the check"
    with Path("suspects.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == planted
    assert {(row["label"], row["suggested"]) for row in rows} == {("red", "blue"), ("blue", "red")}
    for option, left in (("exclude", 84), ("relabel", 90)):
        done = CliRunner().invoke(app, ["check", str(pictures), "--json", "--set", f"data.{option}=suspects.csv"])
        assert sum(json.loads(done.output)["splits"].values()) == left
    again = CliRunner().invoke(app, ["check", str(pictures), *options])
    assert isinstance(again.exception, DataError)
    assert "already exists and is not overwritten" in str(again.exception)
    missing = CliRunner().invoke(app, ["check", str(pictures), "--labels", "birds", "--suspects", "new.csv"])
    assert isinstance(missing.exception, TrackingError)  # nothing is recorded in this home
    assert "Unknown backbone 'birds'" in str(missing.exception)
    assert "There is no study 'birds'" in str(missing.exception)


def test_where_to_write_suspects_is_refused_without_a_network_to_find_them(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["check", str(tmp_path), "--suspects", "new.csv"])
    assert isinstance(done.exception, ConfigError)
    assert "need --labels MODEL: add it" in str(done.exception)


def test_a_list_that_somebody_may_have_worked_on_is_not_overwritten(tmp_path: Path) -> None:
    check_suspects_file(tmp_path / "suspects.csv")
    (tmp_path / "suspects.csv").write_text("path\n")
    with pytest.raises(DataError, match=r"not overwritten\. Choose another file with --suspects, or remove it"):
        check_suspects_file(tmp_path / "suspects.csv")
