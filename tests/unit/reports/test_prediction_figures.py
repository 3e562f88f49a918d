"""Figures of predictions: numbers as scikit-learn has them, names of any kind as text."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import average_precision_score, roc_auc_score

from thawline.registry.statistics import calibration_error
from thawline.reports import confusion_figure, precision_recall_curves, reliability_diagram, roc_curves
from thawline.reports.prediction_figures import calibration_sentence
from thawline.tracking.media import Figure, Predictions


def texts(figure: Figure | None) -> list[str]:
    assert figure is not None
    root = ElementTree.fromstring(figure.svg)  # noqa: S314  our own
    return ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_confusion_matrix_counts_and_names_what_is_confused_most() -> None:
    labels, said = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 1, 0, 2])
    figure = confusion_figure(Predictions(labels, np.eye(3)[said], ("cat", "dog", "owl")))
    assert figure.alt == (
        "Confusion of 7 examples in 3 classes: 3 are correct. "
        "Most often confused: cat predicted as dog, 3 of 4; dog predicted as cat, 1 of 2."
    )
    assert {"cat", "owl", "3", "75%", "true class", "predicted"} <= set(texts(figure))


@pytest.mark.parametrize(("classes", "matrix"), [(40, True), (41, False)])
def test_above_forty_classes_the_most_confused_pairs_are_shown_instead(
    make_predictions: Callable[..., Predictions], classes: int, matrix: bool
) -> None:
    names = tuple(f"kind {number}" for number in range(classes))
    figure = confusion_figure(make_predictions(400, names, skill=2.0))
    assert ("true class" in texts(figure)) is matrix
    assert any("→" in text for text in texts(figure)) is not matrix


def test_names_of_classes_are_text_whatever_they_hold(make_predictions: Callable[..., Predictions]) -> None:
    names = ("<script>alert(1)</script>", "$x_1$", "帽子", "a\nb\x00", "x" * 60)
    for figure in (confusion_figure(make_predictions(60, names)), roc_curves(make_predictions(60, names))):
        assert figure is not None
        assert "<script" not in figure.svg
        shown = " ".join(texts(figure))
        assert all(part in shown for part in ("<script>", "$x_1$", "帽子", r"a\nb\x00", "xxxxx…"))
        assert "x" * 40 not in shown


def test_the_curves_have_the_areas_that_scikit_learn_computes(make_predictions: Callable[..., Predictions]) -> None:
    predictions = make_predictions(skill=1.0)
    truth = np.eye(3)[predictions.labels]
    roc, precision = roc_curves(predictions), precision_recall_curves(predictions)
    assert roc is not None
    assert precision is not None
    area = roc_auc_score(truth, predictions.probabilities, average="macro")
    assert f"Mean area under the curve: {area:.3f}" in roc.alt
    mean = average_precision_score(truth, predictions.probabilities, average="macro")
    assert f"Mean average precision: {mean:.3f}" in precision.alt
    assert f"mean of 3 classes: {mean:.3f}" in texts(precision)


def test_a_class_that_does_not_occur_has_no_curve_and_one_class_alone_no_figure(
    make_predictions: Callable[..., Predictions],
) -> None:
    predictions = make_predictions()
    two = replace(predictions, labels=np.minimum(predictions.labels, 1))
    assert "mean of 2 classes" in " ".join(texts(roc_curves(two)))
    assert roc_curves(replace(predictions, labels=np.zeros(120, dtype=np.int64))) is None
    assert precision_recall_curves(replace(predictions, labels=np.zeros(120, dtype=np.int64))) is None


@pytest.mark.parametrize("draw", [roc_curves, precision_recall_curves])
def test_two_classes_have_one_curve_that_of_the_rarer(
    make_predictions: Callable[..., Predictions], draw: Callable[[Predictions], Figure | None]
) -> None:
    predictions = make_predictions(60, ("ham", "spam"))
    rare = replace(predictions, labels=np.where(np.arange(60) < 10, 1, 0))
    shown = " ".join(texts(draw(rare)))
    assert "spam: 0." in shown
    assert "ham" not in shown
    assert "mean" not in shown
    assert "mean of 3 classes" in " ".join(texts(draw(make_predictions(60, ("a", "b", "c"))))), "a control"


def test_the_reliability_diagram_knows_what_was_before_the_calibration() -> None:
    random = np.random.default_rng(0)
    labels, logits = np.arange(200) % 4, random.normal(size=(200, 4)) * 4
    logits[np.arange(200), labels] += 3
    calibrated = softmax(logits / 2.5, axis=1)
    figure = reliability_diagram(Predictions(labels, calibrated, tuple("abcd")), temperature=2.5)
    right = logits.argmax(1) == labels
    before = calibration_error(softmax(logits, axis=1).max(1), right)
    after = calibration_error(calibrated.max(1), right)
    assert before != pytest.approx(after, abs=0.02)
    assert re.search(f"before calibration {before:.3f}, calibrated {after:.3f}", figure.alt)
    assert "before" not in reliability_diagram(Predictions(labels, calibrated, tuple("abcd"))).alt


def test_calibration_is_said_in_words_also_where_it_made_the_test_split_worse() -> None:
    random = np.random.default_rng(0)
    labels, logits = np.arange(200) % 4, random.normal(size=(200, 4)) * 4
    logits[np.arange(200), labels] += 3
    better = Predictions(labels, softmax(logits / 2.5, axis=1), tuple("abcd"))
    said = calibration_sentence(better, temperature=2.5, noun="image")
    assert said.startswith("Calibration, fitted on validation, holds on the test images: expected calibration error 0.")
    worse = Predictions(labels, softmax(logits / 0.2, axis=1), tuple("abcd"))
    said = calibration_sentence(worse, temperature=0.2 / 2.5, noun="text")
    assert "worsened the probabilities of the test texts" in said
    before, after = (float(number) for number in re.findall(r"0\.\d{3}", said))
    assert before < after
    assert calibration_sentence(better, temperature=None, noun="image") == "", "a model without"
