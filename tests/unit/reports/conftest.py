"""A made-up study whose best freeze depth is 2 of 5 and whose best learning rate is 5e-4."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from thawline.backbones.summary import DepthCost
from thawline.reports import (
    DataSummary,
    Explanation,
    LearningCurve,
    Promotion,
    Provenance,
    StudyReport,
    TrialPoint,
    report_figures,
    worst_mistakes,
)
from thawline.tracking.media import Figure, Predictions

GROUPS = ("stem", "layer1", "layer2", "layer3", "layer4")


def _cost(depth: int) -> DepthCost:
    memory = 2_000_000_000 - 300_000_000 * depth
    return DepthCost(depth, 11_000_000 - 2_000_000 * depth, 6 * 10**9, 6 * 10**9, memory // 2, memory // 64, memory)


def _trial(number: int, rates: np.random.Generator) -> TrialPoint:
    depth, exponent = number % 6, float(rates.uniform(-5, -2))
    value = 0.9 - 0.01 * (depth - 2) ** 2 - 0.05 * (exponent + 3.3) ** 2
    state = {9: "pruned", 11: "failed", 13: "running"}.get(number, "complete")
    return TrialPoint(
        number=number,
        state=state,
        freeze_depth=depth,
        learning_rate=10**exponent,
        value=None if state in ("failed", "running") else value,
        backbone="resnet18",
        others={"optimizer": "adamw" if number % 3 else "sgd", "weight_decay": 0.01},
        best_epoch=3,
        epochs=4,
        seconds=40.0 - 5 * depth,
        memory_bytes=3e9 - 4e8 * depth,
        reason="out of memory: lower train.batch_size" if state == "failed" else "",
        link=f"http://127.0.0.1:5000/#/runs/{number}",
    )


@pytest.fixture(scope="session")
def trials() -> tuple[TrialPoint, ...]:
    """Eighteen, of which one was pruned, one failed and one runs."""
    rates = np.random.default_rng(0)
    return tuple(_trial(number, rates) for number in range(18))


@pytest.fixture(scope="session")
def make_probe() -> Callable[..., TrialPoint]:
    """A linear probe, trial 0 unless keywords say otherwise."""

    def make(value: float | None = 0.8, **parts: Any) -> TrialPoint:
        given: dict[str, Any] = {
            "number": 0,
            "state": "complete",
            "freeze_depth": len(GROUPS),
            "learning_rate": None,
            "value": value,
            "backbone": "resnet18",
            "others": {"policy": "probe"},
            "best_epoch": 1,
            "epochs": 1,
            "seconds": 3.0,
            "memory_bytes": 9e9,
        }
        return TrialPoint(**(given | parts))

    return make


@pytest.fixture(scope="session")
def probed(trials: tuple[TrialPoint, ...], make_probe: Callable[..., TrialPoint]) -> tuple[TrialPoint, ...]:
    """The same with a linear probe as trial 0."""
    return (make_probe(), *trials[1:])


@pytest.fixture(scope="session")
def make_predictions() -> Callable[..., Predictions]:
    """Predictions of ``examples`` in ``classes``; some nine in ten are right."""

    def make(examples: int = 120, classes: tuple[str, ...] = ("cat", "dog", "owl"), skill: float = 3.0) -> Predictions:
        random = np.random.default_rng(1)
        labels = np.arange(examples) % len(classes)
        logits = random.normal(size=(examples, len(classes)))
        logits[np.arange(examples), labels] += skill
        exponentials = np.exp(logits)
        return Predictions(labels, exponentials / exponentials.sum(1, keepdims=True), classes)

    return make


@pytest.fixture(scope="session")
def make_report(
    trials: tuple[TrialPoint, ...], make_predictions: Callable[..., Predictions]
) -> Callable[..., StudyReport]:
    """A report in which nothing is missing; keywords take the place of its parts."""

    def make(classes: tuple[str, ...] = ("cat", "dog", "owl"), **parts: Any) -> StudyReport:
        test = make_predictions(120, classes)
        files = [f"test/{classes[label]}/{number}.jpg" for number, label in enumerate(test.labels)]
        pixels = np.random.default_rng(2).integers(0, 256, size=(40, 60, 3), dtype=np.uint8)
        picture = io.BytesIO()
        Image.fromarray(pixels).save(picture, "PNG")
        curve = {
            "train/loss": (1.2, 0.5),
            "val/loss": (1.1, 0.7),
            "train/accuracy": (0.5, 0.9),
            "val/accuracy": (0.6, 0.8),
        }
        given: dict[str, Any] = {
            "study": "pets",
            "metric": "accuracy",
            "trials": trials,
            "created": "1 May 2026",
            "links": {"MLflow": "http://127.0.0.1:5000/"},
            "layer_groups": {"resnet18": GROUPS},
            "costs": {"resnet18": tuple(_cost(depth) for depth in range(6))},
            "curves": (LearningCurve(trial=2, metrics=curve),),
            "importance": {"learning_rate": 0.7, "freeze_depth": 0.3},
            "importance_ranges": {"learning_rate": (0.5, 0.9), "freeze_depth": (0.1, 0.5)},
            "test": test,
            "mistakes": worst_mistakes(test, files, lambda number: pixels),
            "explanations": (Explanation(picture=picture.getvalue(), caption="1.jpg: cat, 91 %, Grad-CAM"),),
            "promotion": Promotion.model_validate(
                {
                    "model": "pets",
                    "version": "4",
                    "outcome": "hold",
                    "reason": "nothing shows that it is better",
                    "judged_against": "3",
                    "criteria": [{"name": "gain", "passed": False, "value": "-0.0100", "threshold": "more than 0"}],
                    "calibration": {"temperature": 1.3, "items": 60, "error_before": 0.06, "error_after": 0.02},
                    "majority_class": {"accuracy": 0.3417, "balanced_accuracy": 0.3333},
                    "validation": {"best_trial": 0.9, "majority_class": 0.3333, "linear_probe": 0.85},
                }
            ),
            "data": DataSummary.model_validate(
                {
                    "path": "/data/pets",
                    "digest": "0123abcd",
                    "classes": {name: {"train": 300, "validation": 100, "test": 40} for name in classes},
                    "problems": {"bad": [{"path": "train/cat/3.jpg", "reason": "truncated"}]},
                }
            ),
            "provenance": Provenance(
                command="thawline search --data /data/pets",
                config="study:\n  trials: 18\n",
                commit="c0ffee",
                dirty=True,
                diff="-a\n+b\n",
                versions={"torch": "2.11.0"},
            ),
        }
        return StudyReport(**(given | parts))

    return make


@pytest.fixture(scope="session")
def report(make_report: Callable[..., StudyReport]) -> StudyReport:
    return make_report()


@pytest.fixture(scope="session")
def perfect(make_predictions: Callable[..., Predictions]) -> Predictions:
    """Every example is got right."""
    made = make_predictions()
    return replace(made, probabilities=np.eye(3)[made.labels])


@pytest.fixture(scope="session")
def figures(report: StudyReport) -> dict[str, Figure | None]:
    return report_figures(report)
