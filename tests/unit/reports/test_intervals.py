"""Intervals: known values, the metrics of scikit-learn, and what cannot be known is not said."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from thawline.reports import class_table, metric_intervals, proportion_interval
from thawline.tracking.media import Predictions


def test_wilsons_interval_has_its_known_value_and_says_something_of_all_and_of_none() -> None:
    interval = proportion_interval(8, 10)
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert proportion_interval(10, 10).low == pytest.approx(0.7225, abs=1e-4)
    assert proportion_interval(0, 10).high == pytest.approx(0.2775, abs=1e-4)
    assert str(proportion_interval(8, 10)) == "0.800 (0.490 to 0.943)"


def test_metrics_are_those_of_scikit_learn_within_intervals_that_shrink_with_more_examples(
    make_predictions: Callable[..., Predictions],
) -> None:
    few, many = make_predictions(60, skill=2.0), make_predictions(1200, skill=2.0)
    predicted = few.probabilities.argmax(1)
    intervals, narrower = metric_intervals(few), metric_intervals(many)
    assert intervals["accuracy"].value == pytest.approx((predicted == few.labels).mean())
    assert intervals["balanced accuracy"].value == pytest.approx(balanced_accuracy_score(few.labels, predicted))
    assert intervals["macro F1"].value == pytest.approx(f1_score(few.labels, predicted, average="macro"))
    for name, interval in intervals.items():
        assert interval.low < interval.value < interval.high
        assert narrower[name].high - narrower[name].low < 0.5 * (interval.high - interval.low)
    assert metric_intervals(few) == intervals


def test_a_class_that_is_neither_present_nor_predicted_does_not_count() -> None:
    labels, said = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0])
    intervals = metric_intervals(Predictions(labels, np.eye(4)[said], tuple("abcd")))
    assert intervals["balanced accuracy"].value == pytest.approx(balanced_accuracy_score(labels, said))
    assert intervals["macro F1"].value == pytest.approx(f1_score(labels, said, average="macro"))


def test_without_a_mistake_there_is_nothing_to_resample(perfect: Predictions) -> None:
    assert list(metric_intervals(perfect)) == ["accuracy"]
    assert metric_intervals(perfect)["accuracy"].low < 1.0


def test_the_table_of_classes_leaves_open_what_cannot_be_divided() -> None:
    labels, said = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    columns = class_table(Predictions(labels, np.eye(3)[said], ("cat", "dog", "owl"))).columns
    assert columns["class"] == ["cat", "dog", "owl"]
    assert columns["examples"] == [3, 1, 0]
    assert columns["recall"] == [pytest.approx(2 / 3), 1.0, None]
    assert columns["precision"] == [1.0, 0.5, None]
    assert columns["F1"] == [pytest.approx(0.8), pytest.approx(2 / 3), None]
    assert columns["recall from"][2] is None
    assert 0 < columns["recall from"][0] < 2 / 3 < columns["recall to"][0] < 1
