"""Figures of a search: they say with numbers what there is to see, and are the same document every time."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest

from thawline.reports import (
    LearningCurve,
    StudyReport,
    TrialPoint,
    hyperparameter_importance,
    learning_curves,
    memory_by_depth,
    optimisation_history,
    response_surface,
    thaw_line,
    time_by_depth,
)
from thawline.reports.drawing import COLOURS
from thawline.tracking.media import Figure

SVG = "{http://www.w3.org/2000/svg}"


GREEN = COLOURS[2]


def texts(figure: Figure | None) -> list[str]:
    """What is written in a drawing, which must be a whole document."""
    assert figure is not None
    root = ElementTree.fromstring(figure.svg)  # noqa: S314  our own
    assert root.tag == f"{SVG}svg"
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def complete(number: int, depth: int, rate: float, value: float) -> TrialPoint:
    return TrialPoint(number=number, state="complete", freeze_depth=depth, learning_rate=rate, value=value)


def test_every_figure_is_a_whole_document_that_loads_nothing_and_says_what_there_is_to_see(
    figures: dict[str, Figure | None],
) -> None:
    for name, figure in figures.items():
        assert figure is not None, name
        assert len(texts(figure)) > 2, name
        for element in ElementTree.fromstring(figure.svg).iter():  # noqa: S314
            for key, value in element.attrib.items():
                if key.endswith(("href", "src")):
                    assert value.startswith(("#", "data:image/png;base64,")), name
        assert any(character.isdigit() for character in figure.alt), name
        assert len(figure.svg) < 100_000, name


def test_the_same_values_give_the_same_bytes_and_matplotlib_keeps_its_settings(
    report: StudyReport, figures: dict[str, Figure | None]
) -> None:
    before = dict(matplotlib.rcParams)
    figure = thaw_line(report.trials, "accuracy", deepest=5)
    assert figure == figures["thaw_line"]
    assert dict(matplotlib.rcParams) == before


def test_the_thaw_line_is_the_best_completed_trial_at_each_depth() -> None:
    trials = [complete(0, 0, 1e-3, 0.70), complete(1, 0, 1e-4, 0.80), complete(2, 1, 1e-3, 0.90)]
    pruned = TrialPoint(number=3, state="pruned", freeze_depth=1, learning_rate=1e-3, value=0.95)
    figure = thaw_line([*trials, pruned], "accuracy", deepest=1)
    assert figure is not None
    assert "depth 0: 0.8000; depth 1: 0.9000" in figure.alt
    assert {"best: trial 2", "pruned", "freeze depth", "val/accuracy"} <= set(texts(figure))
    assert "failed" not in texts(figure)
    lowest = thaw_line(trials, "loss", deepest=1)
    assert lowest is not None
    assert "depth 0: 0.7000" in lowest.alt
    assert "best: trial 0" in texts(lowest)


def test_the_probe_curve_is_drawn_beside_the_thaw_line(
    probed: tuple[TrialPoint, ...], make_probe: Callable[..., TrialPoint]
) -> None:
    probed = (make_probe(0.82), *probed[1:])
    plain = thaw_line(probed[1:], "accuracy", deepest=5)
    alone = thaw_line(probed, "accuracy", deepest=5)
    both = thaw_line(probed, "accuracy", probes={5: 0.82, 3: 0.75, 2: float("nan"), 1: None}, deepest=5)
    assert plain is not None
    assert alone is not None
    assert both is not None
    assert "linear probe" not in texts(plain)
    assert "linear probe" not in plain.alt
    assert texts(alone).count("linear probe") == texts(both).count("linear probe") == 1
    assert "depth 5: 0.8200 (the linear probe)." in alone.alt
    assert "Linear probes" not in alone.alt
    assert "Linear probes on the frozen features reach 0.7500 at depth 3, 0.8200 at depth 5." in both.alt
    assert both.svg.count(GREEN) > alone.svg.count(GREEN) > plain.svg.count(GREEN) == 0


def test_a_depth_that_only_a_probe_was_fitted_at_is_on_the_axis() -> None:
    trials = [complete(0, 3, 1e-3, 0.7), complete(1, 5, 1e-4, 0.8)]
    assert "1" not in texts(thaw_line(trials, "accuracy", deepest=5))
    assert {"1", "2"} <= set(texts(thaw_line(trials, "accuracy", probes={1: 0.6, 5: 0.75}, deepest=5)))


def test_a_probe_that_would_ruin_the_scale_is_left_out_with_a_word() -> None:
    good = [complete(number, number % 3, 1e-3, 0.9 + 0.001 * number) for number in range(9)]
    assert "1 probe lower, not shown" in texts(thaw_line(good, "accuracy", probes={1: 0.2, 2: 0.9}))
    bad = [*good, complete(9, 2, 0.01, 0.1)]
    assert "1 trial, 2 probes lower, not shown" in texts(thaw_line(bad, "accuracy", probes={0: 0.1, 1: 0.2, 2: 0.9}))


def test_a_linear_probe_has_no_place_among_the_learning_rates(
    trials: tuple[TrialPoint, ...], make_probe: Callable[..., TrialPoint]
) -> None:
    trained = trials[1:]
    plain = response_surface(trained, None, "accuracy", deepest=5)
    assert plain is not None
    for probe in (make_probe(), make_probe(None, state="running"), make_probe(None, state="failed")):
        assert response_surface((probe, *trained), None, "accuracy", deepest=5) == plain
    best = response_surface((make_probe(0.99), *trained), None, "accuracy", deepest=5)
    assert best is not None
    star = next(text for text in texts(plain) if text.startswith("best: trial "))
    assert star.replace("best", "best except the probe") in texts(best)
    assert "Best except the probe: 0." in best.alt


def test_a_linear_probe_is_in_the_history_but_has_no_time_and_no_memory_of_an_epoch(
    probed: tuple[TrialPoint, ...], make_probe: Callable[..., TrialPoint]
) -> None:
    alone, trained = [make_probe()], probed[1:]
    assert response_surface(alone, None, "accuracy") is None
    assert time_by_depth(alone) is None
    assert memory_by_depth(alone) is None
    assert time_by_depth(probed) == time_by_depth(trained) is not None
    assert memory_by_depth(probed) == memory_by_depth(trained) is not None
    history = optimisation_history(probed, "accuracy")
    assert history is not None
    assert "0.8000 in trial 0" in history.alt


def test_the_ends_of_the_depths_say_what_they_mean_where_it_is_known() -> None:
    trials = [complete(0, 0, 1e-3, 0.7), complete(1, 5, 1e-4, 0.8)]
    assert {"all trained", "head only"} <= set(texts(thaw_line(trials, "accuracy", deepest=5)))
    assert "head only" not in texts(thaw_line(trials, "accuracy"))


def test_a_trial_that_ruins_the_scale_is_left_out_with_a_word() -> None:
    good = [complete(number, number % 3, 1e-3, 0.9 + 0.001 * number) for number in range(9)]
    assert not any("not shown" in text for text in texts(thaw_line(good, "accuracy")))
    assert "1 trial lower, not shown" in texts(thaw_line([*good, complete(9, 2, 0.01, 0.1)], "accuracy"))
    assert "1 trial higher, not shown" in texts(optimisation_history([*good, complete(9, 2, 0.01, 40.0)], "loss"))


def test_the_response_surface_shows_every_state_and_where_the_fit_is_best(
    report: StudyReport, figures: dict[str, Figure | None]
) -> None:
    trials, fitted = report.trials, figures["surface"]
    alone = response_surface(trials, None, "accuracy", deepest=5)
    assert fitted is not None
    assert alone is not None
    assert {"pruned", "failed", "running", "1e-3", "head only", "val/accuracy"} <= set(texts(fitted))
    assert "18 trials (15 complete, 1 pruned, 1 failed, 1 running)" in fitted.alt
    assert "The fitted surface is best" in fitted.alt
    assert "fitted" not in alone.alt
    assert len(fitted.svg) > len(alone.svg) + 5_000  # the areas between the trials


@pytest.mark.parametrize(
    "draw", [thaw_line, optimisation_history, lambda trials, metric: response_surface(trials, None, metric)]
)
def test_one_trial_can_be_drawn_and_none_that_was_completed_gives_no_figure(
    draw: Callable[[list[TrialPoint], str], Figure | None],
) -> None:
    failed = TrialPoint(number=1, state="failed", freeze_depth=2, learning_rate=1e-3)
    assert draw([failed], "accuracy") is None
    assert draw([], "accuracy") is None
    assert "failed" in texts(draw([complete(0, 2, 1e-3, 0.5), failed], "accuracy"))


def test_the_history_tells_how_the_best_rose() -> None:
    trials = [complete(0, 1, 1e-3, 0.5), complete(1, 2, 1e-3, 0.4), complete(2, 2, 1e-3, 0.7)]
    figure = optimisation_history(trials, "accuracy")
    assert figure is not None
    assert "Improvements (1): 0.5000 in trial 0, 0.7000 in trial 2" in figure.alt
    falling = optimisation_history(trials, "loss")
    assert falling is not None
    assert "0.5000 in trial 0, 0.4000 in trial 1" in falling.alt


def test_hundreds_of_trials_make_no_larger_drawing_than_a_picture() -> None:
    random = np.random.default_rng(0)
    trials = [complete(n, n % 6, 10 ** random.uniform(-5, -2), random.uniform(0.8, 0.9)) for n in range(450)]
    figure = thaw_line(trials, "accuracy")
    assert figure is not None
    assert figure.svg.count("<image") == 1
    assert len(figure.svg) < 120_000
    few = thaw_line(trials[:100], "accuracy")
    assert few is not None
    assert "<image" not in few.svg


def test_time_and_memory_are_medians_of_what_was_measured_unless_they_were_computed(report: StudyReport) -> None:
    time = time_by_depth(report.trials, deepest=5)
    assert time is not None
    assert time.alt.startswith("Seconds per epoch by freeze depth, median: 10 at depth 0, 8.75 at depth 1")
    measured, computed = memory_by_depth(report.trials), memory_by_depth(report.trials, report.costs["resnet18"])
    assert measured is not None
    assert computed is not None
    assert "median: 3 at depth 0" in measured.alt
    assert "computed: 2 at depth 0" in computed.alt
    assert time_by_depth([complete(0, 1, 1e-3, 0.5)]) is None


def test_importance_is_ranked_and_tells_how_sure_it_is(report: StudyReport) -> None:
    shares, ranges = {"a_small_one": 0.1, "learning_rate": 0.9}, {"learning_rate": (0.7, 0.95)}
    figure = hyperparameter_importance(shares, ranges, "accuracy")
    assert figure is not None
    assert figure.alt.endswith("learning_rate 90% (70% to 95%), a_small_one 10%.")
    assert {"learning rate", "90%"} <= set(texts(figure))
    assert hyperparameter_importance({}, {}, "accuracy") is None


def test_learning_curves_show_loss_and_metric_and_pass_over_an_epoch_that_diverged() -> None:
    diverged = {"train/loss": [1.0, float("nan"), 0.5], "val/loss": [1.2, 0.9, 0.8], "val/macro_f1": [0.1, 0.2, 0.3]}
    figure = learning_curves([LearningCurve(trial=7, metrics=diverged)], "macro_f1")
    assert figure is not None
    assert (
        "Trial 7, 3 epochs: train/loss 1.000 to 0.500, val/loss 1.200 to 0.800, val/macro_f1 0.100 to 0.300"
        in figure.alt
    )
    assert {"loss", "macro F1", "trial 7"} <= set(texts(figure))
    assert learning_curves([LearningCurve(trial=7, metrics={})], "accuracy") is None
